"""What the controllers and one node's agent tell each other about addresses with one owner.

A *grant* is the right of one node to have an address for `LIFETIME` seconds. The agent renews it.
`controller.address_owners` decides who gets one, `node_agent.address_holds` when it has ended.
"""

from ipaddress import IPv4Address
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.documents import from_json

LIFETIME: Final = 1.5
"""Seconds. The agent counts from before it has sent the request, the controller from when it
answers: so the agent's end is never later than the controller's."""
RENEWAL: Final = 0.3
"""Seconds between two requests of an agent that holds something."""
MAX_ADDRESSES: Final = 4_096
"""Addresses of a cluster, and so of one document."""
MAX_CONFLICTS: Final = 64
"""In one request; the agent chooses the latest ones."""

Number = Annotated[int, Meta(gt=0, le=(1 << 63) - 1)]
"""Of a grant. No two grants have the same one, whichever controllers gave them."""
Grant = tuple[IPv4Address, Number]
Mac = Annotated[str, Meta(pattern=r"\A[0-9a-f]{2}(:[0-9a-f]{2}){5}\Z")]
Identity = Annotated[str, Meta(max_length=512)]


class GrantRequest(msgspec.Struct, frozen=True, omit_defaults=True):
    """An agent's request to one controller (`paths.GRANTS`, POST); the answer is `Granted`."""

    held: Annotated[tuple[Grant, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """What the node has at this moment, to be renewed."""
    wanted: Annotated[tuple[IPv4Address, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """What the node is offered (`AddressDuties`), and is ready to take."""
    released: Annotated[tuple[Grant, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """What the node has given up for good: it does not act on these grants any more, whatever
    answers may still come."""
    conflicts: Annotated[tuple[tuple[IPv4Address, Mac], ...], Meta(max_length=MAX_CONFLICTS)] = ()
    """Of what it has: the MACs of other hosts on the link that say the address is theirs."""
    leaves: bool = False
    """The agent stops, and takes nothing any more."""


class Granted(msgspec.Struct, frozen=True, omit_defaults=True):
    """A controller's answer to a `GrantRequest`."""

    controller: Identity
    """The identity of the controller's process."""
    leads: bool
    """Whether it may grant. If not, the lists are empty."""
    leader: Identity = ""
    """The identity of the controller that leads, as far as this one knows; empty: perhaps none."""
    granted: Annotated[tuple[Grant, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """What the node has for `LIFETIME` from when it sent the request."""


class AddressDuties(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node should have (`paths.GRANTS`, GET). A long poll, see `paths.AFTER`."""

    node: str
    revision: str
    """As `NodeConfig.revision`."""
    leads: bool
    """Whether this controller decides at the moment. If not, the lists are empty and mean nothing.
    """
    generation: int = 0
    """Of the leader's term: of two that believe to lead, the newer one is right."""
    addresses: Annotated[tuple[tuple[IPv4Address, bool], ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """What the node has or is offered, and whether it answers ARP for it. What it holds besides, it
    has to release."""
    gated: Annotated[tuple[IPv4Address, ...], Meta(max_length=MAX_ADDRESSES)] = ()
    """Addresses from which this host sends only while it has them."""
    may_answer: bool = False
    """Whether the node is a candidate for an address whose owner answers ARP."""


def decode_request(data: bytes) -> GrantRequest:
    """From JSON. Raises `msgspec.MsgspecError`."""
    request: GrantRequest = from_json(data, GrantRequest)
    return request


def decode_granted(data: bytes) -> Granted:
    """From JSON. Raises `msgspec.MsgspecError`."""
    granted: Granted = from_json(data, Granted)
    return granted


def decode_duties(data: bytes) -> AddressDuties:
    """From JSON. Raises `msgspec.MsgspecError`."""
    duties: AddressDuties = from_json(data, AddressDuties)
    return duties


def encode(document: GrantRequest | Granted | AddressDuties) -> bytes:
    """As JSON."""
    return msgspec.json.encode(document, enc_hook=str)
