"""One replica's part in the election, against a played API server that fails on demand.

Against a real one: `tests.lab.test_election`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from controller import lease_loop as module
from controller.lease_loop import ADDRESS
from tests.controller.lease_server import LeaseServer, Replica, saying, serving, silent

Story = Callable[[LeaseServer, Callable[[str], Replica]], Awaitable[None]]


@pytest.fixture
def play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Story], None]:
    monkeypatch.setattr(module, "TIMEOUT", 60.0)

    def run(story: Story) -> None:
        async def main() -> None:
            async with serving(tmp_path) as (server, replica):
                await story(server, replica)

        asyncio.run(main())

    return run


def test_lease_is_made_by_one_request_and_renewed_by_one(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        await own.step()
        assert own.leads
        assert server.asked == ["GET", "POST"]
        assert server.spec["holderIdentity"] == "own"
        assert server.spec["leaseDurationSeconds"] == 4
        assert server.lease["metadata"]["annotations"] == {ADDRESS: "own:6654"}  # type: ignore[index]
        made, acquired = server.spec["leaseTransitions"], server.spec["acquireTime"]
        await own.step(1.0)
        assert server.asked == ["GET", "POST", "PUT"]
        assert server.spec["leaseTransitions"] == made == own.leadership.generation
        assert server.spec["acquireTime"] == acquired <= server.spec["renewTime"]
        assert own.problems == []

    play(story)


def test_one_request_takes_the_lease_and_raises_its_transitions(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own, other = replica("own"), replica("other")
        await own.step()
        first = own.leadership.generation
        await other.step()
        assert not other.leads
        assert other.leadership.leader == "own"
        assert other.leadership.generation == first
        server.asked.clear()
        await other.step(4.0)
        assert other.leads
        assert server.asked == ["GET", "PUT"]
        assert server.spec["leaseTransitions"] == other.leadership.generation == first + 1
        await own.step(1.0)
        assert not own.leads
        assert own.leadership.leader == "other"
        assert server.asked == ["GET", "PUT", "PUT", "GET"]

    play(story)


def test_foreign_fields_and_labels_survive(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        server.lease = {
            "metadata": {
                "name": "sluice", "uid": "u", "labels": {"team": "net"},
                "annotations": {"note": "x" * 100_000}, "finalizers": ["a/b"],
                "ownerReferences": [{"kind": "Pod", "name": "p"}],
            },
            "spec": {"holderIdentity": "", "strategy": "OldestEmulationVersion"},
        }  # fmt: skip
        server.change(preferredHolder="third")
        before = server.lease
        own = replica("own")
        await own.step()
        await own.step(1.0)
        assert own.leads
        after = server.lease
        for key in ("uid", "labels", "finalizers", "ownerReferences"):
            assert after["metadata"][key] == before["metadata"][key]
        assert after["metadata"]["annotations"]["note"] == "x" * 100_000
        assert after["spec"]["strategy"] == "OldestEmulationVersion"
        assert after["spec"]["preferredHolder"] == "third"

    play(story)


def test_change_of_a_label_costs_no_leadership(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        await own.step()
        terms = own.leadership.since
        for number in range(3):
            server.label(number=str(number))
            server.asked.clear()
            await own.step(1.0)
            assert server.asked == ["PUT", "GET", "PUT"]
            assert own.leads
        assert own.leadership.since == terms
        assert server.lease["metadata"]["labels"] == {"number": "2"}  # type: ignore[index]
        assert own.problems == []

    play(story)


def test_lease_that_was_taken_ends_the_term_with_the_same_step(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        await own.step()
        server.change(holderIdentity="other", leaseTransitions=own.leadership.generation + 1)
        await own.step(1.0)
        assert not own.leads
        assert own.election.term is None

    play(story)


def test_deleted_lease_is_made_anew_by_the_leader(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        await own.step()
        first = own.leadership.generation
        server.lease = None
        server.asked.clear()
        await own.step(1.0)
        assert server.asked == ["PUT", "GET", "POST"]
        assert own.leads
        assert own.leadership.generation > first

    play(story)


def test_silent_api_server_ends_the_term(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        await own.step()
        server.always = silent
        with monkeypatch.context() as patch:
            patch.setattr(module, "TIMEOUT", 0.05)
            await own.step(1.0)
            await own.step(1.0)
        assert own.leads
        own.clock.now += 1.0
        assert not own.leads
        server.always = None
        await own.step()
        assert own.leads
        assert own.problems == ["TimeoutError", ""]

    play(story)


def test_request_of_which_the_answer_is_lost_gives_no_term(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        server.change(holderIdentity="", leaseTransitions=7)

        async def lost(request: web.Request) -> None:
            server.change(**(await request.json())["spec"])
            assert request.transport
            request.transport.abort()

        async def passing(_: web.Request) -> None:
            pass

        # The client repeats a request whose connection has ended.
        server.faults.extend([passing, lost, saying(500)])
        await own.step()
        assert server.spec["holderIdentity"] == "own"
        assert not own.leads
        await own.step()
        assert own.leads
        assert own.leadership.generation == server.spec["leaseTransitions"] == 8

    play(story)


HOSTILE: list[Any] = [
    b"",
    b"[]",
    b"null",
    b"{",
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"metadata": {"resourceVersion": "1"}, "spec": {"leaseTransitions": 1e999}}',
    b'{"metadata": {"resourceVersion": "1"}, "spec": {"leaseTransitions": ' + b"9" * 5_000 + b"}}",
    b'{"metadata": {"resourceVersion": "1"}, "spec": {"leaseDurationSeconds": NaN}}',
    b"\xff\xfe",
    {"metadata": {"resourceVersion": "1"}, "spec": {"leaseTransitions": 1 << 31}},
    {"metadata": {"resourceVersion": "1"}, "spec": {"leaseTransitions": -1}},
    {"metadata": {"resourceVersion": "1"}, "spec": {"leaseTransitions": "7"}},
    {"metadata": {"resourceVersion": "1"}, "spec": {"holderIdentity": ["own"]}},
    {"metadata": {"resourceVersion": "1"}, "spec": []},
    {"metadata": {"resourceVersion": "1", "annotations": ["x"]}},
    {"metadata": {"resourceVersion": 1}},
    {"metadata": None},
    {"spec": {}},
]


def test_answer_that_is_no_lease_is_a_problem_and_ends_nothing(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        for body in HOSTILE:
            server.always = saying(200, body)
            await own.step()
            assert not own.leads
            assert own.problems[-1]
        assert {*server.asked} == {"GET"}
        server.always = None
        await own.step()
        assert own.leads
        for body in HOSTILE:
            # The answer to a renewal.
            server.faults.append(saying(200, body))
            await own.step(1.0)
            assert own.leads
            assert own.problems[-1]
            await own.step(1.0)
            assert own.leads
            assert not own.problems[-1]

    play(story)


def test_refusal_is_told_once_and_its_end_too(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        for code in (401, 403, 422, 429, 500, 503):
            own = replica(f"own-{code}")
            server.lease = None
            server.always = saying(code, {"message": "leases is forbidden"})
            await own.step(1.0)
            await own.step(1.0)
            assert own.problems == [f"{code}: leases is forbidden"]
            server.always = None
            await own.step(1.0)
            assert own.leads
            assert own.problems[1:] == [""]

    play(story)


def test_namespace_that_is_missing_is_told_once(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        server.always = saying(404, {"message": 'namespaces "net" not found'})
        for _ in range(3):
            await own.step(1.0)
        assert server.asked[:2] == ["GET", "POST"]
        assert own.problems == ['404: namespaces "net" not found']

    play(story)


def test_missing_credentials_are_a_problem(tmp_path: Path) -> None:
    async def main() -> None:
        own = Replica("own", tmp_path / "missing")
        await own.step()
        assert "no credentials" in own.problems[0]
        await own.end()

    asyncio.run(main())


def test_lease_is_given_back_also_if_somebody_changes_it_meanwhile(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own, other = replica("own"), replica("other")
        await own.step()
        server.label(a="b")
        await own.loop.release()
        assert not own.leads
        assert server.spec["holderIdentity"] == ""
        await other.step()
        assert other.leads
        assert other.leadership.generation == own.leadership.generation + 1

    play(story)


def test_lease_of_another_is_not_given_back(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own, other = replica("own"), replica("other")
        await own.step()
        await other.step()
        await other.loop.release()
        assert server.spec["holderIdentity"] == "own"

    play(story)


def test_replica_that_stops_does_not_take_the_lease_again(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        runs = asyncio.create_task(own.loop.run())
        async with asyncio.timeout(60):
            while not own.leads:
                await asyncio.sleep(0.01)
            # It comes while a renewal is under way.
            own.leadership.doubt()
            await own.loop.release()
            asked = len(server.asked)
            for _ in range(3):
                own.leadership.doubt()
                await asyncio.sleep(0.06)
        assert not own.leads
        assert server.spec["holderIdentity"] == ""
        assert len(server.asked) == asked
        runs.cancel()
        await asyncio.gather(runs, return_exceptions=True)

    play(story)


def test_useless_leader_gives_the_lease_back_and_leaves_it_to_others(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own, other = replica("own"), replica("other")
        await own.step()
        await other.step()
        own.judge.weakness, own.judge.handicap = "why", 2.0
        runs = asyncio.create_task(own.loop.run())
        async with asyncio.timeout(60):
            while own.leads or server.spec["holderIdentity"] == "own":
                await asyncio.sleep(0.01)
        runs.cancel()
        await asyncio.gather(runs, return_exceptions=True)
        await own.step(1.9)
        assert not own.leads
        await other.step(2.0)
        assert other.leads
        await own.step()
        await own.step(10.0)
        assert own.leads  # the other did not renew, and nobody was better

    play(story)


def test_lease_is_not_renewed_while_it_is_to_be_given_back(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        await own.step()
        server.faults.extend([saying(500)])
        await own.loop._release()
        assert server.spec["holderIdentity"] == "own"
        assert not own.leads
        await own.step(1.0)
        assert server.spec["holderIdentity"] == ""

    play(story)


def test_two_replicas_lead_one_after_the_other_with_growing_generations(play: Any) -> None:
    async def story(_: LeaseServer, replica: Callable[[str], Replica]) -> None:
        replicas = [replica("a"), replica("b")]
        generations = []
        for turn in range(6):
            leader = replicas[turn % 2]
            await leader.step()
            for each in replicas:
                each.clock.now += 4.0
            await leader.step()
            generations.append(leader.leadership.generation)
            assert [each.leads for each in replicas].count(True) == 1
        assert generations == sorted(set(generations))

    play(story)


def test_generation_is_raised_when_switches_refuse_it(play: Any) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        server.change(holderIdentity="", leaseTransitions=3)
        await own.step()
        assert own.leadership.generation == 4
        own.leadership.wanted_generation = 70
        await own.step(1.0)
        assert own.leads
        assert own.leadership.generation == server.spec["leaseTransitions"] == 71
        await own.step(1.0)
        assert own.leadership.generation == server.spec["leaseTransitions"] == 71

    play(story)


def test_doubt_has_the_lease_renewed_at_once(play: Any) -> None:
    async def story(_: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        runs = asyncio.create_task(own.loop.run())
        async with asyncio.timeout(60):
            while not own.leads:
                await asyncio.sleep(0.01)
            own.clock.now += 1.0
            asked = own.leadership.now()
            own.clock.now += 0.1
            assert await own.leadership.confirmed(asked)
        runs.cancel()
        await asyncio.gather(runs, return_exceptions=True)

    play(story)


def test_endless_doubt_asks_the_api_server_20_times_a_second_at_most(
    play: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story(server: LeaseServer, replica: Callable[[str], Replica]) -> None:
        own = replica("own")
        slept, sleep = list[float](), asyncio.sleep

        async def noted(seconds: float) -> None:
            slept.append(seconds)
            own.leadership.doubt()
            await sleep(0)

        monkeypatch.setattr(module.asyncio, "sleep", noted)
        runs = asyncio.create_task(own.loop.run())
        async with asyncio.timeout(60):
            while len(slept) < 20:
                await sleep(0.01)
        monkeypatch.undo()
        runs.cancel()
        await asyncio.gather(runs, return_exceptions=True)
        assert {*slept} == {module.SHORTEST_PERIOD}
        assert len(server.asked) <= len(slept) + 3

    play(story)
