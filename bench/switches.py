"""Any number of simulated switches in one process: they dial, acknowledge, and remember.

They speak OpenFlow 1.5 as Open vSwitch does to the controller, dial as often as it does, and know
by cookie which flows they hold. What they cannot answer truthfully they refuse. Independent of
`openflow`: nothing here could share its mistakes.

    python -m bench.switches HOST:PORT SWITCHES < orders

The file SWITCHES is JSON, a list of {"dpid": N, "max_backoff": S, "ports": [[ofport, NAME, MAC],
...], "expected": [COOKIE, ...]}. Each order is a line of JSON, {"expected": [COOKIE, ...]}, for
every switch. As soon as all switches hold all that was expected so far, one line says so:
{"at": MONOTONIC SECONDS, "flows": IN ALL, "connections": MADE SO FAR}. Dialling begins with the
first order, and ends with the orders.
"""

import asyncio
import contextlib
import json
import struct
import sys
import time
from collections.abc import Callable, Iterable
from enum import IntEnum
from pathlib import Path
from typing import Any, Final

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


# enum ofp_multipart_type
FLOW_DESC, GROUP_DESC, METER_DESC, PORT_DESC = 1, 7, 10, 13
# enum ofp_bundle_ctrl_type: a reply is its request's plus one.
OPEN, CLOSE, COMMIT, DISCARD = 0, 2, 4, 6
# enum ofp_meter_mod_command
METER_DELETE = 2
# enum ofp_flow_mod_command, and where struct ofp_flow_mod has cookie and command
ADD, DELETE = 0, 3
FLOW_COOKIE: Final = struct.Struct("!8xQ8xxB")

_known: dict[int, int] = {}
"""One object for each cookie, however many switches hold it."""


