"""The addresses that an agent takes, keeps and gives back, with controllers on loopback.

Its ARP and its gate have tests of their own: here is neither an interface nor nftables.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

import pytest
from aiohttp import web

from node_agent import link_addresses
from node_agent.controllers import Controllers
from node_agent.link_addresses import LinkAddresses, clock
from wire import paths
from wire.address_grants import (
    LIFETIME,
    AddressDuties,
    Granted,
    decode_request,
    encode,
)

from .served import ServedController, eventually, running, served

ADDRESS = IPv4Address("192.0.2.1")


class Leader:
    """What a controller answers, as the test sets it."""

    def __init__(self, name: str, served_by: ServedController) -> None:
        self.name = name
        self.served = served_by
        self.leads = False
        self.leader = ""
        self.renews = True
        self.addresses: tuple[IPv4Address, ...] = ()
        self._revision = 0
        self._changed = asyncio.Event()
        self._numbers = iter(range(1, 1000))
        served_by.respond = self.respond

    def set(self, *addresses: IPv4Address, leads: bool = True) -> None:
        self.addresses, self.leads = addresses, leads
        self._revision += 1
        self._changed.set()
        self._changed = asyncio.Event()

    async def respond(self, request: web.Request) -> web.Response:
        if request.method == "POST":
            given = decode_request(await request.read())
            granted = [*given.held] if self.renews else []
            granted += [(each, next(self._numbers)) for each in given.wanted]
            answer = Granted(
                self.name, self.leads, self.leader, tuple(granted if self.leads else ())
            )
            return web.Response(body=encode(answer))
        while request.query[paths.AFTER] == str(self._revision):
            await self._changed.wait()
        duties = AddressDuties(
            "n1",
            str(self._revision),
            self.leads,
            addresses=tuple((a, True) for a in self.addresses),
        )
        return web.Response(body=encode(duties))

    def requests(self) -> list[Any]:
        return [decode_request(each) for each in self.served.to("/grants") if each]


class NoNetlink:
    """There is no interface with the node's address."""

    async def get_routes(self, **_: Any) -> Any:
        raise OSError("none")

    async def get_addr(self, **_: Any) -> Any:
        raise OSError("none")


@asynccontextmanager
async def world(state: Path) -> AsyncIterator[tuple[LinkAddresses, Leader, Leader]]:
    async with served(state=state) as (agent, first, second), Controllers(agent) as controllers:
        leaders = Leader("c1", first), Leader("c2", second)
        link = LinkAddresses(agent, controllers, cast("Any", NoNetlink()), lambda: None)
        async with running(link.run()):
            yield link, *leaders


