"""The program that ExaBGP's API talks to: connects its two pipes to the speaker's socket.

`python -m bgp.relay`, started by ExaBGP, with the variables of `environment`. Everything is passed
on as it is, but for UPDATE messages: these are counted here, so that a peer that floods its session
costs the speaker one line a second (`Received`).

Standard library only, to start fast and to stay small.
"""

import json
import os
import selectors
import socket
import sys
import time
from collections.abc import Sequence
from ipaddress import IPv4Network

from bgp.received import Received

SOCKET = "SLUICE_BGP_SOCKET"
"""The name of an abstract unix socket, without its leading zero byte."""
TOKEN = "SLUICE_BGP_TOKEN"  # noqa: S105  the variable's name
"""What the speaker expects as the first line."""
OWN_RANGES = "SLUICE_BGP_OWN_RANGES"
LOCAL_ASN = "SLUICE_BGP_LOCAL_ASN"
REPORT_SECONDS = 1.0
"""Between two lines about received routes."""
CHUNK = 1 << 16
MOST_UNREAD = 1 << 20
"""Characters of one line. The longest is an UPDATE of 65,535 bytes in hexadecimal digits."""


def environment(
    name: str, token: str, own_ranges: Sequence[IPv4Network], local_asn: int
) -> dict[str, str]:
    """The variables that the program needs."""
    return {
        SOCKET: name,
        TOKEN: token,
        OWN_RANGES: ",".join(map(str, own_ranges)),
        LOCAL_ASN: str(local_asn),
    }


class Lines:
    """What ExaBGP says: which of it is passed on, and what of it is counted."""

    def __init__(self, received: Received) -> None:
        self._received = received
        self._unread = b""
        self._changed = False

    def take(self, data: bytes) -> bytes:
        """Bytes of ExaBGP's; returns the lines to pass on."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        if len(self._unread) > MOST_UNREAD:
            self._unread = b""
        return b"".join(line + b"\n" for line in lines if not self._is_counted(line))

    def report(self) -> bytes:
        """A line about what has been received, if that has changed."""
        if not self._changed:
            return b""
        self._changed = False
        line = {
            "type": "received",
            "received": {
                "prefixes": self._received.prefixes,
                "default_route": self._received.default_route,
                "claimed": self._received.claimed,
            },
        }
        return json.dumps(line).encode() + b"\n"

    def _is_counted(self, line: bytes) -> bool:
        # A line without it needs no look; one with it may still be of another type.
        if b'"type": "update"' in line:
            self._count(line)
            return True
        if b'"type": "negotiated"' in line:
            self._received.four_bytes = b'"asn4": true' in line
            self._received.reset()
            self._changed = True
        return False

    def _count(self, line: bytes) -> None:
        self._changed = True
        try:
            message = json.loads(line)["neighbor"]["message"]
            self._received.take(bytes.fromhex(message["body"].removeprefix("0x")))
        except (ValueError, KeyError, TypeError, AttributeError):
            return  # ExaBGP judges messages, and ends the session where one is invalid


def main() -> None:
    """Until one of the two ends."""
    own = [IPv4Network(each) for each in os.environ[OWN_RANGES].split(",") if each]
    lines = Lines(Received(own, int(os.environ[LOCAL_ASN])))
    speaker = socket.socket(socket.AF_UNIX)
    speaker.connect("\0" + os.environ[SOCKET])
    speaker.sendall(os.environ[TOKEN].encode() + b"\n")
    with selectors.DefaultSelector() as selector:
        selector.register(0, selectors.EVENT_READ)
        selector.register(speaker, selectors.EVENT_READ)
        reported = time.monotonic()
        while True:
            for key, _ in selector.select(REPORT_SECONDS):
                data = os.read(key.fd, CHUNK)
                if not data:
                    sys.exit()
                if key.fd == 0:
                    speaker.sendall(lines.take(data))
                else:
                    _write(1, data)
            if time.monotonic() - reported >= REPORT_SECONDS:
                reported = time.monotonic()
                speaker.sendall(lines.report())


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


if __name__ == "__main__":
    main()
