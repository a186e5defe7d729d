"""The answer of `sluice addresses`."""

import msgspec

from controller.reports.report import Report


class CandidateRow(msgspec.Struct, frozen=True, rename="camel"):
    """A node that can have an address."""

    node: str
    state: str
    """Why it can have it now, or why not."""
    is_able: bool
    """Whether it would be chosen if those before it were not there."""


class AddressRow(msgspec.Struct, frozen=True, rename="camel"):
    """An address that one node at a time has."""

    address: str
    kind: str
    namespace: str
    name: str
    """Of the object that needs it."""
    owner: str
    """The node that has it; empty: nobody."""
    seconds_left: float
    """Until its grant ends, if it is not renewed."""
    reason: str
    """Why this node, or why nobody."""
    is_announced: bool
    """Whether the owner answers ARP for it."""
    is_gated: bool
    """Whether only the owner's host sends from it."""
    candidates: tuple[CandidateRow, ...]
    """The most preferred one first; at most `MAX_ROWS`."""
    more_candidates: int = 0
    """Those that are not listed."""
    conflict: str = ""
    """The MAC of another host on the link that has the address, too; empty: none is known."""


class AddressList(Report, frozen=True, kw_only=True):
    """All addresses with one owner, sorted."""

    decides: bool
    """Whether this controller gives addresses to nodes now. If not, owners are what the nodes say.
    """
    addresses: tuple[AddressRow, ...]
