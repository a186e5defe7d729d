"""Addresses that this node has for a while: it answers ARP for them, and may send from them.

The leader says what the node should have (`AddressDuties`). The agent takes it, renews it with
every controller, and gives it back when it should not have it any more. Whether the node has an
address is asked again at the moment of each answer (`address_holds`).
"""

import asyncio
import errno
import random
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NoReturn

import aiohttp
import msgspec
import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from node_agent import install
from node_agent.address_gate import AddressGate
from node_agent.address_holds import Holds
from node_agent.arp_answers import ArpAnswers
from node_agent.controllers import ControllerApi, ControllerError, Controllers
from node_agent.faults import NodeFault
from node_agent.protected import Protected
from settings import Agent
from wire import paths
from wire.address_grants import (
    MAX_CONFLICTS,
    RENEWAL,
    AddressDuties,
    Grant,
    Granted,
    GrantRequest,
    decode_duties,
    decode_granted,
    encode,
)
from wire.documents import NodeConfig

_WAIT: Final = 30
"""Seconds that the controller may hold a request that has no news."""
_SLOW: Final = 10.0
_PATIENCE: Final = 1.0
"""Seconds for the answer to a renewal. One that comes later would hardly be of use."""
_SPACING: Final = 0.05
"""Seconds between two requests, however often something changes."""
_BACKOFF: Final = (0.2, 5.0)
"""Seconds before the second try of a long poll, and at most."""
_UNKNOWN: Final = 5.0
"""Seconds until the next try, where the controller is too old for this, or does not know the Node
yet."""
_GATED_AFTER: Final = 60.0
"""Seconds for which an address stays gated that needs not be any more: flows that send from it may
still be there."""
_REPAIR: Final = 10.0
_LAST_WORDS: Final = 0.5
"""Seconds that an agent that stops gives the controllers to hear of it."""
_MOST_KEPT: Final = 1 << 20

log = structlog.get_logger()


