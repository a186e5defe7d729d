"""What a victim does: `load.py serve PORT`, and `load.py connect ADDRESS PORT SECONDS`.

A script for any namespace: the standard library alone. `serve` answers each connection with one
byte; `connect` opens one connection after another and prints how many were answered, and how many
failed.
"""

import contextlib
import socket
import struct
import sys
import time

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: close by a reset, so that no TIME_WAIT holds the source port."""


def serve(port: int) -> None:
    with socket.create_server(("", port), backlog=1024) as server:
        print("ready", flush=True)
        while True:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(1)
                connection.sendall(b"x")
                connection.recv(1)


def connect(address: str, port: int, seconds: float) -> None:
    answered = failed = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as client:
            client.settimeout(0.5)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            try:
                client.connect((address, port))
                answered += len(client.recv(1))
            except OSError:
                failed += 1
    print(answered, failed)


if __name__ == "__main__":
    verb, *arguments = sys.argv[1:]
    if verb == "serve":
        serve(int(arguments[0]))
    else:
        connect(arguments[0], int(arguments[1]), float(arguments[2]))
