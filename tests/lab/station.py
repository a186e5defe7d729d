"""A program in a pod or on a node that sends numbered first packets, and tells which ones it sees.

It is run by its path and uses the standard library alone. It sees what its network stack takes in.
It reads a JSON object in each line of its stdin, and prints the answer to it in one line:

- `{"verb": "meet", "to": [ADDRESS, ...]}`: open a connection, which lasts, to other stations.
- `{"verb": "send", "packets": [[ADDRESS, PROTOCOL, PORT, NUMBER], ...], "pause": SECONDS}`: send
  these packets, each of a new connection: TCP, UDP, SCTP, ICMP, FRAGMENTS (of a UDP datagram).
- `{"verb": "end", "word": WORD, "to": [ADDRESS, ...], "pause": SECONDS}`: send a word on the
  connections, after a pause. What was sent before it arrives before it, if at all.
- `{"verb": "collect", "words": [WORD, ...]}`: wait for these words. The numbers seen since the last
  time.
- `{"verb": "stream", "targets": [[ADDRESS, PORT, FIRST], ...], "pause": SECONDS}`: send UDP packets
  to each in turn, with numbers from its first, until the next line comes. How many each got.

A complaint is a string.
"""

import json
import os
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

PATIENCE = 10.0 * float(os.environ.get("SLUICE_PATIENCE") or 1)
"""Seconds in which an answer on a connection must come."""
MEETING_PORT = 40000
"""Of both ends of the connections between stations."""
SILENT_PORTS = range(8000, 8010)
"""UDP ports where nobody answers, so that a connection stays a new one."""
NUMBER = re.compile(rb"<(\d{1,12})>")
SOURCE_PORTS = range(10000, 40000)
FRAGMENT = 1400
"""Bytes of IP payload in the first fragment. The userspace datapath takes none below 1,200."""

_ICMP, _TCP, _UDP, _SCTP = 1, 6, 17, 132
_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_IP_PKTINFO = 8  # linux/in.h
_ECHO_REQUEST = 8
_TUNNELS = {4789, 6081}


