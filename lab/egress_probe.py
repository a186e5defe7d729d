"""Run in a part of the lab: `send ADDRESS PORT INTERVAL`, or `sniff INTERFACE SOURCE`.

`send` sends a datagram every so many seconds. `sniff` notes the time and the MAC of each frame from
an IPv4 address, and prints all as JSON. Both print `ready`, and end when their input is closed.
"""

import json
import select
import socket
import sys
import time

_IPV4 = 0x0800
_SOURCE_MAC, _SOURCE = slice(6, 12), slice(26, 30)


def send(address: str, port: int, interval: float) -> None:
    """Until the input is closed."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        say("ready")
        while not select.select([sys.stdin], [], [], interval)[0]:
            try:
                sender.sendto(b"x", (address, port))
            except OSError:
                continue  # an ICMP error about an earlier one


def sniff(interface: str, source: str) -> None:
    """Until the input is closed."""
    wanted, seen = socket.inet_aton(source), []
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
        raw.bind((interface, _IPV4))
        say("ready")
        while True:
            readable, _, _ = select.select([sys.stdin, raw], [], [])
            if raw in readable:
                frame = raw.recv(64)
                if frame[_SOURCE] == wanted:
                    seen.append((time.monotonic(), frame[_SOURCE_MAC].hex(":")))
            elif sys.stdin in readable:
                break
    say(json.dumps(seen))


def say(line: str) -> None:
    """Print it at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    verb, *rest = sys.argv[1:]
    if verb == "send":
        send(rest[0], int(rest[1]), float(rest[2]))
    else:
        sniff(*rest)
