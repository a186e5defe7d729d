"""What a switch does with one packet, from one conntrack lookup to the next: a part of a trace."""

from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address


@dataclass(frozen=True, slots=True)
class TracedStep:
    """A flow that the packet met; `cookie` is None where a table had no flow for it."""

    table: int
    cookie: int | None
    priority: int
    depth: int
    """More than 0: within a resubmit."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A conntrack lookup, after which the packet goes on at a table."""

    table: int
    zone: int
    commit: bool
    nat: bool
    """Whether a known connection's packets are translated."""
    destination: tuple[IPv4Address, int | None] | None
    """What a new connection's destination becomes."""
    source: IPv4Address | None
    mark: tuple[int, int]
    """Value and mask that the commit writes to ct_mark."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One part of a trace."""

    steps: tuple[TracedStep, ...]
    fields: Mapping[str, str]
    """The packet and its registers at the end of the part, as `ovs-ofctl` prints them."""
    resume: Resume | None
    outputs: tuple[int | None, ...]
    """The ofports that it leaves by; None: the one that it came in by."""
    meters: tuple[int, ...]
    groups: tuple[int, ...]
    """Groups that chose for the packet."""
    commits: tuple[Resume, ...] = ()
    """Commits after which the packet goes on in the same part; their `table` says nothing."""