class SimulatedSwitch(asyncio.Protocol):
    """One switch, across its connections."""

    def __init__(
        self, given: dict[str, Any], on_change: Callable[["SimulatedSwitch"], None]
    ) -> None:
        self.dpid: int = given["dpid"]
        self.max_backoff: float = given["max_backoff"]
        self.ports = [(number, name, mac) for number, name, mac in given["ports"]]
        self.flows: set[int] = set()
        self.meters: set[int] = set()
        self.missing: set[int] = set()
        self.expect(given["expected"])
        self.closed = asyncio.Event()
        self.was_ready = False
        self._on_change = on_change
        self._rest = b""
        self._bundle: list[tuple[int, int]] | None = None

    def expect(self, cookies: Iterable[int]) -> None:
        """Wait for these."""
        self.missing |= {_known.setdefault(cookie, cookie) for cookie in cookies} - self.flows

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet; the version is the header's (7.5.1)."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - asyncio's own contract
        self._transport = transport
        self._rest, self._bundle, self.was_ready = b"", None, False
        self.closed.clear()
        self._send(MessageType.HELLO, 0)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Flows stay, as with `fail_mode=secure`."""
        self.closed.set()

    def data_received(self, data: bytes) -> None:
        """Walk the messages; the most frequent kind by far is not worth a call."""
        data = self._rest + data if self._rest else data
        at, end = 0, len(data)
        header, flow = HEADER.unpack_from, FLOW_COOKIE.unpack_from
        bundle_add, flow_mod = int(MessageType.BUNDLE_ADD_MESSAGE), int(MessageType.FLOW_MOD)
        while end - at >= 8:
            _, kind, length, xid = header(data, at)
            if end - at < length:
                break
            if kind == bundle_add and self._bundle is not None and data[at + 17] == flow_mod:
                self._bundle.append(flow(data, at + 16))
            else:
                self._message(kind, xid, data[at + 8 : at + length])
            at += length
        self._rest = data[at:]

    def _message(self, kind: int, xid: int, body: bytes) -> None:
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
                command, _, meter = struct.unpack_from("!HHI", body)
                (self.meters.discard if command == METER_DELETE else self.meters.add)(meter)
            case MessageType.BUNDLE_CONTROL:
                self._bundle_control(xid, body)
            case _:
                self._refuse(xid, 1, 1)  # OFPET_BAD_REQUEST, OFPBRC_BAD_TYPE

    def _bundle_control(self, xid: int, body: bytes) -> None:
        bundle, kind, flags = struct.unpack_from("!IHH", body)
        if kind == OPEN:
            self._bundle = []
        elif kind == DISCARD:
            self._bundle = None
        elif kind == COMMIT:
            self._commit(self._bundle or [])
            self._bundle = None
        self._send(MessageType.BUNDLE_CONTROL, xid, struct.pack("!IHH", bundle, kind + 1, flags))
        if kind == COMMIT:
            self._on_change(self)

    def _commit(self, changes: list[tuple[int, int]]) -> None:
        for cookie, command in changes:
            if command == ADD:
                self.flows.add(_known.setdefault(cookie, cookie))
            elif command == DELETE:
                self.flows.discard(cookie)
        if self.missing:
            self.missing -= self.flows

    def _multipart(self, xid: int, body: bytes) -> None:
        (kind,) = struct.unpack_from("!H", body)
        if kind == PORT_DESC:
            self._send(
                MessageType.MULTIPART_REPLY,
                xid,
                body[:2] + bytes(6) + b"".join(map(_port, self.ports)),
            )
            self.was_ready = True
        elif (
            kind == GROUP_DESC  # there are no Services here
            or (kind == FLOW_DESC and not self.flows)
            or (kind == METER_DESC and not self.meters)
        ):
            self._send(MessageType.MULTIPART_REPLY, xid, body[:2] + bytes(6))
        else:
            # Their cookies are known here, but not their matches.
            self._refuse(xid, 1, 2)  # OFPET_BAD_REQUEST, OFPBRC_BAD_MULTIPART

    def _refuse(self, xid: int, kind: int, code: int) -> None:
        self._send(MessageType.ERROR, xid, struct.pack("!HH", kind, code))

    def _send(self, kind: int, xid: int, body: bytes = b"") -> None:
        self._transport.write(HEADER.pack(VERSION, kind, 8 + len(body), xid) + body)


def _port(given: tuple[int, str, str]) -> bytes:
    """Struct ofp_port with its Ethernet property, for a link that is up (7.2.1)."""
    number, name, mac = given
    fixed = struct.pack("!IH2x6s2x16sII", number, 72, bytes.fromhex(mac.replace(":", "")),
                        name.encode(), 0, 4)  # fmt: skip
    return fixed + struct.pack("!HH4xIIIIII", 0, 32, 0x840, 0, 0, 0, 10_000_000, 0)


class SimulatedSwitches:
    """All switches, and who is still waited for."""

    def __init__(self, host: str, port: int, given: list[dict[str, Any]]) -> None:
        self._host, self._port = host, port
        self._connections = 0
        self._waiting: set[SimulatedSwitch] = set()
        self.switches = [SimulatedSwitch(each, self._changed) for each in given]

    def expect(self, cookies: list[int]) -> None:
        """Say when every switch holds these as well."""
        for switch in self.switches:
            switch.expect(cookies)
        self._waiting = {switch for switch in self.switches if switch.missing}
        self._say()

    def _changed(self, switch: SimulatedSwitch) -> None:
        if switch in self._waiting and not switch.missing:
            self._waiting.discard(switch)
            self._say()

    def _say(self) -> None:
        if not self._waiting:
            flows = sum(len(each.flows) for each in self.switches)
            said = {"at": time.monotonic(), "flows": flows, "connections": self._connections}
            sys.stdout.write(json.dumps(said) + "\n")
            sys.stdout.flush()

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


async def _run(host: str, port: int, given: list[dict[str, Any]]) -> None:
    fleet = SimulatedSwitches(host, port, given)
    orders = asyncio.StreamReader(limit=1 << 24)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    dialling: list[asyncio.Task[None]] = []
    while line := await orders.readline():
        fleet.expect(json.loads(line)["expected"])
        if not dialling:
            dialling = [asyncio.create_task(fleet.dial(switch)) for switch in fleet.switches]
    for task in dialling:
        task.cancel()


if __name__ == "__main__":
    address, _, number = sys.argv[1].rpartition(":")
    asyncio.run(_run(address, int(number), json.loads(Path(sys.argv[2]).read_text())))
