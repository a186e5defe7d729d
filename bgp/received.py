"""What a peer announces to us: counted, and looked at for what should not be there.

No route of a peer is ever used. Standard library only: the helper program of ExaBGP (`bgp.relay`)
imports it.
"""

from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network

MOST_CLAIMED = 5
"""Prefixes that are remembered by name."""
AS_PATH = 2
ORIGINATOR_ID = 9
EXTENDED_LENGTH = 0x10
"""A flag of an attribute (RFC 4271, 4.3)."""


class Received:
    """What one session has brought so far."""

    def __init__(self, own_ranges: Sequence[IPv4Network], local_asn: int) -> None:
        """`own_ranges`: what a peer announces of them without having it from us is remembered."""
        self.prefixes = 0
        self.default_route = False
        self.claimed: list[str] = []
        self.four_bytes = True
        """Whether AS numbers in paths have four bytes (RFC 6793)."""
        self._own = [(int(each.network_address), each.prefixlen) for each in own_ranges]
        self._local_asn = local_asn

    def reset(self) -> None:
        """A new session."""
        self.prefixes, self.default_route, self.claimed = 0, False, []

    def take(self, body: bytes) -> None:
        """The body of an UPDATE (RFC 4271, 4.3). Raises `ValueError` where it is none."""
        try:
            self._take(body)
        except IndexError as error:
            raise ValueError("an UPDATE that ends too early") from error

    def _take(self, body: bytes) -> None:
        attributes = 2 + int.from_bytes(body[:2], "big")
        length = int.from_bytes(body[attributes : attributes + 2], "big")
        start = attributes + 2
        end = start + length
        from_us: bool | None = None
        for prefix, prefix_length in _prefixes(body, end):
            self.prefixes += 1
            if prefix_length == 0:
                self.default_route = True
            elif len(self.claimed) < MOST_CLAIMED and self._is_own(prefix, prefix_length):
                if from_us is None:
                    from_us = self._is_from_us(body[start:end])
                text = str(IPv4Network((prefix, prefix_length), strict=False))
                if not from_us and text not in self.claimed:
                    self.claimed.append(text)

    def _is_own(self, prefix: int, length: int) -> bool:
        return any(
            length >= own_length and (prefix ^ own) >> (32 - own_length) == 0
            for own, own_length in self._own
        )

    def _is_from_us(self, attributes: bytes) -> bool:
        """Whether our AS is in the path, or a route reflector passed the route on."""
        size = 4 if self.four_bytes else 2
        for code, value in _attributes(attributes):
            if code == ORIGINATOR_ID:
                return True
            at = 0
            while code == AS_PATH and at + 2 <= len(value):
                end = at + 2 + value[at + 1] * size
                numbers = range(at + 2, end, size)
                if any(int.from_bytes(value[n : n + size], "big") == self._local_asn
                       for n in numbers):  # fmt: skip
                    return True
                at = end
        return False


def _prefixes(body: bytes, at: int) -> Iterator[tuple[int, int]]:
    """Address and length of each announced prefix."""
    while at < len(body):
        length = body[at]
        if length > 32:
            raise ValueError(f"a prefix of {length} bits")
        size = (length + 7) // 8
        address = int.from_bytes(body[at + 1 : at + 1 + size].ljust(4, b"\0"), "big")
        yield address, length
        at += 1 + size


def _attributes(text: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 3 <= len(text):
        flags, code = text[at], text[at + 1]
        wide = bool(flags & EXTENDED_LENGTH)
        start = at + (4 if wide else 3)
        end = start + int.from_bytes(text[at + 2 : start], "big")
        yield code, text[start:end]
        at = end
