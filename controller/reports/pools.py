"""The answer of `sluice pools`, and what `sluice services` says about an address of a pool."""

from typing import Final

import msgspec

from controller.reports.report import Report

MOST_NAMED: Final = 4
"""Nodes that a sentence names."""


class BalancerRow(msgspec.Struct, frozen=True, rename="camel"):
    """An address of a pool that a Service has, or should have."""

    address: str
    """Empty: it has none."""
    pool: str
    why: str
    """Why the Service has this address; if it has none, why not."""
    assigned: bool
    """Whether the address is in the status of the Service."""
    shared_with: tuple[str, ...]
    """Other Services, `NAMESPACE/NAME`, that have it."""
    owner: str
    """The node that answers ARP for it; empty: none does."""
    nodes: tuple[str, ...]
    """The nodes that can serve it, up or not."""
    ways: tuple[str, ...]
    """How the network learns where it is: `BGP`, `Link`."""


class UserRow(msgspec.Struct, frozen=True, rename="camel"):
    """An address of a pool that is in use."""

    address: str
    services: tuple[str, ...]
    """`NAMESPACE/NAME` of each, the oldest first."""
    owner: str
    nodes: tuple[str, ...]


class PoolRow(msgspec.Struct, frozen=True, rename="camel"):
    """An AddressPool."""

    name: str
    ranges: tuple[str, ...]
    """What it has in fact, each `FIRST-LAST` or one address."""
    size: int
    """Addresses in it."""
    free: int
    """Addresses that a Service can still get."""
    auto_assign: bool
    announce: tuple[str, ...]
    namespaces: str
    """The selector of the namespaces that it is for; `*`: all."""
    node_selector: str
    """The selector of the nodes that take connections; `*`: all."""
    node_count: int
    """The nodes that it selects."""
    users: tuple[UserRow, ...]
    problem: str
    """Empty: none."""


class PoolList(Report, frozen=True, kw_only=True):
    """Every AddressPool, the oldest first."""

    pools: tuple[PoolRow, ...]
    waiting: dict[str, str]
    """By Service, `NAMESPACE/NAME`, why it does not have the address that it asks for."""


def announced_text(row: BalancerRow) -> str:
    """Who tells the network where an address is."""
    if not row.assigned:
        return "not yet: the address is not in the status of the Service"
    if not row.nodes:
        return "no: no node can serve it"
    told = []
    if "Link" in row.ways:
        told.append(f"{row.owner} answers ARP" if row.owner else "no node answers ARP now")
    if "BGP" in row.ways:
        told.append(f"to BGP peers, with {_counted(row.nodes)}")
    return "; ".join(told) or "no: the pool has no way to announce it"


def _counted(nodes: tuple[str, ...]) -> str:
    return ", ".join(nodes) if len(nodes) <= MOST_NAMED else f"{len(nodes)} nodes"
