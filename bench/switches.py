"""Any number of simulated switches in one process: they dial, acknowledge, and remember.

They speak OpenFlow 1.5 as Open vSwitch does to the controller, dial as often as it does, and know
by cookie which flows they hold (`bench.held`). What they cannot answer truthfully they refuse.
Independent of `openflow`: nothing here could share its mistakes.

    python -m bench.switches HOST:PORT SWITCHES < orders

The file SWITCHES is JSON, a list of {"dpid": N, "max_backoff": S, "ports": [[ofport, NAME, MAC],
...], "expected": [COOKIE, ...], "least": NUMBER OF FLOWS}; the last two may be empty and 0.
Dialling begins with the first order, and ends with the orders. Each order is a line of JSON:

- {"expected": [COOKIE, ...], "times": BOOL}: for every switch. As soon as all switches hold all
  that was expected so far, one line says so: {"at": MONOTONIC SECONDS, "flows": IN ALL,
  "connections": MADE SO FAR, "times": [...]}. `times`, if asked for, says when each held it.
- {"ports": [{"dpid": N, "reason": R, "port": [ofport, NAME, MAC], "cookies": [COOKIE, ...]}, ...]}:
  a port comes (R: 0) or goes (1). The switch says so, and is expected to hold these flows then.
- {"awaited": true}: one line with what came of these ports, {"waiting": N, "took": [SECONDS, ...]}.
- {"drop": true}: cut all connections at once.
"""

import asyncio
import contextlib
import json
import resource
import struct
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

from bench.held import Bundle, Bundles, Flows

VERSION: Final = 6
HEADER: Final = struct.Struct("!BBHI")
FIRST_BACKOFF: Final = 1.0
"""Seconds; doubled up to the switch's own `max_backoff` (ovs-vswitchd.conf.db(5))."""


class MessageType(IntEnum):
    """enum ofp_type (OpenFlow 1.5.1, 7.1.1), as far as our controller may speak it."""

    HELLO = 0
    ERROR = 1
    ECHO_REQUEST = 2
    ECHO_REPLY = 3
    FEATURES_REQUEST = 5
    FEATURES_REPLY = 6
    SET_CONFIG = 9
    PORT_STATUS = 12
    FLOW_MOD = 14
    MULTIPART_REQUEST = 18
    MULTIPART_REPLY = 19
    BARRIER_REQUEST = 20
    BARRIER_REPLY = 21
    ROLE_REQUEST = 24
    ROLE_REPLY = 25
    METER_MOD = 29
    BUNDLE_CONTROL = 33
    BUNDLE_ADD_MESSAGE = 34


EXPERIMENTER: Final = 4
# enum ofp_multipart_type
FLOW_DESC, GROUP_DESC, METER_DESC, PORT_DESC = 1, 7, 10, 13
# enum ofp_bundle_ctrl_type: a reply is its request's plus one.
OPEN, CLOSE, COMMIT, DISCARD = 0, 2, 4, 6
# enum ofp_meter_mod_command
METER_DELETE = 2
CONTROL: Final = struct.Struct("!IHH")
"""Struct ofp_bundle_ctrl_msg after its header."""

_RECEIVED: Final = memoryview(bytearray(1 << 20))
"""Where all connections receive: each takes what came before the next one receives."""


