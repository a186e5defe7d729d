"""Pods that send from their first instruction: as soon as they have an interface, before ADD ends.

It is run by its path and uses the standard library alone. Each line of stdin is a JSON list: the
name of a network namespace that may not be there yet, its number, and the addresses to send to.
The thread of a pod waits for the namespace and for eth0 in it, sends UDP packets to each address,
to `FORBIDDEN` with the pod's number and to `ALLOWED` with the next number, and counts those that
come in. An empty line asks for `{NAMESPACE: {"forbidden": COUNT, "allowed": COUNT}}`, the packets
that have come in so far. The line `"NAMESPACE"` ends that pod's thread.
"""

import ctypes
import json
import os
import socket
import struct
import sys
import threading
import time
from collections import Counter

FORBIDDEN, ALLOWED = 8001, 8000
ROUTER_MAC = bytes.fromhex("0a58a9fe0101")
EVERY_PROTOCOL = 3  # ETH_P_ALL of linux/if_ether.h
CLONE_NEWNET = 0x40000000
FAST = 300
"""Packets at one a millisecond; then they get fewer."""
LONGEST = 300.0
"""Seconds after which a thread ends by itself."""

libc = ctypes.CDLL(None, use_errno=True)
counts: dict[str, Counter[str]] = {}
ended: set[str] = set()


def live(netns: str, number: int, targets: list[str]) -> None:
    counts[netns] = Counter()
    end = time.monotonic() + LONGEST
    wire = None
    while wire is None and time.monotonic() < end:
        wire = attach(netns)
        time.sleep(0.0005)
    if wire is None:
        return
    mac = wire.getsockname()[4]
    sent = 0
    with wire:
        while netns not in ended and time.monotonic() < end:
            for target in targets:
                for port, what in ((FORBIDDEN, number), (ALLOWED, number + 1)):
                    try:
                        wire.send(frame(mac, target, 1024 + sent % 60000, port, what))
                    except OSError:  # it is down still, or has gone
                        break
                    sent += 1
            count(wire, counts[netns])
            time.sleep(0.001 if sent < FAST else 0.02)


def attach(netns: str) -> socket.socket | None:
    """A socket on eth0, as soon as there is one."""
    try:
        descriptor = os.open(f"/run/netns/{netns}", os.O_RDONLY)
    except OSError:
        return None
    try:
        if libc.setns(descriptor, CLONE_NEWNET):
            return None  # its name is there, and it is not
    finally:
        os.close(descriptor)
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EVERY_PROTOCOL))
    try:
        wire.bind(("eth0", EVERY_PROTOCOL))
    except OSError:
        wire.close()
        return None
    wire.setblocking(False)
    return wire


def frame(mac: bytes, to: str, source_port: int, port: int, number: int) -> bytes:
    """The pod's own address is in its MAC."""
    data = b"<%d>" % number
    udp = struct.pack("!HHHH", source_port, port, 8 + len(data), 0) + data
    ip = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0, mac[2:6], socket.inet_aton(to)
    )
    return ROUTER_MAC + mac + b"\x08\x00" + ip[:10] + checksum(ip) + ip[12:] + udp


def checksum(header: bytes) -> bytes:
    total = sum(struct.unpack(f"!{len(header) // 2}H", header))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def count(wire: socket.socket, into: Counter[str]) -> None:
    while True:
        try:
            packet, address = wire.recvfrom(65535)
        except OSError:
            return
        if address[2] != socket.PACKET_OUTGOING and packet[12:14] == b"\x08\x00":
            port = struct.unpack_from("!H", packet, 14 + 22)[0] if packet[14 + 9] == 17 else 0
            into["forbidden" if port == FORBIDDEN else "allowed" if port == ALLOWED else ""] += 1


def main() -> None:
    print("ready", flush=True)
    for line in sys.stdin:
        given = json.loads(line) if line.strip() else None
        if given is None:
            print(json.dumps(counts), flush=True)
        elif isinstance(given, str):
            ended.add(given)
        else:
            threading.Thread(target=live, args=given, daemon=True).start()


if __name__ == "__main__":
    main()
