"""What the controller and one node's agent tell each other."""

from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MOST_PODS = 256
"""Pods of which an agent tells at a time, the latest ones."""
MOST_SERVICES = 256
"""Services of which an agent tells at a time."""
MAX_EXTERNAL_PORTS = 65_536
"""Pairs of an external address and a port that all Services together have."""


ExternalPorts = tuple[tuple[IPv4Address, ...], tuple[tuple[int, int], ...], str]
"""Addresses, protocol and port that a Service has at each of them, and that Service."""


class NodeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Everything an agent must know of the cluster: `GET /v1/nodes/NODE/config`.

    The agent has no Kubernetes credentials.
    """

    node: str
    uid: str
    address: IPv4Address
    """The Node's InternalIP: source and destination of its tunnels."""
    pod_cidr: IPv4Network
    pod_range: IPv4Network
    service_range: IPv4Network
    host_ranges: tuple[IPv4Network, ...]
    tunnel: Literal["geneve", "vxlan"]
    tunnel_id: int
    tunnel_port: int
    revision: str
    """Opaque; handed back as `?after=REVISION&wait=SECONDS` to be told of the next change."""
    mtu: int | None = None
    """Of pods, at most; None: what the uplink leaves."""


class HostServices(msgspec.Struct, frozen=True, rename="camel"):
    """What the host itself does for Services: `GET /v1/nodes/NODE/services`.

    A Service is named as `NAMESPACE/NAME`.
    """

    node: str
    node_ports: tuple[tuple[int, int, str], ...]
    """Protocol (IANA's number), port and Service."""
    external_addresses: tuple[IPv4Address, ...]
    """Of Services, outside the Service range, and no node's own: what comes to the host for one of
    them goes into the switch."""
    health_checks: tuple[tuple[int, str, int], ...]
    """Port, Service and how many of its ready endpoints are on this node."""
    revision: str
    """As `NodeConfig.revision`."""
    own_addresses: tuple[tuple[IPv4Address, int, int, IPv4Address, str], ...] = ()
    """Of Services that name an address of this node itself: address, protocol, port, what the host
    translates the address to, and Service."""
    whole: bool = True
    """False: there may be more, which the controller could not read yet; nothing is taken away."""
    external_ports: tuple[
        tuple[tuple[IPv4Address, ...], tuple[tuple[int, int], ...], str], ...
    ] = ()
    """Of `external_addresses`, the ports that Services take there: addresses, protocol and port that
    the Service has at each of them, and Service. All other traffic to these addresses stays with
    the host. An address of which nothing is said here (a ClusterIP outside the Service range) is
    the switch's as a whole. At most `MAX_EXTERNAL_PORTS` pairs of an address and a port."""
    protected_addresses: tuple[IPv4Address, ...] = ()
    """API servers, controllers and others that no Service may take, besides what the host knows."""
    host_endpoints: tuple[tuple[IPv4Address | None, int, int, IPv4Address, int, str], ...] = ()
    """Of Services whose `externalTrafficPolicy` is Local and whose only endpoint on this node is
    the node itself: address (None: each of the node's own), protocol and port that clients outside
    connect to, address and port of the endpoint, and Service. The host translates these itself, so
    that the endpoint sees the client's address."""


class SwitchDigest(msgspec.Struct, frozen=True, rename="camel"):
    """What an agent's dump of its own switch comes to: `POST /v1/nodes/NODE/digest`.

    Numbers have 64 bits (`openflow.digest`). Flows and groups that are not ours are only counted,
    flows that the switch has learned as we told it not even that.
    """

    seals: list[int]
    """The cookies of all seals."""
    sums: list[int]
    """Of all other flows of ours, one for each range of cookies."""
    meters: int
    groups: int
    """Of all groups of ours."""
    foreign: int
    """How many flows and groups nobody of ours has made."""


Sentence = Annotated[str, Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NodeProblems(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True
):  # fmt: skip
    """All that an agent cannot do at the moment: `POST /v1/nodes/NODE/problems`.

    Told when it changes, and again and again while there is something: what is not told any more
    is forgotten after a while.
    """

    node: Sentence = ""
    """Why this node takes no pods; empty: it does."""
    pods: Annotated[dict[str, Sentence], Meta(max_length=MOST_PODS)] = {}
    """By `NAMESPACE/NAME`, why a pod of this node has no network."""
    services: Annotated[dict[str, Sentence], Meta(max_length=MOST_SERVICES)] = {}
    """By `NAMESPACE/NAME`, what of a Service this node cannot do."""


Verdict = Literal["right", "moved on", "drift"]
"""The answer. "moved on": the switch is just being changed; ask again."""


def encode(config: NodeConfig | HostServices | SwitchDigest | NodeProblems) -> bytes:
    """As JSON."""
    return msgspec.json.encode(config, enc_hook=str)


def decode(data: bytes) -> NodeConfig:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=NodeConfig, dec_hook=_decode)


def decode_services(data: bytes) -> HostServices:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=HostServices, dec_hook=_decode)


def decode_digest(data: bytes) -> SwitchDigest:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=SwitchDigest)


def decode_problems(data: bytes) -> NodeProblems:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=NodeProblems)


def _decode(kind: type, value: Any) -> Any:
    return kind(value)
