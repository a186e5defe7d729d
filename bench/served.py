"""Who serves a connection: both ends of one, run inside a pod.

    python -m bench.served serve PORT NAME          says its name to whoever connects
    python -m bench.served until ADDRESS PORT NAME  connects again and again until NAME answers

`serve` writes `ready` when it listens. `until` writes `ready` when some other name has answered,
and, for the first connection that NAME served, when its answer was there, by `time.monotonic`,
which all processes of a machine share.
"""

import contextlib
import socket
import struct
import sys
import time

PAUSE = 0.001
"""Seconds between two connections."""
ATTEMPT = 0.25
"""Seconds after which a connection that nobody answers is given up for another."""
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close at once, so that no port waits to be used again."""


def _serve(port: int, name: str) -> None:
    with socket.create_server(("", port), backlog=128) as listening:
        _say("ready")
        while True:
            peer, _ = listening.accept()
            with peer, contextlib.suppress(OSError):
                peer.sendall(name.encode())


def _until(address: str, port: int, name: str) -> None:
    ready = False
    while (answer := _asked(address, port)) != name:
        if answer and not ready:
            ready = True
            _say("ready")
        time.sleep(PAUSE)
    _say(repr(time.monotonic()))


def _asked(address: str, port: int) -> str:
    """Whom a new connection leads to; empty: to nobody."""
    with contextlib.suppress(OSError), socket.socket() as peer:
        peer.settimeout(ATTEMPT)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        peer.connect((address, port))
        return peer.recv(100).decode()
    return ""


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    verb, *words = sys.argv[1:]
    if verb == "serve":
        _serve(int(words[0]), words[1])
    else:
        _until(words[0], int(words[1]), words[2])
