"""Answers ARP for the addresses that this node has at the moment, and announces them."""

import asyncio
import heapq
import random
import socket
from collections import OrderedDict
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address
from itertools import count
from pathlib import Path
from typing import Final, NoReturn

import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from node_agent import arp
from node_agent.address_holds import Holds
from node_agent.host import address_of
from wire.documents import NodeConfig

ANNOUNCED_AT: Final = (0.0, 0.1, 0.4, 1.0, 2.5)
"""Seconds after the node has got an address, when it tells the link: some packets may be lost."""
PROBED_EVERY: Final = 30.0
"""Seconds between two looks whether another host has one of the addresses."""
CONFLICT: Final = 75.0
"""Seconds for which a conflict that was seen is told."""
_MOST_CONFLICTS: Final = 256
RATE: Final = 1_000.0
"""Packets a second that are looked at; what comes beyond that, the kernel drops."""
_BURST: Final = 256
_AT_ONCE: Final = 64
"""Packets in one turn of the event loop."""
_PAUSE: Final = 0.05
"""Seconds without a look, when packets come faster."""
_SENT_AT_ONCE: Final = 64
_SENDING_PAUSE: Final = 0.05
_LOOK: Final = 5.0
"""Seconds between two looks at which interface is the uplink."""
_SOON: Final = 0.5
"""The same while there is none."""

log = structlog.get_logger()


