"""The answers of `sluice services`."""

import msgspec

from controller.reports.pools import BalancerRow
from controller.reports.report import Report


class FrontendRow(msgspec.Struct, frozen=True, rename="camel"):
    """An address and port at which clients reach a Service port."""

    kind: str
    """`ClusterIP`, `ExternalIP`, `LoadBalancer` or `NodePort`."""
    address: str | None
    """Null: every address of each node."""
    port: int
    sources: tuple[str, ...] | None
    """The ranges of the clients that are served; null: all clients."""


class PortRow(msgspec.Struct, frozen=True, rename="camel"):
    """A port of a Service."""

    name: str
    protocol: str
    frontends: tuple[FrontendRow, ...]
    ready: int
    """Endpoints that are ready."""
    terminating: int
    """Endpoints that are terminating and still serve."""


class ServiceRow(msgspec.Struct, frozen=True, rename="camel"):
    """A Service in short."""

    namespace: str
    name: str
    type: str
    nothing_to_do: str
    """Why Sluice does nothing for it; empty: it does something."""
    internal_traffic_policy: str
    external_traffic_policy: str
    affinity_seconds: int | None
    """How long a client keeps its endpoint; null: no session affinity."""
    ports: tuple[PortRow, ...]
    problems: dict[str, str]
    """By subject, a sentence."""
    balancer: BalancerRow | None = None
    """Its address of an AddressPool; null: it gets none from a pool."""


class ServiceList(Report, frozen=True, kw_only=True):
    """Every Service in short."""

    services: tuple[ServiceRow, ...]
    """By namespace, then by name."""


class EndpointRow(msgspec.Struct, frozen=True, rename="camel"):
    """An endpoint that can get connections."""

    address: str
    port: int
    state: str
    """`ready` or `terminating`."""
    node: str
    """Empty: unknown."""
    zone: str
    hint_zones: tuple[str, ...]
    """The zones whose clients should use it."""
    hint_nodes: tuple[str, ...]


class ChoiceRow(msgspec.Struct, frozen=True, rename="camel"):
    """The endpoints that some nodes choose from, all nodes of one row alike."""

    to: str
    """The frontends: `ClusterIP` or `external`."""
    whence: str = msgspec.field(name="from")
    """Where the clients are: `anywhere`, `outside`, or `pods and nodes`."""
    nodes: tuple[str, ...]
    endpoints: tuple[str, ...]
    """Each an `ADDRESS:PORT`."""
    otherwise: str
    """If there are no endpoints: `refused`, or `dropped` because other nodes have some."""


class PortDetail(PortRow, frozen=True):
    """A port of a Service with its endpoints, and which of them each node chooses."""

    endpoints: tuple[EndpointRow, ...]
    choices: tuple[ChoiceRow, ...]


class ServiceDetail(Report, frozen=True, kw_only=True):
    """One Service, with its endpoints. All other fields are those of a ServiceRow."""

    namespace: str
    name: str
    type: str
    nothing_to_do: str
    """Why Sluice does nothing for it; empty: it does something."""
    internal_traffic_policy: str
    external_traffic_policy: str
    affinity_seconds: int | None
    """How long a client keeps its endpoint; null: no session affinity."""
    ports: tuple[PortDetail, ...]
    problems: dict[str, str]
    """By subject, a sentence."""
    balancer: BalancerRow | None = None
    """Its address of an AddressPool; null: it gets none from a pool."""
