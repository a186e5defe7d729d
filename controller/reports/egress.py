"""The answer of `sluice egress`."""

import msgspec

from controller.reports.report import Report


class PodUseRow(msgspec.Struct, frozen=True, rename="camel"):
    """A pod that uses source ports of an egress address."""

    pod: str
    """`NAMESPACE/NAME`; the pod's address if it has no egress address any more."""
    ports: int


class DestinationRow(msgspec.Struct, frozen=True, rename="camel"):
    """A destination of connections from an egress address."""

    destination: str
    """`ADDRESS:PORT/PROTOCOL`, or `ADDRESS (ICMP)`."""
    ports: int
    """Source ports in use."""
    share: float
    """Of all source ports that one destination can have, from 0 to 1."""
    pods: tuple[PodUseRow, ...]
    """Those that use most."""


class EgressRow(msgspec.Struct, frozen=True, rename="camel"):
    """An EgressAddress."""

    name: str
    address: str
    gateway: str
    """The node that sends from the address; empty: none does, and packets are dropped."""
    since: float | None
    """When it began, in seconds since 1970, as far as this controller knows."""
    candidates: tuple[str, ...]
    """The nodes that may be the gateway."""
    namespaces: str
    """The selector of the pods' Namespaces; `*`: all."""
    pod_selector: str
    pods: tuple[str, ...]
    """`NAMESPACE/NAME` of the pods that leave from the address, the first of them."""
    pod_count: int
    connections: int | None
    """As its gateway has told last; None: it has told nothing yet."""
    destination_count: int
    ports: int
    """Source ports that one destination can have."""
    destinations: tuple[DestinationRow, ...]
    """Those that use most source ports."""
    top_pods: tuple[PodUseRow, ...]
    """The pods with most connections."""
    problem: str
    """Empty: none."""


class EgressList(Report, frozen=True, kw_only=True):
    """Every EgressAddress, the oldest first."""

    egress: tuple[EgressRow, ...]