class Station:
    """The sockets, and what was seen."""

    def __init__(self) -> None:
        self.wire = []
        for protocol in (_ICMP, _TCP, _UDP, _SCTP):
            self.wire.append(socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol))
            self.wire[-1].setblocking(False)
            self.wire[-1].setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
        self.raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        self.talk = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.talk.bind(("", MEETING_PORT))
        self.talk.setblocking(False)
        self.talk.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        self.silent = []
        for port in SILENT_PORTS:
            self.silent.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self.silent[-1].bind(("", port))
        self.seen: list[int] = []
        self.met: set[str] = set()
        self.words: set[str] = set()
        self.sources: dict[str, str] = {}
        self.ports = self.endless_ports()

    @staticmethod
    def endless_ports() -> Iterator[int]:
        """Not from the first one on: those belong to connections of an earlier station."""
        for port in count(os.getpid() * 97):
            yield SOURCE_PORTS[port % len(SOURCE_PORTS)]

    def answer(self, verb: str, **more: Any) -> object:
        return getattr(self, verb)(**more)

    def meet(self, to: list[str]) -> object:
        end = time.monotonic() + PATIENCE
        while not set(to) <= self.met:
            for address in set(to) - self.met:
                self.talk.sendto(b"hello", (address, MEETING_PORT))
            self.look(0.02)
            if time.monotonic() > end:
                return f"did not meet {sorted(set(to) - self.met)}"
        return True

    def send(self, packets: list[tuple[str, str, int, int]], pause: float) -> bool:
        for packet in packets:
            self.put(*packet)
            self.look(pause)
        return True

    def end(self, word: str, to: list[str], pause: float) -> bool:
        self.look(pause)
        for address in to:
            self.talk.sendto(f"word {word}".encode(), (address, MEETING_PORT))
        return True

    def collect(self, words: list[str]) -> object:
        end = time.monotonic() + PATIENCE
        while not set(words) <= self.words:
            self.look(0.02)
            if time.monotonic() > end:
                return f"did not hear {sorted(set(words) - self.words)}"
        self.look(0)
        seen, self.seen = self.seen, []
        return seen

    def stream(self, targets: list[tuple[str, int, int]], pause: float) -> list[int]:
        sent = [0] * len(targets)
        due = time.monotonic()
        while True:
            for index, (address, port, first) in enumerate(targets):
                if self.look(due - time.monotonic()):
                    return sent
                self.put(address, "UDP", port, first + sent[index])
                sent[index] += 1
                # A late one is not made up for: bursts are lost in the sockets of the switch.
                due = max(due + pause, time.monotonic())

    def look(self, seconds: float) -> bool:
        """Take in what comes for so long; whether there is a line to read, which ends it."""
        end = time.monotonic() + seconds
        wanted = [sys.stdin, self.talk, *self.wire]
        while True:
            left = max(0, end - time.monotonic())
            readable = select.select(wanted, [], [], left)[0]
            if self.talk in readable:
                self.read_talk()
            for wire in self.wire:
                if wire in readable:
                    self.read(wire)
            if sys.stdin in readable or not left:
                return sys.stdin in readable

    def read_talk(self) -> None:
        while True:
            try:
                data, control, _, (address, port) = self.talk.recvmsg(2048, 64)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error
                continue
            if data == b"hello":
                # From the address that it was sent to.
                self.talk.sendmsg([b"met"], control, 0, (address, port))
            elif data == b"met":
                self.met.add(address)
            else:
                self.words.add(data.decode().removeprefix("word "))

    def read(self, wire: socket.socket) -> None:
        while True:
            try:
                packet = wire.recv(65535)
            except BlockingIOError:
                return
            protocol, start = packet[9], (packet[0] & 15) * 4
            if protocol == _ICMP and packet[start] != _ECHO_REQUEST:
                continue  # an error, or an answer, has a part of the packet in it
            if protocol != _UDP or struct.unpack_from("!H", packet, start + 2)[0] not in _TUNNELS:
                self.seen += map(int, set(NUMBER.findall(packet)))

    def put(self, to: str, protocol: str, port: int, number: int) -> None:
        payload = b"<%d>" % number
        source = self.source(to)
        own = next(self.ports)
        match protocol:
            case "TCP":
                header = struct.pack("!HHIIBBHHH", own, port, 7, 0, 5 << 4, 2, 65000, 0, 0)
                checked = checksum(pseudo_header(source, to, _TCP, header + payload))
                payload = header[:16] + struct.pack("!H", checked) + header[18:] + payload
                self.write(source, to, _TCP, payload)
            case "UDP":
                self.write(source, to, _UDP, udp(own, port, payload))
            case "SCTP":
                self.write(source, to, _SCTP, sctp_init(own, port, payload))
            case "ICMP":
                head = struct.pack("!BBHHH", _ECHO_REQUEST, 0, 0, own, 1)
                checked = checksum(head + payload)
                header = head[:2] + struct.pack("!H", checked) + head[4:]
                self.write(source, to, _ICMP, header + payload)
            case "FRAGMENTS":
                data = udp(own, port, payload.ljust(FRAGMENT - 8, b".") + payload)
                self.write(source, to, _UDP, data[:FRAGMENT], 0, own, more=True)
                self.write(source, to, _UDP, data[FRAGMENT:], FRAGMENT, own)
            case _:
                raise ValueError(protocol)

    def write(
        self, source: str, to: str, protocol: int, data: bytes,
        offset: int = 0, identifier: int = 0, *, more: bool = False,
    ) -> None:  # fmt: skip
        header = struct.pack(
            "!BBHHHBBH4s4s", 0x45, 0, 20 + len(data), identifier, offset // 8 | more << 13, 64,
            protocol, 0, socket.inet_aton(source), socket.inet_aton(to),
        )  # fmt: skip
        self.raw.sendto(header + data, (to, 0))

    def source(self, to: str) -> str:
        """The address that this machine sends from to another one."""
        if to not in self.sources:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
                probe.connect((to, 9))
                self.sources[to] = probe.getsockname()[0]
        return self.sources[to]


def udp(source: int, destination: int, payload: bytes) -> bytes:
    """Without a checksum, which IPv4 allows."""
    return struct.pack("!HHHH", source, destination, 8 + len(payload), 0) + payload


def sctp_init(source: int, destination: int, payload: bytes) -> bytes:
    """The first packet of an association (RFC 9260), with a parameter that nobody knows."""
    padded = payload + b"\0" * (-len(payload) % 4)
    parameter = struct.pack("!HH", 0x8001, 4 + len(payload)) + padded
    chunk = struct.pack("!BBHIIHHI", 1, 0, 20 + len(parameter), 5, 65536, 1, 1, 1) + parameter
    head = struct.pack("!HHI", source, destination, 0)
    return head + struct.pack("<I", crc32c(head + bytes(4) + chunk)) + chunk


def crc32c(data: bytes) -> int:
    crc = 0xFFFF_FFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFF_FFFF


def pseudo_header(source: str, to: str, protocol: int, data: bytes) -> bytes:
    ends = socket.inet_aton(source) + socket.inet_aton(to)
    return ends + struct.pack("!HH", protocol, len(data)) + data


def checksum(data: bytes) -> int:
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def main() -> None:
    station = Station()
    print("ready", flush=True)
    # Unbuffered, because `select` does not see what Python has read already.
    buffer = b""
    while True:
        while b"\n" not in buffer:
            if station.look(1):
                more = os.read(0, 1 << 20)
                if not more:
                    return
                buffer += more
        line, _, buffer = buffer.partition(b"\n")
        print(json.dumps(station.answer(**json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