def clock() -> float:
    """Seconds; it goes on while the machine sleeps, and nobody can set it (clock_gettime(2))."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def file_of(agent: Agent) -> Path:
    """Where the gated addresses are kept: after a reboot they are gated before anything else."""
    return agent.state / "gated-addresses.json"


class _Teller:
    """What one controller is told."""

    def __init__(self, api: ControllerApi) -> None:
        self.api = api
        self.wake = asyncio.Event()
        self.released: dict[Grant, float] = {}
        """What was given up and the controller has not heard; until when it matters."""
        self.problem = ""
        """Why the last request has no answer; empty: it has one."""
        self.knows = False
        """Whether it may believe that this node has something."""


class LinkAddresses:
    """The addresses of this node."""

    def __init__(
        self,
        agent: Agent,
        controllers: Controllers,
        netlink: AsyncIPRoute,
        config: Callable[[], NodeConfig | None],
        *,
        on_gated: Callable[[frozenset[IPv4Address]], None] = lambda _: None,
        clock: Callable[[], float] = clock,
    ) -> None:
        """`config`: what the controller has said of the node; None: nothing yet.

        `on_gated` is called with the gated addresses when they change.
        """
        self._on_gated = on_gated
        self.holds: Final = Holds(controllers.each)
        self._agent = agent
        self._netlink = netlink
        self._node = controllers.node
        self._clock = clock
        self._tellers = {each: _Teller(each) for each in controllers.each}
        self._duties: dict[ControllerApi, AddressDuties] = {}
        """The last ones of each controller that decides."""
        self._gate = AddressGate()
        self._ungated: dict[IPv4Address, float] = {}
        """Addresses that stay gated for a while, and until when."""
        self._answers = ArpAnswers(netlink, config, self.holds, clock, agent.sysctl / "net")
        self._gate_problem = ""
        # The names of controllers are not looked up here: that may take too long.
        self._protected = Protected(())
        self._needed: dict[IPv4Address, str] = {}
        """Offered addresses that this host needs itself, and for what."""

    def sending(self) -> frozenset[IPv4Address]:
        """The gated addresses that this node has now: it is their gateway."""
        now = self._clock()
        return frozenset(each for each in self._gate.gated if self.holds.has(each, now))

    def problem(self) -> str:
        """What this node cannot do for its addresses; empty: it can do everything."""
        found = [self._gate_problem]
        if (duties := self._current()) is not None and duties.may_answer:
            found.append(self._answers.problem)
        for address, what in list(self._needed.items())[:3]:
            found.append(f"{address} is not announced: it is {what}")
        return "; ".join(filter(None, found))

    async def restore(self) -> None:
        """Gate what was gated before. To be called before flows can be restored."""
        try:
            gated = msgspec.json.decode(
                install.read(file_of(self._agent), _MOST_KEPT), type=list[str]
            )
            await self._use_gate(IPv4Address(each) for each in gated)
        except FileNotFoundError:
            pass
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            log.warning("the gated addresses cannot be read", reason=str(error))

    async def run(self) -> NoReturn:
        """Follow the controllers. Never ends; what it has it gives back when cancelled."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for teller in self._tellers.values():
                    tasks.create_task(self._follow(teller))
                    tasks.create_task(self._renew(teller))
                tasks.create_task(self._answers.run())
                while True:
                    await asyncio.sleep(_REPAIR)
                    await self._repair()
        finally:
            await self._leave()

    async def _repair(self) -> None:
        now = self._clock()
        if any(until <= now for until in self._ungated.values()):
            self._ungated = {a: until for a, until in self._ungated.items() if until > now}
            if (duties := self._current()) is not None:
                await self._follow_gated(duties)
        with suppress(NodeFault):
            await self._gate.repair()

    # --- what the node should have ---

    def _current(self) -> AddressDuties | None:
        """As the newest leader says; None: nobody decides."""
        return max(self._duties.values(), key=lambda each: each.generation, default=None)

    def _duty_addresses(self) -> dict[IPv4Address, bool]:
        duties = self._current()
        return dict(duties.addresses) if duties is not None else {}

    async def _follow(self, teller: _Teller) -> NoReturn:
        delay, latest = _BACKOFF[0], ""
        while True:
            try:
                found = await _ask_duties(teller.api, latest)
            except ControllerError as error:
                log.debug("no duties", controller=teller.api.url, reason=str(error))
                self._duties.pop(teller.api, None)
                latest = ""
                await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311  no secret
                delay = min(delay * 2, _BACKOFF[1])
                continue
            delay = _BACKOFF[0]
            if found == "unknown":
                self._duties.pop(teller.api, None)
                await asyncio.sleep(_UNKNOWN * random.uniform(0.5, 1))  # noqa: S311
            elif isinstance(found, AddressDuties):
                latest = found.revision
                await self._take(teller.api, found)

    async def _take(self, controller: ControllerApi, duties: AddressDuties) -> None:
        if not duties.leads:
            self._duties.pop(controller, None)
            return
        self._duties[controller] = duties
        if duties is not self._current():
            return  # An older leader, which does not know yet that it leads no more.
        await self._follow_gated(duties)
        wanted = dict(duties.addresses)
        announced = {each for each, announce in wanted.items() if announce}
        if announced - self._answers.announced - self._needed.keys():
            await self._find_needed(announced)
            if duties is not self._current():
                return
        self._needed = {each: what for each, what in self._needed.items() if each in announced}
        before, self._answers.announced = self._answers.announced, announced - self._needed.keys()
        # What was granted meanwhile is not announced yet.
        now = self._clock()
        if late := [a for a in self._answers.announced - before if self.holds.has(a, now)]:
            self._answers.begin(late)
        await self._release([each for each in self.holds.held if each not in wanted])
        if any(not self.holds.has(each, self._clock()) for each in wanted):
            self._wake()

    async def _find_needed(self, announced: set[IPv4Address]) -> None:
        """Look which of these a pool or EgressAddress must not have had, as that of a router.

        The whole link would send its packets for the router to this node.
        """
        try:
            found = await self._protected.addresses(self._netlink)
        except (NetlinkError, OSError) as error:
            log.warning("the host's routers are not known", reason=str(error))
            return
        new = {each: found[each] for each in announced & found.keys()}
        for address in new.keys() - self._needed.keys():
            log.warning("address not announced", address=str(address), why=new[address])
        self._needed = new

    async def _follow_gated(self, duties: AddressDuties) -> None:
        now = self._clock()
        for address in duties.gated:
            self._ungated.pop(address, None)
        for address in self._gate.gated.difference(duties.gated):
            self._ungated.setdefault(address, now + _GATED_AFTER)
        gated = {*duties.gated, *self._ungated}
        if gated == self._gate.gated:
            return
        await self._use_gate(gated)
        await self._hold_gate(self.holds.held)
        content = msgspec.json.encode(sorted(map(str, gated)))
        try:
            await asyncio.to_thread(install.replace, file_of(self._agent), content, 0o600)
        except OSError as error:
            log.warning("the gated addresses are not saved", reason=str(error))

    async def _release(self, addresses: Iterable[IPv4Address]) -> None:
        """Give addresses back, and say so when it is done."""
        now = self._clock()
        until = {address: self.holds.held[address].until for address in addresses}
        given = [grant for each in until if (grant := self.holds.give_up(each)) is not None]
        if not given:
            return
        log.info("addresses given back", addresses=_texts(until))
        self._answers.refresh()
        try:
            await self._gate.let_go(list(until))
        except NodeFault as error:
            # Nobody is told: the kernel forgets them when their time is over, and so do all.
            self._note_gate(str(error))
            return
        for teller in self._tellers.values():
            teller.released |= {grant: until[grant[0]] for grant in given if until[grant[0]] > now}
        self._wake()

    def _wake(self) -> None:
        for teller in self._tellers.values():
            teller.wake.set()

    # --- renewals ---

    async def _renew(self, teller: _Teller) -> NoReturn:
        while True:
            teller.wake.clear()
            now = self._clock()
            self._note_ended(now)
            request = self._request(teller, now)
            if request is None:
                await teller.wake.wait()
                continue
            if not await self._tell(teller, request, now):
                await asyncio.sleep(_UNKNOWN * random.uniform(0.5, 1))  # noqa: S311
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(max(now + RENEWAL - self._clock(), 0.01)):
                    await teller.wake.wait()
            # Many changes at one moment are one request.
            await asyncio.sleep(max(now + _SPACING - self._clock(), 0.005))

    def _request(self, teller: _Teller, now: float) -> GrantRequest | None:
        """What to tell a controller now; None: nothing, until something has changed."""
        teller.released = {grant: end for grant, end in teller.released.items() if end > now}
        held = self.holds.current(now)
        has = {address for address, _ in held}
        gone = {address for address, _ in teller.released}
        wanted = [each for each in self._duty_addresses() if each not in has | gone]
        if not (held or wanted or teller.released or teller.knows):
            return None
        conflicts = tuple(self._answers.conflicts(now).items())[:MAX_CONFLICTS]
        return GrantRequest(tuple(held), tuple(wanted), tuple(teller.released), conflicts)

    async def _tell(self, teller: _Teller, request: GrantRequest, sent: float) -> bool:
        """Whether the controller knows of such requests, or gives no answer."""
        teller.knows = True
        try:
            async with asyncio.timeout(_PATIENCE):
                answer: Granted | None = await teller.api.ask(
                    "POST",
                    paths.path_for(paths.GRANTS, self._node),
                    answers={200: _granted, **dict.fromkeys((404, 405), lambda _: None)},
                    timeout=_PATIENCE,
                    data=encode(request),
                )
        except (ControllerError, TimeoutError) as error:
            reason = str(error) or f"no answer in {_PATIENCE:g} s"
            if reason != teller.problem:
                log.warning("addresses not renewed", controller=teller.api.url, reason=reason)
            teller.problem = reason
            if _is_nobody_there(error):
                self.holds.refused(teller.api, sent=sent, now=self._clock())
                await self._hold_gate(self.holds.held)
            return True
        teller.problem = ""
        if answer is None:
            return False
        teller.knows = bool(request.held or answer.granted)
        for grant in request.released:
            teller.released.pop(grant, None)
        new = self.holds.answered(
            teller.api, answer, set(request.wanted), sent=sent, now=self._clock()
        )
        await self._hold_gate(self.holds.held)
        if new:
            log.info("addresses of this node", new=_texts(new), held=len(self.holds.held))
            self._answers.begin(new)
            self._wake()
        return True

    def _note_ended(self, now: float) -> None:
        if ended := self.holds.forget_ended(now):
            log.warning("addresses lost: no controller renewed them", addresses=_texts(ended))
            self._answers.refresh()

    # --- the gate ---

    async def _use_gate(self, gated: Iterable[IPv4Address]) -> None:
        try:
            await self._gate.use(frozenset(gated))
        except NodeFault as error:
            self._note_gate(str(error))
        else:
            self._gate_problem = ""
            self._on_gated(self._gate.gated)

    async def _hold_gate(self, addresses: Iterable[IPv4Address]) -> None:
        now = self._clock()
        left = {each: self.holds.held[each].until - now for each in addresses}
        try:
            await self._gate.hold(left)
            # If this process was stopped between the two clocks, the kernel counts from too late.
            ended = [each for each in left if not self.holds.has(each, self._clock())]
            await self._gate.let_go(ended)
        except NodeFault as error:
            self._note_gate(str(error))

    def _note_gate(self, problem: str) -> None:
        if problem != self._gate_problem:
            log.warning("egress addresses are not gated", reason=problem)
        self._gate_problem = problem

    # --- the end ---

    async def _leave(self) -> None:
        """Give everything back at once, so that nobody waits for it."""
        given = self.holds.current(self._clock())
        for address, _ in given:
            self.holds.give_up(address)
        if not given:
            return
        with suppress(NodeFault):
            await self._gate.let_go([address for address, _ in given])
        request = encode(GrantRequest(released=tuple(given), leaves=True))
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_WORDS):
                await asyncio.gather(*(self._say_last(each, request) for each in self._tellers))

    async def _say_last(self, controller: ControllerApi, request: bytes) -> None:
        with suppress(ControllerError):
            await controller.ask(
                "POST",
                paths.path_for(paths.GRANTS, self._node),
                answers=dict.fromkeys((200, 404, 405), bytes),
                timeout=_LAST_WORDS,
                data=request,
            )


