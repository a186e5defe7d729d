"""What is wrong with a node, found by looking at it: `sluice check`."""

from enum import Enum
from ipaddress import IPv4Address
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from wire.documents import Sentence

MAX_FINDINGS: Final = 64
"""Findings about one node; further ones are counted."""
MAX_UNCHECKED: Final = 64
MAX_PEERS: Final = 16
"""Other nodes to which one node sends probes."""
MAX_NODES: Final = 64
"""Nodes of one report: their agents look at the same time."""


class Peer(msgspec.Struct, frozen=True):
    """Another node."""

    name: Sentence
    address: IPv4Address
    gateway: IPv4Address | None = None
    """Its own address among the pods, which is reached through the tunnel; None: before
    installation."""


class Severity(Enum):
    """How much a finding matters."""

    ERROR = "error"
    """Something does not work, or will not."""
    WARNING = "warning"
    """It works now, and may stop, or only a part of it fails."""


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong, and how to put it right."""

    severity: Severity
    subject: Sentence
    """The object: a program, a file, an interface, another node."""
    text: Sentence
    """What is wrong with it."""
    cure: Sentence
    """What to do about it."""


class NodeFindings(msgspec.Struct, frozen=True, rename="camel"):
    """Everything that was found on one node."""

    node: Sentence
    findings: Annotated[tuple[Finding, ...], Meta(max_length=MAX_FINDINGS)] = ()
    left_out: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Findings beyond `MAX_FINDINGS`."""
    unchecked: Annotated[tuple[Sentence, ...], Meta(max_length=MAX_UNCHECKED)] = ()
    """What could not be looked at, and why."""
