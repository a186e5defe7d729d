"""What an agent tells of its switch."""

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web

from flows import names
from node_agent import audit, controllers
from node_agent.controllers import ControllerError, Controllers
from node_agent.generation import NewestGeneration
from openflow import digest
from openflow.watch import connect
from tests.openflow import samples
from tests.ovs import Ovs
from wire.documents import SwitchDigest, Verdict, decode_digest, encode

from .served import Respond, ServedController, eventually, running, served


def told(ovs: Ovs) -> SwitchDigest:
    async def look() -> SwitchDigest:
        async with connect(ovs.mgmt) as switch:
            return (await audit.look(switch)).digest

    return asyncio.run(look())


def test_groups_of_ours_are_digested_and_the_rest_is_counted(ovs: Ovs) -> None:
    groups = samples.groups()
    ovs.install(samples.for_services(), groups=groups)
    whole = told(ovs)
    assert decode_digest(encode(whole)) == whole
    assert whole.groups == digest.total(map(digest.of_group, groups))
    assert whole.foreign == 0

    # Learned as a flow of ours told it: nobody's work, and no two switches learn the same.
    ovs.ofctl("add-flow", str(ovs.mgmt), "cookie=0x0a00000000000001,table=62,actions=drop")
    assert told(ovs) == whole
    ovs.ofctl("add-flow", str(ovs.mgmt), "table=62,priority=1,actions=drop")
    ovs.ofctl("add-group", str(ovs.mgmt), "group_id=7,type=select,bucket=drop")
    assert told(ovs).foreign == 2
    assert told(ovs).groups == whole.groups

    bucket = "weight:1,actions=drop"
    ovs.ofctl("mod-group", str(ovs.mgmt), f"group_id={names.GROUPS[0]},type=select,bucket={bucket}")
    assert told(ovs).groups != whole.groups
    assert told(ovs).sums == whole.sums


