"""A program that asks again and again who has an address, and notes every host that says so.

It is run by its path in the namespace of an interface, and uses the standard library alone. It
prints `ready`, continues until its stdin ends, and then prints as JSON a list of [time, MAC]: each
ARP packet in which a host says that it has the address. Times are those of CLOCK_MONOTONIC, which
all processes of a machine share.

    python arp_probe.py INTERFACE OWN-ADDRESS ADDRESS INTERVAL
"""

import contextlib
import json
import select
import socket
import struct
import sys
import time

_ARP = 0x0806
_FRAME = struct.Struct("!6s6sHHHBBH6s4s6s4s")
_BROADCAST = b"\xff" * 6


def main(interface: str, own: str, address: str, interval: float) -> None:
    asked = socket.inet_aton(address)
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ARP)) as raw:
        raw.bind((interface, _ARP))
        raw.setblocking(False)
        mac = raw.getsockname()[4]
        request = _FRAME.pack(
            _BROADCAST, mac, _ARP, 1, 0x0800, 6, 4, 1, mac, socket.inet_aton(own), bytes(6), asked
        )
        said: list[tuple[float, str]] = []
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        due = time.monotonic()
        while True:
            now = time.monotonic()
            if now >= due:
                with contextlib.suppress(OSError):  # no buffer: lost, as on a link
                    raw.send(request)
                due = max(due + interval, now)
            readable, _, _ = select.select([raw, sys.stdin], [], [], max(0, due - time.monotonic()))
            if raw in readable:
                _receive(raw, asked, said)
            if sys.stdin in readable:
                break
        sys.stdout.write(f"{json.dumps(said)}\n")


def _receive(raw: socket.socket, asked: bytes, said: list[tuple[float, str]]) -> None:
    with contextlib.suppress(BlockingIOError):
        while True:
            frame = raw.recv(_FRAME.size)
            if len(frame) == _FRAME.size:
                *_, mac, sender, _, _ = _FRAME.unpack(frame)
                if sender == asked:
                    said.append((time.monotonic(), mac.hex(":")))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4]))
