"""Switches that are none: for load, where real ones are too many, and for ill-behaved ones.

They speak OpenFlow 1.5 as far as the controller asks, acknowledge everything, and keep of a flow
what a dump tells of it: table, priority, cookie.
"""

import asyncio
import struct
from ipaddress import IPv4Address

from flows import names
from flows.features.state import TABLE
from openflow.messages import HEADER, Type

_FLOW_MOD = struct.Struct("!QQBBHHHIIIHH")
_ADD, _DELETE, _DELETE_STRICT = 0, 3, 4
_FLOW_DESC = struct.Struct("!HxxBxHHHHHQ")
_REPLY = struct.Struct("!HHxxxx")


class Peer(asyncio.Protocol):
    """One switch, without any packet."""

    def __init__(self, number: int, pods: int) -> None:
        name = node_name(number)
        self.flows: dict[int, tuple[int, int]] = {}
        self.dpid = names.datapath_id(name)
        self.ports = b"".join(port(number, pod) for pod in range(pods))
        self.transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._bundle: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._received.clear()
        transport.write(message(Type.HELLO, struct.pack("!HHI", 1, 8, 1 << 6)))

    def data_received(self, data: bytes) -> None:
        self._received += data
        at = 0
        while len(self._received) - at >= HEADER.size:
            _, kind, length, xid = HEADER.unpack_from(self._received, at)
            if len(self._received) - at < length:
                break
            body = bytes(self._received[at + HEADER.size : at + length])
            at += length
            if answer := self.answer(kind, xid, body):
                assert self.transport
                self.transport.write(answer)
        del self._received[:at]

    def answer(self, kind: int, xid: int, body: bytes) -> bytes:  # noqa: PLR0911 - one a message
        match kind:
            case Type.ECHO_REQUEST:
                return message(Type.ECHO_REPLY, body, xid)
            case Type.FEATURES_REQUEST:
                features = struct.pack("!QIBBxxII", self.dpid, 0, 254, 0, 0x24F, 0)
                return message(Type.FEATURES_REPLY, features, xid)
            case Type.MULTIPART_REQUEST:
                (asked,) = struct.unpack_from("!H", body)
                return b"".join(multipart(asked, xid, self.described(asked, body[8:])))
            case 14:  # FLOW_MOD
                self.change(body)
            case 20:  # BARRIER_REQUEST
                return message(Type.BARRIER_REPLY, b"", xid)
            case Type.BUNDLE_CONTROL:
                return self.bundle(xid, body)
            case Type.ROLE_REQUEST:
                return message(Type.ROLE_REPLY, body, xid)
            case 34:  # BUNDLE_ADD_MESSAGE, with the whole of a FLOW_MOD behind its own 8 bytes
                self._bundle.append(body[8 + HEADER.size :])
        return b""

    def bundle(self, xid: int, body: bytes) -> bytes:
        bundle, kind, flags = struct.unpack_from("!IHH", body)
        if kind == 4:  # COMMIT_REQUEST
            for each in self._bundle:
                self.change(each)
        if kind in {0, 4}:
            self._bundle.clear()
        return message(Type.BUNDLE_CONTROL, struct.pack("!IHH", bundle, kind + 1, flags), xid)

    def change(self, flow_mod: bytes) -> None:
        cookie, _, table, command, _, _, priority, *_ = _FLOW_MOD.unpack_from(flow_mod)
        if command == _DELETE:
            self.flows.pop(cookie, None)
            return
        if table == TABLE or command == _DELETE_STRICT:
            # Seals are told apart by priority alone, and are all that is deleted so.
            self.flows = {c: of for c, of in self.flows.items() if of != (table, priority)}
        if command == _ADD:
            self.flows[cookie] = (table, priority)

    def described(self, asked: int, body: bytes) -> list[bytes]:
        if asked == 13:  # PORT_DESC
            return [self.ports]
        if asked != 1:  # FLOW_DESC
            return [b""]
        entries = [
            # An empty match, no statistics, no instructions.
            _FLOW_DESC.pack(40, table, priority, 0, 0, 0, 0, cookie)
            + struct.pack("!HHxxxxHHxxxx", 1, 4, 0, 4)
            for cookie, (table, priority) in self.flows.items()
            if body[0] in {table, 0xFF}
        ]
        return [b"".join(entries[at : at + 1000]) for at in range(0, len(entries), 1000)] or [b""]


def node_name(number: int) -> str:
    return f"node{number}"


def pod_cidr(number: int) -> str:
    """A /24 of 10.0.0.0/8."""
    return f"10.{number >> 8}.{number & 255}.0/24"


def port(number: int, pod: int) -> bytes:
    """One struct ofp_port of a pod that is node{number}'s."""
    address = IPv4Address(pod_cidr(number).partition("/")[0]) + 2 + pod
    name = names.port_name("default", f"p{number}-{pod}", f"u{number}-{pod}", "eth0", "sandbox")
    mac = bytes.fromhex(names.mac_of(address).replace(":", ""))
    return struct.pack(
        "!IHxx6sxx16sII", 16 + pod, 72, mac, name.encode(), 0, 0
    ) + struct.pack("!HHIIIIIII", 0, 32, 0, 0, 0, 0, 0, 0, 0)  # fmt: skip


def message(kind: int, body: bytes, xid: int = 0) -> bytes:
    return HEADER.pack(6, kind, HEADER.size + len(body), xid) + body


def multipart(kind: int, xid: int, parts: list[bytes]) -> list[bytes]:
    return [
        message(Type.MULTIPART_REPLY, _REPLY.pack(kind, number < len(parts)) + part, xid)
        for number, part in enumerate(parts, 1)
    ]