class SimulatedSwitch(asyncio.BufferedProtocol):
    """One switch, across its connections."""

    def __init__(
        self,
        given: dict[str, Any],
        bundles: Bundles,
        on_change: Callable[["SimulatedSwitch"], None],
    ) -> None:
        self.dpid: int = given["dpid"]
        self.max_backoff: float = given["max_backoff"]
        self.ports = {number: (name, mac) for number, name, mac in given["ports"]}
        self.flows = Flows()
        self.expected: frozenset[int] = frozenset(given["expected"])
        """By this switch alone."""
        self.least: int = given.get("least", 0)
        self.meters: dict[int, bytes] = {}
        """By id, struct ofp_meter_desc."""
        self.closed = asyncio.Event()
        self.was_ready = False
        self._bundles = bundles
        self._on_change = on_change
        self._transport: asyncio.Transport | None = None
        self._answers: list[bytes] = []
        self._begin()

    def _begin(self) -> None:
        self._rest = b""
        self._bundle: Bundle | None = None
        self._following = 0
        """How much of `_bundle.data` has come; 0: its messages are read one by one."""

    def holds(self, expected: frozenset[int]) -> bool:
        """Whether it has all that was expected, of all switches and of this one."""
        if not self.flows.holds(expected):
            return False
        if self.expected and self.flows.holds(self.expected):
            self.expected = frozenset()
        if self.least and len(self.flows) >= self.least:
            self.least = 0
        return not self.expected and not self.least

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; the version is the header's (7.5.1)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own contract
        self._transport = transport
        self._begin()
        self.was_ready = False
        self.closed.clear()
        self._send(MessageType.HELLO, 0)
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Flows stay, as with `fail_mode=secure`."""
        self._transport = None
        self.closed.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002
        """The buffer of all."""
        return _RECEIVED

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        at = self._follow(_RECEIVED[:nbytes]) if self._following else 0
        if at < nbytes:
            data = bytes(_RECEIVED[at:nbytes])
            self._read(self._rest + data if self._rest else data)
        self._flush()

    # Bundles that were seen before.

    def _follow(self, data: memoryview) -> int:
        """Compare with a known bundle; how many bytes of `data` are part of it."""
        bundle = self._bundle
        assert bundle is not None  # noqa: S101 - or nothing is followed
        length = min(len(data), len(bundle.data) - self._following)
        if not bundle.data.startswith(data[:length], self._following):
            # It is another one after all: read it from its beginning.
            self._rest = bundle.data[: self._following]
            self._bundle, self._following = None, 0
            return 0
        self._following += length
        if self._following == len(bundle.data):
            self._following = 0
            self._answers += bundle.answers
        return length

    def _recognise(self, data: bytes, at: int) -> int:
        """The number of bytes from here on that belong to a bundle that was seen before."""
        if (bundle := self._bundles.find(data, at)) is None:
            return 0
        self._bundle, self._following = bundle, 0
        rest = memoryview(data)[at:]
        length = min(len(rest), len(bundle.data))
        if not bundle.data.startswith(rest[:length]):
            self._bundle = None
            return 0
        self._following = length
        if length == len(bundle.data):
            self._following = 0
            self._answers += bundle.answers
        return length

    # Messages.

    def _read(self, data: bytes) -> None:
        """Walk the messages; the most frequent kind by far is not worth a call."""
        at, end = 0, len(data)
        header = HEADER.unpack_from
        bundle_add, control = int(MessageType.BUNDLE_ADD_MESSAGE), int(MessageType.BUNDLE_CONTROL)
        while end - at >= 8:
            _, kind, length, xid = header(data, at)
            if end - at < length:
                break
            if kind == bundle_add and self._bundle is not None:
                self._bundle.add(data, at, length)
            elif kind == control:
                if known := self._control(xid, data, at):
                    at += known
                    continue
            else:
                self._message(kind, xid, data[at + 8 : at + length])
            at += length
        self._rest = data[at:]

    def _control(self, xid: int, data: bytes, at: int) -> int:
        """A bundle's control; more than 0: so many bytes belong to a bundle that is known."""
        number, kind, flags = CONTROL.unpack_from(data, at + 8)
        if kind == OPEN:
            if known := self._recognise(data, at):
                return known
            self._bundle = Bundle()
        bundle = self._bundle
        answer = HEADER.pack(VERSION, MessageType.BUNDLE_CONTROL, 16, xid)
        answer += CONTROL.pack(number, kind + 1, flags)
        if bundle is not None and kind in (OPEN, CLOSE):
            bundle.control(data[at : at + 16], answer)
            if kind == CLOSE:
                self._bundles.remember(bundle)
        elif bundle is not None and kind == COMMIT:
            self.flows.commit(bundle)
        if kind in (COMMIT, DISCARD):
            self._bundle = None
        self._answers.append(answer)
        if kind == COMMIT:
            self._on_change(self)
        return 0

    def _message(self, kind: int, xid: int, body: bytes) -> None:  # noqa: C901 - one line each
        match kind:
            case MessageType.ERROR:
                sys.stderr.write(f"switch {self.dpid:016x}: the controller refuses {body!r}\n")
            case MessageType.HELLO | MessageType.ECHO_REPLY | MessageType.SET_CONFIG:
                pass
            case MessageType.ECHO_REQUEST:
                self._send(MessageType.ECHO_REPLY, xid, body)
            case MessageType.FEATURES_REQUEST:
                features = struct.pack("!QIBB2xII", self.dpid, 0, 254, 0, 0x4F, 0)
                self._send(MessageType.FEATURES_REPLY, xid, features)
            case MessageType.MULTIPART_REQUEST:
                self._multipart(xid, body)
            case MessageType.BARRIER_REQUEST:
                self._send(MessageType.BARRIER_REPLY, xid)
            case MessageType.ROLE_REQUEST:
                self._send(MessageType.ROLE_REPLY, xid, body)
            case MessageType.METER_MOD:
                command, flags, meter = struct.unpack_from("!HHI", body)
                if command == METER_DELETE:
                    self.meters.pop(meter, None)
                else:
                    self.meters[meter] = struct.pack("!HHI", len(body), flags, meter) + body[8:]
            case _ if kind == EXPERIMENTER:
                pass  # a conntrack flush: there are no connections here
            case _:
                self._refuse(xid, 1, 1)  # OFPET_BAD_REQUEST, OFPBRC_BAD_TYPE

    def _multipart(self, xid: int, body: bytes) -> None:
        (kind,) = struct.unpack_from("!H", body)
        table = body[8] if kind == FLOW_DESC else 0
        if kind == PORT_DESC:
            told = b"".join(_port(number, *port) for number, port in self.ports.items())
            self._send(MessageType.MULTIPART_REPLY, xid, body[:2] + bytes(6) + told)
            self.was_ready = True
        elif kind == FLOW_DESC and (found := self.flows.description(table)) is not None:
            self._send(MessageType.MULTIPART_REPLY, xid, body[:2] + bytes(6) + found)
        elif kind == METER_DESC:
            described = b"".join(self.meters.values())
            self._send(MessageType.MULTIPART_REPLY, xid, body[:2] + bytes(6) + described)
        elif kind == GROUP_DESC and self.flows.seals_alone:
            self._send(MessageType.MULTIPART_REPLY, xid, body[:2] + bytes(6))
        else:
            # Their cookies are known here, but not their matches.
            self._refuse(xid, 1, 2)  # OFPET_BAD_REQUEST, OFPBRC_BAD_MULTIPART

    def _refuse(self, xid: int, kind: int, code: int) -> None:
        self._send(MessageType.ERROR, xid, struct.pack("!HH", kind, code))

    def change_port(self, reason: int, number: int, name: str, mac: str) -> None:
        """A port comes (OFPPR_ADD) or goes (OFPPR_DELETE); tell it if there is a connection."""
        if reason:
            self.ports.pop(number, None)
        else:
            self.ports[number] = name, mac
        told = struct.pack("!B7x", reason) + _port(number, name, mac)
        self._send(MessageType.PORT_STATUS, 0, told)
        self._flush()

    def drop(self) -> None:
        """Cut the connection."""
        if self._transport is not None:
            self._transport.abort()

    def _send(self, kind: int, xid: int, body: bytes = b"") -> None:
        self._answers.append(HEADER.pack(VERSION, kind, 8 + len(body), xid) + body)

    def _flush(self) -> None:
        if self._answers:
            if self._transport is not None:
                self._transport.write(b"".join(self._answers))
            self._answers.clear()