async def _ask_duties(controller: ControllerApi, after: str) -> AddressDuties | str:
    """One request; empty: nothing has changed. Raises `ControllerError`."""

    def read(body: bytes) -> AddressDuties:
        try:
            found = decode_duties(body)
        except msgspec.MsgspecError as error:
            raise ValueError(f"the controller's answer cannot be read: {error}") from error
        if found.node != controller.node:
            raise ValueError(f"the controller answered for Node {found.node}")
        return found

    found: AddressDuties | str = await controller.ask(
        "GET",
        paths.path_for(paths.GRANTS, controller.node),
        answers={200: read, 304: lambda _: "", **dict.fromkeys((404, 405), lambda _: "unknown")},
        timeout=_WAIT + _SLOW,
        params={paths.AFTER: after, paths.WAIT: str(_WAIT)},
    )
    return found


def _is_nobody_there(error: BaseException) -> bool:
    """Whether the connection was refused. A DNS name may stand for several hosts."""
    cause = error.__cause__
    if not isinstance(cause, aiohttp.ClientConnectorError):
        return False
    try:
        IPv4Address(cause.host)
    except ValueError:
        return False
    return cause.os_error.errno == errno.ECONNREFUSED


def _granted(body: bytes) -> Granted:
    try:
        return decode_granted(body)
    except msgspec.MsgspecError as error:
        raise ValueError(f"the controller's answer cannot be read: {error}") from error


def _texts(addresses: Iterable[IPv4Address]) -> list[str]:
    """For a line of the log."""
    return [str(each) for each in addresses][:10]
