"""A TCP port for a server that a test starts later."""

import random
import socket

FIRST, LAST = 20_000, 32_000
"""Below the range of which Linux gives ports to clients (net.ipv4.ip_local_port_range): what is
free stays free until the server takes it, unless another test draws the same."""


def free_port() -> int:
    """A port of 127.0.0.1 and of every other address that nobody uses."""
    for port in random.SystemRandom().sample(range(FIRST, LAST), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise AssertionError(f"no free port between {FIRST} and {LAST}")