def story(state: Path, told: Callable[..., Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(60), world(state) as parts:
            await told(*parts)

    asyncio.run(main())


def has(link: LinkAddresses) -> bool:
    return link.holds.has(ADDRESS, clock())


def test_it_takes_what_it_is_offered_and_tells_every_controller(tmp_path: Path) -> None:
    async def told(link: LinkAddresses, first: Leader, second: Leader) -> None:
        first.set(ADDRESS)
        await eventually(lambda: has(link))
        await eventually(lambda: any(each.held for each in second.requests()))
        await asyncio.sleep(LIFETIME)
        assert has(link)

    story(tmp_path, told)


def test_the_address_of_a_router_of_the_host_is_not_announced(tmp_path: Path) -> None:
    class OneRouter:
        async def addresses(self, _: Any) -> dict[IPv4Address, str]:
            return {ADDRESS: "a gateway of this host", IPv4Address("192.0.2.77"): "another"}

    async def told(link: LinkAddresses, first: Leader, _: Leader) -> None:
        link._protected = cast("Any", OneRouter())
        other = IPv4Address("192.0.2.78")
        first.set(ADDRESS, other)
        await eventually(lambda: link.holds.has(other, clock()))
        assert link._answers.announced == {other}
        assert link.problem() == f"{ADDRESS} is not announced: it is a gateway of this host"
        first.set(other)
        await eventually(lambda: not link.problem())

    story(tmp_path, told)


def test_an_address_that_is_granted_while_routers_are_looked_for_is_announced(
    tmp_path: Path,
) -> None:
    other = IPv4Address("192.0.2.78")

    async def told(link: LinkAddresses, first: Leader, _: Leader) -> None:
        class Slow:
            async def addresses(self, _: Any) -> dict[IPv4Address, str]:
                await eventually(lambda: link.holds.has(other, clock()))
                return {}

        first.set(ADDRESS)
        await eventually(lambda: has(link))
        link._protected = cast("Any", Slow())
        first.set(ADDRESS, other)
        await eventually(lambda: other in link._answers.announced)
        assert any(address == other for _, _, address, _ in link._answers._due)

    story(tmp_path, told)


def test_an_agent_without_addresses_renews_nothing(tmp_path: Path) -> None:
    async def told(_: LinkAddresses, first: Leader, second: Leader) -> None:
        first.set()
        await eventually(lambda: len(first.served.requests) > 1)
        await asyncio.sleep(1)
        assert first.requests() == second.requests() == []

    story(tmp_path, told)


def test_it_gives_back_what_it_should_not_have_and_says_so_to_every_controller(
    tmp_path: Path,
) -> None:
    async def told(link: LinkAddresses, first: Leader, second: Leader) -> None:
        first.set(ADDRESS)
        await eventually(lambda: has(link))
        first.set()
        await eventually(lambda: not has(link))
        for each in (first, second):
            await eventually(lambda e=each: any(r.released for r in e.requests()))  # type: ignore[misc]
        count = len(first.requests())
        await asyncio.sleep(1)
        assert len(first.requests()) <= count + 1, "there is nothing more to say"

    story(tmp_path, told)


def test_it_loses_what_no_controller_renews(tmp_path: Path) -> None:
    async def told(link: LinkAddresses, first: Leader, _: Leader) -> None:
        first.set(ADDRESS)
        await eventually(lambda: has(link))
        first.renews = False
        await eventually(lambda: not has(link))

    story(tmp_path, told)


@pytest.mark.parametrize("second_is_away", [False, True])
def test_it_keeps_what_it_has_while_nobody_leads(tmp_path: Path, second_is_away: bool) -> None:
    async def told(link: LinkAddresses, first: Leader, second: Leader) -> None:
        first.set(ADDRESS)
        await eventually(lambda: has(link))
        first.set(leads=False)
        if second_is_away:
            await second.served.stop()
        for _ in range(6):
            await asyncio.sleep(LIFETIME / 3)
            assert has(link)
        # One that says nothing may lead.
        if second_is_away:
            await second.served.start_silent()
        else:
            second.leader = "c3"
        await eventually(lambda: not has(link))

    story(tmp_path, told)


def test_it_loses_what_it_has_where_it_reaches_no_controller(tmp_path: Path) -> None:
    async def told(link: LinkAddresses, first: Leader, second: Leader) -> None:
        first.set(ADDRESS)
        await eventually(lambda: has(link))
        for each in (first, second):
            await each.served.stop()
        await eventually(lambda: not has(link))

    story(tmp_path, told)


def test_an_agent_that_stops_gives_everything_back(tmp_path: Path) -> None:
    async def main() -> None:
        async with world(tmp_path) as (link, first, _):
            first.set(ADDRESS)
            await eventually(lambda: has(link))
            ((address, number),) = link.holds.current(clock())
        last = first.requests()[-1]
        assert last.leaves
        assert last.released == ((address, number),)
        assert not has(link)

    asyncio.run(main())


def test_an_older_leader_is_not_believed_beside_a_newer_one(tmp_path: Path) -> None:
    async def told(link: LinkAddresses, first: Leader, second: Leader) -> None:
        first.set(ADDRESS)
        await eventually(lambda: has(link))
        api = {each.url.split("//")[1].split(":")[0]: each for each in link._tellers}
        newer = AddressDuties("n1", "9", leads=True, generation=5, addresses=((ADDRESS, True),))
        await link._take(api[second.served.host], newer)
        first.set()
        await asyncio.sleep(0.5)
        assert has(link)

    story(tmp_path, told)


def test_gated_addresses_are_kept_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[str] = []

    async def apply(text: str) -> None:
        applied.append(text)

    monkeypatch.setattr("node_agent.nft.apply", apply)

    async def main() -> None:
        async with world(tmp_path) as (link, *_):
            duties = AddressDuties("n1", "1", leads=True, gated=(ADDRESS,))
            await link._take(next(iter(link._tellers)), duties)
        assert len(applied) == 1
        async with world(tmp_path) as (link, *_):
            await link.restore()
            assert link._gate.gated == {ADDRESS}
        assert applied[1] == applied[0]
        link_addresses.file_of(link._agent).write_bytes(b'["x"]')
        async with world(tmp_path) as (link, *_):
            await link.restore()
            assert link._gate.gated == frozenset()

    asyncio.run(main())