def _port(number: int, name: str, mac: str) -> bytes:
    """Struct ofp_port with its Ethernet property, for a link that is up (7.2.1)."""
    fixed = struct.pack("!IH2x6s2x16sII", number, 72, bytes.fromhex(mac.replace(":", "")),
                        name.encode(), 0, 4)  # fmt: skip
    return fixed + struct.pack("!HH4xIIIIII", 0, 32, 0x840, 0, 0, 0, 10_000_000, 0)


class SimulatedSwitches:
    """All switches, and who is still waited for."""

    def __init__(self, host: str, port: int, given: Iterable[dict[str, Any]]) -> None:
        self._host, self._port = host, port
        self._connections = 0
        self._expected: frozenset[int] = frozenset()
        self._waiting: set[SimulatedSwitch] = set()
        self._times: list[float] | None = None
        self._awaited: dict[SimulatedSwitch, list[tuple[frozenset[int], float]]] = {}
        """By switch the cookies that it is expected to hold, and since when."""
        self._took: list[float] = []
        bundles = Bundles()
        self.switches = [SimulatedSwitch(each, bundles, self._changed) for each in given]
        self._by_dpid = {switch.dpid: switch for switch in self.switches}

    def obey(self, order: dict[str, Any]) -> None:
        """One order; see the module."""
        if (cookies := order.get("expected")) is not None:
            self._times = [] if order.get("times") else None
            self._expect(frozenset(cookies))
        for each in order.get("ports", ()):
            switch = self._by_dpid[each["dpid"]]
            if each["cookies"]:
                awaited = frozenset(each["cookies"]), time.monotonic()
                self._awaited.setdefault(switch, []).append(awaited)
            switch.change_port(each["reason"], *each["port"])
        if order.get("awaited"):
            waiting = sum(map(len, self._awaited.values()))
            _tell({"waiting": waiting, "took": self._took})
            self._took = []
        if order.get("drop"):
            for switch in self.switches:
                switch.drop()

    def _expect(self, cookies: frozenset[int]) -> None:
        # What all held before they do not lose.
        self._expected = cookies if not self._waiting else self._expected | cookies
        self._waiting = {each for each in self.switches if not each.holds(self._expected)}
        self._say()

    def _changed(self, switch: SimulatedSwitch) -> None:
        if switch in self._waiting and switch.holds(self._expected):
            self._waiting.discard(switch)
            if self._times is not None:
                self._times.append(time.monotonic())
            self._say()
        if awaited := self._awaited.get(switch):
            now = time.monotonic()
            left = [each for each in awaited if not switch.flows.holds(each[0])]
            self._took += [now - since for held, since in awaited if switch.flows.holds(held)]
            if left:
                self._awaited[switch] = left
            else:
                del self._awaited[switch]

    def _say(self) -> None:
        if not self._waiting:
            flows = sum(len(each.flows) for each in self.switches)
            said = {"at": time.monotonic(), "flows": flows, "connections": self._connections}
            _tell(said | ({} if self._times is None else {"times": self._times}))

    async def dial(self, switch: SimulatedSwitch) -> None:
        """Keep one switch connected, as ovs-vswitchd does."""
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF
        while True:
            with contextlib.suppress(OSError):
                await loop.create_connection(lambda: switch, self._host, self._port)
                self._connections += 1
                await switch.closed.wait()
                if switch.was_ready:
                    backoff = FIRST_BACKOFF
            await asyncio.sleep(backoff)
            backoff = min(2 * backoff, switch.max_backoff)


def _tell(what: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def _given(path: Path) -> Iterator[dict[str, Any]]:
    """The switches of a file."""
    yield from json.loads(path.read_text())


async def _run(host: str, port: int, given: Iterable[dict[str, Any]]) -> None:
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    fleet = SimulatedSwitches(host, port, given)
    orders = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    dialling: list[asyncio.Task[None]] = []
    while line := await orders.readline():
        fleet.obey(json.loads(line))
        if not dialling:
            dialling = [asyncio.create_task(fleet.dial(switch)) for switch in fleet.switches]
    for task in dialling:
        task.cancel()


if __name__ == "__main__":
    address, _, number = sys.argv[1].rpartition(":")
    asyncio.run(_run(address, int(number), _given(Path(sys.argv[2]))))
