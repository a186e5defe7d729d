"""The answers of `sluice policy`: typed, versioned reports."""

import msgspec

from controller.references import Reference
from controller.reports import VERSION


class RuleRow(msgspec.Struct, frozen=True, rename="camel"):
    """A rule of a policy."""

    field: str
    """`spec.ingress[0]`."""
    action: str
    """`accept`, `deny` or `pass`."""
    peers: tuple[str, ...]
    """Each a text; the rule is for all of them."""
    ports: tuple[str, ...]


class PolicyRow(msgspec.Struct, frozen=True, rename="camel"):
    """A policy that selects a pod, with its rules for one direction."""

    object: Reference
    tier: str
    """`Admin`, `NetworkPolicy` or `Baseline`."""
    priority: int
    rules: tuple[RuleRow, ...]
    problems: tuple[str, ...]


class DirectionRow(msgspec.Struct, frozen=True, rename="camel"):
    """The policies of a pod in one direction, in the order in which they decide."""

    direction: str
    """`from the pod` or `to the pod`."""
    isolated: bool
    """Whether a NetworkPolicy selects the pod: then only what a rule accepts may pass."""
    refused: bool
    """Whether its policies do not fit into the switch: then nothing may pass."""
    policies: tuple[PolicyRow, ...]


class PodPolicies(msgspec.Struct, frozen=True, rename="camel"):
    """Which policies select a pod, and what they allow."""

    pod: Reference
    workload: Reference
    node: str
    address: str
    labels: dict[str, str]
    namespace_labels: dict[str, str]
    directions: tuple[DirectionRow, ...]
    problems: tuple[str, ...] = ()
    version: int = VERSION


class EndRow(msgspec.Struct, frozen=True, rename="camel"):
    """One end of a connection."""

    kind: str
    """`pod`, `node` or `address`."""
    name: str
    """`NAMESPACE/NAME` of a pod, the name of a node; of an address, what is known of it."""
    address: str
    node: str = ""
    port: int | None = None
    """Of the destination, if the protocol has ports."""


class StepRow(msgspec.Struct, frozen=True, rename="camel"):
    """A rule that the walk came to."""

    policy: Reference
    tier: str
    field: str
    action: str
    peers: tuple[str, ...]
    peer_matched: bool
    ports: tuple[str, ...]
    port_matched: bool
    decides: bool
    missing: tuple[str, ...] = ()
    """What the other end would need to match: a label, a port, a namespace."""


class JudgementRow(msgspec.Struct, frozen=True, rename="camel"):
    """What the policies of one end say."""

    direction: str
    pod: str
    """Empty: this end is no pod, so there are no policies in this direction."""
    accepted: bool
    because: str
    steps: tuple[StepRow, ...] = ()
    nearest: StepRow | None = None
    """If no rule accepts: the rule that comes nearest, and what is missing."""


class CaseRow(msgspec.Struct, frozen=True, rename="camel"):
    """A connection, as the switches judge it."""

    source: EndRow
    destination: EndRow
    accepted: bool
    judgements: tuple[JudgementRow, ...]


class Verdict(msgspec.Struct, frozen=True, rename="camel"):
    """Whether a connection may pass, and why; of a Service, for each endpoint."""

    source: str
    """As asked for."""
    destination: str
    port: int | None
    protocol: str
    accepted: bool
    """Whether all cases are accepted."""
    cases: tuple[CaseRow, ...]
    notes: tuple[str, ...] = ()
    version: int = VERSION
