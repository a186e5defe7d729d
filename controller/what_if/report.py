"""The answer of `sluice what-if`: a typed, versioned report."""

from typing import Final, Literal

import msgspec

from controller.references import Reference

VERSION: Final = 1
"""Grows when a field is removed or means something else."""


class Decision(msgspec.Struct, frozen=True):
    """What decides about connections, in one direction."""

    direction: str
    """`from the pod` or `to the pod`."""
    accepts: bool
    policies: tuple[Reference, ...] = ()
    """Of a rule: its policy. If no rule accepts: the policies that isolate the pod."""
    rule: str = ""
    """The field of the rule, `spec.ingress[0]`; empty: no rule decides."""
    reason: str = ""
    """In words."""


class Share(msgspec.Struct, frozen=True):
    """Pods of a workload; of nodes and ranges outside, these."""

    workload: Reference
    pods: int
    """How many of them; 0: it has no pod now, and is judged by its template."""
    of: int
    """How many pods it has."""


class ChangeRow(msgspec.Struct, frozen=True, rename={"sources": "from", "destinations": "to"}):
    """Connections that are lost or gained: from each of `from` to each of `to`."""

    sources: tuple[Share, ...]
    destinations: tuple[Share, ...]
    ports: tuple[str, ...]
    pairs: int
    """Pairs of pods, nodes and ranges outside that exist now."""
    before: Decision
    after: Decision


class Total(msgspec.Struct, frozen=True, rename="camel"):
    """How much is lost, gained or kept, each pair counted once."""

    workload_pairs: int
    pod_pairs: int


class Totals(msgspec.Struct, frozen=True):
    """What the change concerns. Other pairs are not counted."""

    loses: Total
    gains: Total
    keeps: Total
    """Pairs that reach each other as before at all ports."""


class PolicyChange(msgspec.Struct, frozen=True):
    """An object of the change."""

    object: Reference
    change: Literal["added", "changed", "unchanged", "deleted"]


class Caution(msgspec.Struct, frozen=True):
    """Something that the change makes questionable."""

    subject: str
    text: str


class LongestWalk(msgspec.Struct, frozen=True):
    """The most steps that a packet of one pod goes through in one direction."""

    before: int
    after: int


class Cost(msgspec.Struct, frozen=True, rename="camel"):
    """What the switches would have to do."""

    nodes: int
    """How many switches get other flows."""
    flows_added: int
    """Over all switches."""
    flows_removed: int
    longest_walk: LongestWalk


class LostConnection(msgspec.Struct, frozen=True):
    """An existing connection that the changed policies would not allow any more."""

    protocol: str
    source: str
    """`Deployment shop/web (shop/web-1, 10.244.1.2)`."""
    destination: str
    port: int


class Connections(msgspec.Struct, frozen=True):
    """Existing connections, as far as they are known."""

    looked_at: int
    lost: tuple[LostConnection, ...]
    more: int = 0
    """Further ones that are lost."""


class WhatIf(msgspec.Struct, frozen=True, rename="camel"):
    """What a change of policies would do."""

    policies: tuple[PolicyChange, ...]
    totals: Totals
    loses: tuple[ChangeRow, ...]
    gains: tuple[ChangeRow, ...]
    more_rows: int
    """Parts of rows that are left out; the totals count them."""
    without_pods: tuple[Reference, ...]
    """Workloads that have no pod now and are judged by their template."""
    warnings: tuple[Caution, ...]
    cost: Cost
    connections: Connections | None = None
    """None: nobody has told which connections there are."""
    assumed: tuple[str, ...] = ()
    """What was not given and had to be assumed, in words."""
    version: int = VERSION
