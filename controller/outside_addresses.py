"""What pools of addresses and egress addresses have in common: addresses that the outside uses."""

from ipaddress import IPv4Network
from typing import Final

WAYS: Final = ("BGP", "Link")
"""The values of `spec.announce`."""
NEVER: Final = (
    ("addresses of no host", IPv4Network("0.0.0.0/8")),
    ("loopback addresses", IPv4Network("127.0.0.0/8")),
    ("link-local addresses", IPv4Network("169.254.0.0/16")),
    ("multicast and reserved addresses", IPv4Network("224.0.0.0/3")),
)
"""Ranges of which no address can be used, each with words for it."""