class ArpAnswers:
    """On the interface that has the node's own address."""

    def __init__(
        self,
        netlink: AsyncIPRoute,
        config: Callable[[], NodeConfig | None],
        holds: Holds,
        clock: Callable[[], float],
        net: Path = Path("/proc/sys/net"),
    ) -> None:
        """`net`: where sysctls are."""
        self.problem = ""
        """Why it cannot answer; empty: it can."""
        self.announced: set[IPv4Address] = set()
        """The addresses for which it answers, whenever the node has them."""
        self.answered = 0
        """Requests that were answered."""
        self._netlink = netlink
        self._config = config
        self._holds = holds
        self._clock = clock
        self._net = net
        self._socket: arp.ArpSocket | None = None
        self._reading = False
        self._rate = arp.AllowedRate(RATE, _BURST)
        self._filtered: frozenset[IPv4Address] | None = None
        self._due: list[tuple[float, int, IPv4Address, bool]] = []
        """A heap: when to announce (or to probe) which address."""
        self._probed: set[IPv4Address] = set()
        """Addresses that have a probe in `_due`: one each, however often the interface comes back.
        """
        self._serial = count()
        self._has_due = asyncio.Event()
        self._conflicts: OrderedDict[IPv4Address, tuple[bytes, float]] = OrderedDict()

    def conflicts(self, now: float) -> dict[IPv4Address, str]:
        """The MACs of other hosts that have said of late that an address of this node is theirs."""
        return {
            address: arp.text_of(mac)
            for address, (mac, until) in self._conflicts.items()
            if until > now and self._holds.has(address, now)
        }

    def begin(self, addresses: Iterable[IPv4Address]) -> None:
        """The node has these addresses from now on."""
        self.refresh()
        now = self._clock()
        for address in addresses:
            if address in self.announced:
                for seconds in ANNOUNCED_AT:
                    self._put(now + seconds, address)
                if address not in self._probed:
                    self._put(now + random.uniform(1, 3), address, probes=True)  # noqa: S311
        self._has_due.set()

    def refresh(self) -> None:
        """What the node has may have changed: have the kernel pass ARP for these addresses only."""
        wanted = frozenset(self._holds.held.keys() & self.announced)
        if self._socket is None or wanted == self._filtered:
            return
        try:
            self._socket.listen_for(wanted)
        except OSError as error:
            self._fail(error)
        else:
            self._filtered = wanted

    async def run(self) -> NoReturn:
        """Answer and announce. Never ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._announce())
                while True:
                    await self._follow_uplink()
                    await asyncio.sleep(_SOON if self._socket is None else _LOOK)
        finally:
            self._close()

    # --- the interface ---

    async def _follow_uplink(self) -> None:
        config = self._config()
        if config is None:
            return
        try:
            name = await self._uplink(config.address)
            if self._socket is None or self._socket.interface != name:
                self._close()
                self._socket = arp.ArpSocket(name)
                self._filtered = None
                log.info("answering ARP", interface=name)
                self._listen()
                self.refresh()
                # Whoever asked meanwhile has got no answer.
                self.begin(self._holds.held)
            self._socket.mac  # noqa: B018  raises if the interface was made anew
            self.problem = self._other_answers(name)
        except (NetlinkError, OSError) as error:
            self._fail(error)

    def _other_answers(self, interface: str) -> str:
        """Why the kernel itself may answer for addresses that this node does not have."""
        names = (f"ipv4/conf/{each}/proxy_arp" for each in ("all", interface))
        found = [name for name in names if self._is_set(name)]
        if not found:
            return ""
        return (
            f"sysctl net/{found[0]} is set: the host answers ARP for addresses of Services that"
            " other nodes have"
        )

    def _is_set(self, name: str) -> bool:
        try:
            return (self._net / name).read_text().strip() not in {"", "0"}
        except OSError:
            return False

    async def _uplink(self, address: IPv4Address) -> str:
        found = [each async for each in await self._netlink.get_addr(family=socket.AF_INET)]
        index = next((each["index"] for each in found if address_of(each) == address), None)
        if index is None:
            raise OSError(f"the node's address {address} is on no interface")
        return socket.if_indextoname(index)

    def _fail(self, error: Exception) -> None:
        problem = f"ARP for addresses of Services is not answered: {error}"
        if problem != self.problem:
            log.warning("ARP is not answered", reason=str(error))
        self.problem = problem
        self._close()

    def _close(self) -> None:
        if self._socket is not None:
            self._stop_listening()
            self._socket.close()
            self._socket = None

    # --- answers ---

    def _listen(self) -> None:
        if self._socket is not None and not self._reading:
            asyncio.get_running_loop().add_reader(self._socket.fileno(), self._read)
            self._reading = True

    def _stop_listening(self) -> None:
        if self._socket is not None and self._reading:
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._reading = False

    def _read(self) -> None:
        assert self._socket is not None  # noqa: S101  it is read while it is open
        allowed = self._rate.take(self._clock(), _AT_ONCE)
        if not allowed:
            self._stop_listening()
            asyncio.get_running_loop().call_later(_PAUSE, self._listen)
            return
        try:
            mac = self._socket.mac
            for packet in self._socket.received(allowed):
                self._act_on(self._socket, packet, mac)
        except OSError as error:
            self._fail(error)

    def _act_on(self, opened: arp.ArpSocket, packet: arp.Arp, mac: bytes) -> None:
        if packet.sender_mac == mac:
            return
        now = self._clock()
        if packet.sender in self.announced and self._holds.has(packet.sender, now):
            self._note_conflict(packet.sender, packet.sender_mac, now)
        if packet.operation != arp.REQUEST or packet.target not in self.announced:
            return
        answer = arp.reply(packet, mac)
        # The last thing before it is sent: this process may have been stopped a moment ago.
        if self._holds.has(packet.target, self._clock()):
            opened.send(answer)
            self.answered += 1

    def _note_conflict(self, address: IPv4Address, mac: bytes, now: float) -> None:
        before = self._conflicts.pop(address, None)
        if before is None or before[0] != mac:
            log.warning(
                "another host on the link has an address of this node", address=str(address),
                mac=arp.text_of(mac), limit_by=str(address),
            )  # fmt: skip
        self._conflicts[address] = mac, now + CONFLICT
        if len(self._conflicts) > _MOST_CONFLICTS:
            self._conflicts.popitem(last=False)

    # --- announcements ---

    def _put(self, at: float, address: IPv4Address, *, probes: bool = False) -> None:
        heapq.heappush(self._due, (at, next(self._serial), address, probes))
        if probes:
            self._probed.add(address)

    async def _announce(self) -> NoReturn:
        while True:
            self._has_due.clear()
            now, sent = self._clock(), 0
            while self._due and self._due[0][0] <= now and sent < _SENT_AT_ONCE:
                _, _, address, probes = heapq.heappop(self._due)
                sent += self._say(address, probes=probes)
            pause = _SENDING_PAUSE
            if sent < _SENT_AT_ONCE:
                pause = max(self._due[0][0] - now, 0.001) if self._due else 3600.0
            try:
                async with asyncio.timeout(pause):
                    await self._has_due.wait()
            except TimeoutError:
                pass

    def _say(self, address: IPv4Address, *, probes: bool) -> int:
        """The number of packets that were sent."""
        opened, now = self._socket, self._clock()
        if probes:
            self._probed.discard(address)
        if address not in self.announced or not self._holds.has(address, now):
            return 0
        if probes:
            self._put(now + PROBED_EVERY * random.uniform(0.8, 1.2), address, probes=True)  # noqa: S311
        if opened is None:
            return 0
        try:
            mac = opened.mac
        except OSError as error:
            self._fail(error)
            return 0
        frames = (arp.probe(address, mac),) if probes else arp.announcements(address, mac)
        if self._holds.has(address, self._clock()):
            for frame in frames:
                opened.send(frame)
        return len(frames)
