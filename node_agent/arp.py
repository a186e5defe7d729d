"""ARP on one interface (RFC 826, RFC 5227), for addresses that no interface of the host has."""

import ctypes
import errno
import socket
import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

import structlog

ETHERTYPE: Final = 0x0806
REQUEST, REPLY = 1, 2
BROADCAST: Final = b"\xff" * 6
_NOBODY: Final = bytes(6)
_FRAME: Final = struct.Struct("!6s6sHHHBBH6s4s6s4s")
"""Ethernet header and ARP packet."""
_MOST_FILTERED: Final = 1_000
"""Addresses that the kernel's filter compares; a filter has at most 4,096 instructions. Of more
addresses, the agent looks at every request on the link."""
_RECEIVE_BUFFER: Final = 256 << 10
_SO_ATTACH_FILTER: Final = 26
# Of linux/bpf_common.h.
_LOAD_WORD, _LOAD_HALF, _IF_EQUAL, _RETURN = 0x20, 0x28, 0x15, 0x06
_OPERATION, _SENDER, _TARGET = 20, 28, 38
"""Where they are in a frame."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Arp:
    """What of a packet matters."""

    operation: int
    sender: IPv4Address
    sender_mac: bytes
    target: IPv4Address

    @property
    def is_probe(self) -> bool:
        """Whether somebody asks who has an address, before taking it."""
        return self.operation == REQUEST and not int(self.sender)


def parsed(frame: bytes) -> Arp | None:
    """What a frame says; None: it is no ARP for IPv4 over Ethernet."""
    if len(frame) < _FRAME.size:
        return None
    _, _, kind, hardware, protocol, hardware_length, length, operation, mac, sender, _, target = (
        _FRAME.unpack_from(frame)
    )
    if (kind, hardware, protocol, hardware_length, length) != (ETHERTYPE, 1, 0x0800, 6, 4):
        return None
    if operation not in (REQUEST, REPLY):
        return None
    return Arp(operation, IPv4Address(sender), mac, IPv4Address(target))


def reply(to: Arp, mac: bytes) -> bytes:
    """The answer to a request: the address that it asks for is at `mac`."""
    return _frame(to.sender_mac, mac, REPLY, to.target, to.sender_mac, to.sender)


def announcements(address: IPv4Address, mac: bytes) -> tuple[bytes, bytes]:
    """Tell everybody on the link where the address is; some believe one form, some the other."""
    return (
        _frame(BROADCAST, mac, REQUEST, address, _NOBODY, address),
        _frame(BROADCAST, mac, REPLY, address, BROADCAST, address),
    )


def probe(address: IPv4Address, mac: bytes) -> bytes:
    """Ask whether another host has the address."""
    return _frame(BROADCAST, mac, REQUEST, IPv4Address(0), _NOBODY, address)


def text_of(mac: bytes) -> str:
    """As people write it."""
    return mac.hex(":")


def _frame(
    to: bytes,
    mac: bytes,
    operation: int,
    sender: IPv4Address,
    target_mac: bytes,
    target: IPv4Address,
) -> bytes:
    return _FRAME.pack(
        to, mac, ETHERTYPE, 1, 0x0800, 6, 4, operation, mac, sender.packed, target_mac,
        target.packed,
    )  # fmt: skip


def packet_filter(addresses: Collection[IPv4Address]) -> bytes:
    """A classic BPF program that passes ARP from these addresses, and requests for them."""
    if not addresses:
        return _instruction(_RETURN, 0)
    accept = _instruction(_RETURN, 0xFFFF)
    if len(addresses) > _MOST_FILTERED:
        return b"".join(
            (
                _instruction(_LOAD_HALF, _OPERATION),
                _instruction(_IF_EQUAL, REQUEST, 0, 1),
                accept,
                _instruction(_RETURN, 0),
            )
        )
    equal = b"".join(_instruction(_IF_EQUAL, int(each), 0, 1) + accept for each in addresses)
    return b"".join(
        (
            _instruction(_LOAD_WORD, _SENDER),
            equal,
            _instruction(_LOAD_HALF, _OPERATION),
            _instruction(_IF_EQUAL, REQUEST, 1, 0),
            _instruction(_RETURN, 0),
            _instruction(_LOAD_WORD, _TARGET),
            equal,
            _instruction(_RETURN, 0),
        )
    )


def _instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    # A load beyond the end of a frame rejects it.
    return struct.pack("=HBBI", code, if_true, if_false, value)


class ArpSocket:
    """A packet socket on one interface, which gets what `packet_filter` lets through."""

    def __init__(self, interface: str) -> None:
        """Raises `OSError`."""
        self.interface = interface
        self._socket = socket.socket(
            # Protocol 0: nothing arrives before the filter is there, and the interface is chosen.
            socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, 0,
        )  # fmt: skip
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER)
            self.listen_for(())
            self._socket.bind((interface, ETHERTYPE))
        except OSError:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """For `select` and the like."""
        return self._socket.fileno()

    def close(self) -> None:
        """Give the socket back."""
        self._socket.close()

    @property
    def mac(self) -> bytes:
        """Of the interface, as it is now. Raises `OSError` if the interface is gone."""
        found: bytes = self._socket.getsockname()[4]
        if len(found) != 6:
            raise OSError(errno.ENODEV, "no Ethernet interface", self.interface)
        return found

    def listen_for(self, addresses: Collection[IPv4Address]) -> None:
        """Have the kernel drop everything else. Raises `OSError`."""
        program = packet_filter(addresses)
        kept = ctypes.create_string_buffer(program, len(program))
        # sock_fprog of linux/filter.h: the kernel copies what it points to.
        self._socket.setsockopt(
            socket.SOL_SOCKET,
            _SO_ATTACH_FILTER,
            struct.pack("@HP", len(program) // 8, ctypes.addressof(kept)),
        )

    def received(self, most: int) -> Iterator[Arp]:
        """At most so many packets that wait. Raises `OSError`."""
        for _ in range(most):
            try:
                frame, (_, _, kind, *_) = self._socket.recvfrom(_FRAME.size)
            except BlockingIOError:
                return
            if kind != socket.PACKET_OUTGOING and (found := parsed(frame)) is not None:
                yield found

    def send(self, frame: bytes) -> bool:
        """Whether it could be sent. A full queue loses it, as a link does."""
        try:
            self._socket.send(frame)
        except OSError as error:
            if error.errno not in {errno.ENOBUFS, errno.EAGAIN, errno.ENETDOWN}:
                log.warning("ARP not sent", interface=self.interface, reason=error.strerror)
            return False
        return True


class AllowedRate:
    """So many a second, and so many at once; the clock is an argument."""

    def __init__(self, per_second: float, burst: int) -> None:
        self._per_second, self._burst = per_second, float(burst)
        self._left, self._at = float(burst), 0.0

    def take(self, now: float, wanted: int) -> int:
        """How many of these are allowed now."""
        self._left = min(self._burst, self._left + max(now - self._at, 0.0) * self._per_second)
        self._at = now
        allowed = min(wanted, int(self._left))
        self._left -= allowed
        return allowed
