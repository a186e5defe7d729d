"""What an agent tells of its switch."""

import asyncio
import contextlib
import math
from pathlib import Path
from typing import Any

import pytest

from flows import names
from node_agent import audit
from openflow import digest
from openflow.watch import connect
from settings import Agent
from tests.openflow import samples
from tests.ovs import Ovs
from wire.documents import SwitchDigest, Verdict, decode_digest, encode


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


@pytest.mark.parametrize(("repeat", "times"), [(0.0, 5), (math.inf, 1)])
def test_digest_that_was_right_is_repeated_after_a_while(
    ovs: Ovs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, repeat: float, times: int
) -> None:
    looks: list[audit.Dump] = []
    tells: list[SwitchDigest] = []
    kept: list[audit.Dump] = []
    ended = asyncio.Event()
    look = audit.look

    async def look_five_times(*given: Any) -> audit.Dump:
        if len(looks) == 5:
            ended.set()
            await asyncio.Event().wait()
        looks.append(await look(*given))
        return looks[-1]

    async def tell(_: object, __: object, found: SwitchDigest) -> Verdict:
        tells.append(found)
        return Verdict.RIGHT

    async def keep(_: object, dump: audit.Dump) -> None:
        kept.append(dump)

    monkeypatch.setattr(audit, "REPEAT", repeat)
    monkeypatch.setattr(audit, "look", look_five_times)
    monkeypatch.setattr(audit, "_tell", tell)
    monkeypatch.setattr(audit, "_keep", keep)
    agent = Agent(
        node="node1", controllers=("192.0.2.1",), plain_tcp=True, audit_interval=0.001,
        ovs_run=tmp_path,
    )  # fmt: skip

    async def story() -> None:
        loop = asyncio.create_task(audit.audit_loop(agent, ovs.mgmt))
        async with asyncio.timeout(30):
            await ended.wait()
        loop.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await loop

    asyncio.run(story())
    assert tells == [looks[0].digest] * times
    # The same dump is not written again.
    assert kept == looks[:1]