def test_many_flows_are_asked_for_in_parts_and_the_digest_is_the_same(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While Open vSwitch makes an answer, it serves nobody else."""
    ovs.install(samples.for_services(), groups=samples.groups())
    ovs.ofctl("add-flow", str(ovs.mgmt), "table=62,priority=1,actions=drop")
    whole = told(ovs)
    monkeypatch.setattr(audit, "_AT_ONCE", 2)
    monkeypatch.setattr(audit, "_SLICE", 1)
    answers: list[int] = []

    async def looks() -> list[audit.Dump]:
        earlier = audit.Earlier()
        async with connect(ovs.mgmt) as switch:
            dump_flows = switch.dump_flows

            async def counted(*given: Any) -> Any:
                found = await dump_flows(*given)
                answers.append(len(found))
                return found

            monkeypatch.setattr(switch, "dump_flows", counted)
            found = [await audit.look(switch, earlier=earlier) for _ in range(2)]
            of_the_second = len(answers)
            changed = f"group_id={names.GROUPS[0]},type=select,bucket=weight:1,actions=drop"
            await asyncio.to_thread(ovs.ofctl, "mod-group", str(ovs.mgmt), changed)
            assert max(answers) < len(found[0].flows) / 2 < of_the_second
            monkeypatch.setattr(digest, "of_entry", None)  # each is known
            return [*found, await audit.look(switch, earlier=earlier)]

    first, second, changed = asyncio.run(looks())
    assert first.digest == second.digest == whole
    assert len(first.flows) == len(second.flows)
    assert changed.digest.groups != whole.groups, "what the last look found is not believed"


RIGHT, SUPERSEDED, DRIFT = Verdict.RIGHT, Verdict.SUPERSEDED, Verdict.DRIFT


def says(verdict: Verdict) -> Respond:
    async def respond(_: web.Request) -> web.Response:
        return web.json_response(verdict.value)

    return respond


def digests(controller: ServedController) -> list[SwitchDigest]:
    return [decode_digest(body) for body in controller.to("/digest")]


class Looks:
    """Counts what the audit does; its looks are real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.kept: list[SwitchDigest] = []
        look = audit.look

        async def counted(*given: Any) -> audit.Dump:
            found = await look(*given)
            self.count += 1
            return found

        async def keep(_: object, dump: audit.Dump) -> bool:
            self.kept.append(dump.digest)
            return True

        monkeypatch.setattr(audit, "_PATIENCE", 1e6)
        monkeypatch.setattr(audit, "look", counted)
        monkeypatch.setattr(audit, "_keep", keep)

    async def more(self, number: int = 3) -> None:
        """Until there were so many more looks, and all that follows from all but the last."""
        goal = self.count + number
        await eventually(lambda: self.count >= goal)


@asynccontextmanager
async def audited(
    ovs: Ovs, *verdicts: Verdict, **how: Any
) -> AsyncIterator[tuple[Controllers, ServedController, ServedController]]:
    settings = {"audit_interval": 0.005, "ovs_run": ovs.directory}
    async with served(**how, **settings) as (agent, first, second):
        first.respond, second.respond = map(says, verdicts)
        generation = NewestGeneration(ovs.directory / "generation")
        async with (
            Controllers(agent) as both,
            running(audit.audit_loop(agent, both, ovs.mgmt, generation)),
        ):
            yield both, first, second


@pytest.mark.parametrize("repeat", [0.0, math.inf])
def test_digest_that_was_right_is_repeated_after_a_while(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch, repeat: float
) -> None:
    monkeypatch.setattr(audit, "REPEAT", repeat)
    looks = Looks(monkeypatch)

    async def story() -> None:
        async with audited(ovs, RIGHT, SUPERSEDED) as (_, first, second):
            await looks.more(5)
            told = digests(first)
            assert len(told) == 1 if repeat else len(told) >= 4
            assert len(set(map(encode, told))) == 1
            # What is not confirmed is sent with each look.
            assert len(digests(second)) >= 4

    asyncio.run(story())
    # The same dump is not written again.
    assert len(looks.kept) == 1


@pytest.mark.parametrize(
    ("verdicts", "is_kept"),
    [
        ((RIGHT, RIGHT), True),
        ((RIGHT, SUPERSEDED), True),
        ((SUPERSEDED, RIGHT), True),
        ((SUPERSEDED, SUPERSEDED), False),
        ((RIGHT, DRIFT), False),
        ((DRIFT, RIGHT), False),
    ],
    ids=lambda value: "-".join(each.name for each in value) if isinstance(value, tuple) else None,
)
def test_dump_is_kept_if_one_controller_finds_it_right_and_none_finds_drift(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch, verdicts: tuple[Verdict, Verdict], is_kept: bool
) -> None:
    looks = Looks(monkeypatch)

    async def story() -> None:
        async with audited(ovs, *verdicts):
            await looks.more()

    asyncio.run(story())
    assert bool(looks.kept) == is_kept


@pytest.mark.parametrize("how", ["silent", "away"])
def test_controller_that_does_not_answer_delays_no_verdict(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    looks = Looks(monkeypatch)
    monkeypatch.setattr(audit, "_PATIENCE", 0.01)
    monkeypatch.setattr(controllers, "_REPORTING", 1e6)
    monkeypatch.setattr(audit, "REPEAT", math.inf)

    async def story() -> None:
        async with audited(ovs, RIGHT, RIGHT, **{how: True}):
            await eventually(lambda: len(looks.kept) == 1)
            await asyncio.to_thread(ovs.install, [samples.flow(1)])
            await eventually(lambda: len(looks.kept) == 2)

    asyncio.run(story())


def test_controller_that_died_has_no_say(ovs: Ovs, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks(monkeypatch)

    async def story() -> None:
        async with audited(ovs, DRIFT, RIGHT) as (_, first, _):
            await looks.more()
            assert not looks.kept
            await first.stop()
            await eventually(lambda: len(looks.kept) == 1)

    asyncio.run(story())


def test_controller_that_was_started_anew_gets_the_digest_again(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(audit, "REPEAT", math.inf)
    monkeypatch.setattr(controllers, "_PAUSE", (0.01, 0.01))
    looks = Looks(monkeypatch)

    async def story() -> None:
        async with audited(ovs, RIGHT, RIGHT) as (both, first, second):
            await eventually(lambda: bool(digests(first) and digests(second)))
            await first.stop()
            # What notices on a node are its long polls; the digest is the same all the time.
            with pytest.raises(ControllerError):
                await both.each[0].ask("GET", "/x", answers={}, timeout=30)
            await first.start()
            await eventually(lambda: len(digests(first)) == 2)
            await looks.more()
            assert len(digests(first)) == 2
            assert len(digests(second)) == 1

    asyncio.run(story())
