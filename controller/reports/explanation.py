"""The answer of `sluice explain`."""

import msgspec

from controller.references import Reference
from controller.reports.report import Report


class Fact(msgspec.Struct, frozen=True, rename="camel"):
    """Something that is known of what is explained."""

    name: str
    value: str


class FlowFacts(msgspec.Struct, frozen=True, rename="camel"):
    """A flow that switches should hold."""

    cookie: str
    table: str
    table_number: int
    purpose: str
    """Of the table."""
    priority: int
    match: str
    actions: str
    feature: str
    """What wrote it, the first byte of the cookie."""
    feature_purpose: str
    reason: str
    owners: tuple[Reference, ...]
    """The objects that it exists for."""
    fields: tuple[str, ...]
    """The fields of these objects that it is made from."""
    every_node: bool
    """Whether the switches of all nodes hold it."""
    nodes: tuple[str, ...]
    """If not all do: the first nodes that should."""
    node_count: int


class TableUse(msgspec.Struct, frozen=True, rename="camel"):
    """What a table has for an object."""

    table: str
    table_number: int
    purpose: str
    """Of the table."""
    flows: int
    reasons: tuple[str, ...]
    """Those of the flows, the first of many."""
    nodes: str
    """Which switches hold them: `every node`, the names of a few, or their number."""


class PolicyUse(msgspec.Struct, frozen=True, rename="camel"):
    """A policy that selects a pod."""

    object: Reference
    tier: str
    """`Admin`, `NetworkPolicy` or `Baseline`."""
    direction: str
    """`from the pod` or `to the pod`."""


class ServiceUse(msgspec.Struct, frozen=True, rename="camel"):
    """A Service port that a pod is an endpoint of."""

    object: Reference
    port: str
    """The name of the Service's port; often empty."""
    endpoint: str
    """`ADDRESS:PORT` of the pod."""
    protocol: str
    ready: bool


class Explanation(Report, frozen=True, kw_only=True):
    """What a cookie, a flow, an object or an address is, and which flows exist because of it."""

    asked: str
    kind: str
    """`flow`, `pod`, `service`, `node`, `policy`, `object` or `address`."""
    sentence: str
    """All in one sentence."""
    object: Reference | None = None
    facts: tuple[Fact, ...] = ()
    flow: FlowFacts | None = None
    tables: tuple[TableUse, ...] = ()
    """By number."""
    policies: tuple[PolicyUse, ...] = ()
    services: tuple[ServiceUse, ...] = ()
    problems: tuple[str, ...] = ()
