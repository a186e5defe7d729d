"""Which messages of the kernel start a repair."""

import struct
from ipaddress import IPv4Network

import pytest

from node_agent.kernel_watch import KernelWatch

UP, RUNNING = 1, 0x40
NEW_LINK, NEW_ROUTE, DELETED_ROUTE = 16, 24, 25


def link(index: int, flags: int, changed: int) -> bytes:
    return struct.pack("=BxHiII", 0, 1, index, flags, changed)


def route(destination: str, oif: int) -> bytes:
    network = IPv4Network(destination)
    fixed = struct.pack("=BBBBBBBBI", 2, network.prefixlen, 0, 0, 254, 213, 0, 1, 0)
    attributes = struct.pack("=HH4sHHIHHI", 8, 1, network.network_address.packed, 8, 4, oif,
                             8, 15, 254)  # fmt: skip
    return fixed + attributes


@pytest.mark.parametrize(
    ("kind", "body", "matters"),
    [
        # Its routes have vanished without a message when it went down.
        (NEW_LINK, link(3, UP | RUNNING, UP), True),
        (NEW_LINK, link(3, 0, UP), False),
        (NEW_LINK, link(3, UP, RUNNING), False),
        (NEW_LINK, link(4, UP, UP), False),
        (NEW_LINK, b"", False),
        (DELETED_ROUTE, route("10.244.3.0/24", 3), True),
        (DELETED_ROUTE, route("192.0.2.0/24", 3), False),
        (DELETED_ROUTE, route("192.0.2.0/24", 2), True),
        (NEW_ROUTE, route("192.0.2.0/24", 2), False),
        (NEW_ROUTE, route("10.244.3.0/24", 4), True),
    ],
)
def test_messages_that_matter(kind: int, body: bytes, matters: bool) -> None:
    watch = KernelWatch(lambda: None)
    watch.use([IPv4Network("10.244.0.0/16")], 2, {3})
    assert watch.concerns_agent(kind, body) is matters
