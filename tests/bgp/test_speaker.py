"""A real ExaBGP, with peers on loopback: honest ones, and each kind of bad one."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from bgp import process, session, speaker
from bgp.speaker import Speaker
from tests.bgp.peers import OURS, THEIRS, Router, Talk, message, peer, serving, update
from wire.bgp import Peer, PeerAnnouncements, Route, Session

OWN = (IPv4Network("10.244.0.0/16"),)
NODES = tuple(IPv4Address(f"192.0.2.{n}") for n in range(1, 6))
POD_ROUTES = [Route(IPv4Network(f"10.244.{n}.0/24"), (NODES[n],)) for n in range(1, 5)]
SERVICE = IPv4Network("198.51.100.7/32")
WAIT = 60.0


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(120):
            await test()

    asyncio.run(bounded())


@asynccontextmanager
async def speaking() -> AsyncIterator[Speaker]:
    ours = Speaker()
    try:
        yield ours
    finally:
        await ours.close()


def tell(ours: Speaker, routes: list[Route], *peers: Peer) -> None:
    ours.want([PeerAnnouncements(each, tuple(routes)) for each in peers], OWN)


async def until(holds: Callable[[], Any]) -> None:
    async with asyncio.timeout(WAIT):
        while not holds():
            await asyncio.sleep(0.02)


def of(ours: Speaker, name: str = "router") -> Session:
    return next(each for each in ours.sessions() if each.peer == name)


def expected(routes: list[Route], *, several: bool = True) -> dict[str, set[str]]:
    return {
        str(route.prefix): {str(each) for each in route.next_hops[: None if several else 1]}
        for route in routes
    }


def test_a_router_learns_all_next_hops_and_every_change() -> None:
    async def test() -> None:
        router = Router()
        async with serving(router) as port, speaking() as ours:
            routes = [*POD_ROUTES, Route(SERVICE, NODES[:3])]
            tell(ours, routes, peer(port))
            await until(lambda: router.next_hops() == expected(routes))
            # All routes come before the marker that ends those of an earlier session.
            await until(lambda: "end of rib" in router.events)
            before = router.events[: router.events.index("end of rib")]
            assert {event.split()[1] for event in before} == expected(routes).keys()
            await until(lambda: of(ours).told == 7)

            router.events.clear()
            routes = [*POD_ROUTES[1:], Route(SERVICE, NODES[1:3])]
            tell(ours, routes, peer(port))
            await until(lambda: router.next_hops() == expected(routes))
            # One next hop took the place of another.
            assert router.lost == {"10.244.1.0/24"}

    run(test)


def test_a_router_without_add_path_always_has_one_next_hop() -> None:
    async def test() -> None:
        router = Router(add_path=False)
        async with serving(router) as port, speaking() as ours:
            routes = [Route(SERVICE, NODES[:3])]
            tell(ours, routes, peer(port))
            await until(lambda: router.next_hops() == expected(routes, several=False))
            await until(lambda: "end of rib" in router.events)
            assert of(ours).add_path is False
            router.events.clear()
            routes = [Route(SERVICE, NODES[1:3])]
            tell(ours, routes, peer(port))
            await until(lambda: router.next_hops() == expected(routes, several=False))
            # Never without one in between.
            assert router.events == [f"announce {SERVICE} {NODES[1]}"]

    run(test)


def test_everything_is_announced_again_after_exabgp_was_killed() -> None:
    async def test() -> None:
        router = Router()
        async with serving(router) as port, speaking() as ours:
            tell(ours, POD_ROUTES, peer(port))
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            os.kill(ours.pids()["router"], signal.SIGKILL)
            await until(lambda: router.sessions == 2)
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            assert of(ours).ended == 1

    run(test)


def test_an_exabgp_that_does_not_answer_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "ANSWER_SECONDS", 1.0)
    monkeypatch.setattr(speaker, "ECHO_SECONDS", 0.2)
    monkeypatch.setattr(process, "STOP_SECONDS", 0.2)

    async def test() -> None:
        router = Router()
        async with serving(router) as port, speaking() as ours:
            tell(ours, POD_ROUTES, peer(port))
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            stopped = ours.pids()["router"]
            os.kill(stopped, signal.SIGSTOP)
            await until(lambda: router.sessions == 2 and len(router.paths) == 4)
            assert not is_running(stopped)

    run(test)


def test_no_process_stays_when_the_speaker_is_killed() -> None:
    """As a controller: ExaBGP ends with the helper program, which ends with its connection."""

    async def test() -> None:
        router = Router()
        async with serving(router) as port, speaking() as ours:
            tell(ours, POD_ROUTES, peer(port))
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            (conversation,) = ours._conversations.values()
            pid = ours.pids()["router"]
            for task in ours._tasks.values():
                task.cancel()
            await until(lambda: not is_running(pid))
            assert conversation.pid is None

    run(test)


def test_a_peer_that_is_not_wanted_any_more_loses_its_routes() -> None:
    async def test() -> None:
        router = Router()
        async with serving(router) as port, speaking() as ours:
            tell(ours, POD_ROUTES, peer(port))
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            ours.want([], OWN)
            # With graceful restart the end of the session alone would leave them for minutes.
            await until(lambda: len(router.lost) == 4)

    run(test)


def test_other_communities_do_not_end_the_session() -> None:
    async def test() -> None:
        router = Router()
        async with serving(router) as port, speaking() as ours:
            tell(ours, POD_ROUTES, peer(port))
            await until(lambda: "end of rib" in router.events)
            router.events.clear()
            tell(ours, POD_ROUTES, peer(port, communities=("64512:7",)))
            await until(lambda: len(router.events) == 4)
            assert router.sessions == 1

    run(test)


# --- bad peers: each is reported, and a good one beside it learns what it should ---


async def silent(_: Talk) -> None:
    await asyncio.Event().wait()


async def garbage(talk: Talk) -> None:
    talk.writer.write(bytes(range(256)) * 16)
    await talk.writer.drain()
    await asyncio.sleep(0.2)


async def of_another_as(talk: Talk) -> None:
    await talk.establish(asn=THEIRS + 1)


async def invalid_update(talk: Talk) -> None:
    await talk.establish()
    talk.writer.write(message(2, b"\xff" * 50))
    await talk.read()
    await asyncio.sleep(0.2)


async def flapping(talk: Talk) -> None:
    await talk.establish()


BAD = {
    "silent": silent,
    "garbage": garbage,
    "wrong-as": of_another_as,
    "invalid": invalid_update,
    "flapping": flapping,
}


def test_bad_peers_are_reported_and_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "RESTLESS_SESSIONS", 4)

    async def test() -> None:
        router = Router()
        async with contextlib.AsyncExitStack() as stack:
            port = await stack.enter_async_context(serving(router, "127.0.0.9"))
            peers = [peer(port, "good", "127.0.0.9")]
            for number, (name, behaviour) in enumerate(BAD.items(), start=10):
                address = f"127.0.0.{number}"
                port = await stack.enter_async_context(serving(behaviour, address))
                peers.append(peer(port, name, address))
            ours = await stack.enter_async_context(speaking())
            tell(ours, POD_ROUTES, *peers)
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            await until(lambda: "bad peer AS" in of(ours, "wrong-as").reason)
            await until(lambda: "not BGP" in of(ours, "garbage").reason)
            await until(lambda: "UPDATE" in of(ours, "invalid").reason)
            # One that flaps all the time is left alone for a while.
            await until(lambda: "left alone" in of(ours, "flapping").reason)
            assert of(ours, "flapping").ended >= 4
            assert of(ours, "silent").state in {"Connect", "OpenSent", "Idle", "Active"}
            assert router.sessions == 1
            tell(ours, POD_ROUTES[:1], *peers)
            await until(lambda: router.next_hops() == expected(POD_ROUTES[:1]))

    run(test)


def test_a_flood_of_routes_is_counted_and_nothing_of_it_is_kept() -> None:
    async def test() -> None:
        router = Router()
        flood = [f"{16 + n // 65_536}.{n // 256 % 256}.{n % 256}.0/24" for n in range(100_000)]
        router.says = [
            update(["0.0.0.0/0", "10.244.3.0/24"]),
            update(["10.244.1.0/24"], path=(THEIRS, OURS)),
            *(update(flood[n : n + 900]) for n in range(0, len(flood), 900)),
        ]
        async with serving(router) as port, speaking() as ours:
            heard = 0

            def count() -> None:
                nonlocal heard
                heard += 1

            ours._changed = count
            tell(ours, POD_ROUTES, peer(port))
            await until(lambda: router.next_hops() == expected(POD_ROUTES))
            await until(lambda: of(ours).received == 100_003)
            found = of(ours)
            assert found.default_route
            assert found.claimed == ("10.244.3.0/24",)
            assert found.is_established
            # A line a second, whatever the peer sends.
            assert heard < 100
            assert memory_of(ours.pids()["router"]) < 150
            tell(ours, POD_ROUTES[:1], peer(port))
            await until(lambda: router.next_hops() == expected(POD_ROUTES[:1]))

    run(test)


def is_running(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def memory_of(pid: int) -> int:
    """Megabytes."""
    text = Path(f"/proc/{pid}/status").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1]) // 1024


@pytest.mark.skipif(os.geteuid() != 0, reason="signs packets")
def test_only_the_right_password_opens_a_session() -> None:
    async def test() -> None:
        good, bad = Router(), Router()
        ours_too = "with \"quotes\"; and {braces} 'too'"
        async with (
            serving(good, "127.0.0.3", password=ours_too) as port,
            serving(bad, "127.0.0.4", password=ours_too[1:]) as other,
            speaking() as ours,
        ):
            peers = (
                peer(port, "good", "127.0.0.3", password=ours_too),
                peer(other, "bad", "127.0.0.4", password=ours_too),
            )
            tell(ours, POD_ROUTES, *peers)
            await until(lambda: good.next_hops() == expected(POD_ROUTES))
            assert not of(ours, "bad").is_established
            assert bad.sessions == 0

    run(test)


def test_a_peer_without_a_route_is_tried_again_with_growing_pauses() -> None:
    async def test() -> None:
        async with speaking() as ours:
            # The configuration names no program that could reach it.
            tell(ours, POD_ROUTES, peer(1, address="127.0.0.5"))
            await until(lambda: of(ours).state in {"Connect", "Idle", "Active"})
            assert not of(ours).is_established

    run(test)
