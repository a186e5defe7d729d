"""What the controller and one node's agent tell each other, as JSON.

Every document names the path that carries it (`wire.paths`). A document of a newer version may
have more fields: a reader ignores them.
"""

from collections.abc import Generator
from enum import Enum
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from flows.policy import Direction
from wire.bgp import NodeBGP, NodeSessions
from wire.egress import MAX_ADDRESSES as MAX_EGRESS_ADDRESSES
from wire.egress import AddressUse, Count, EgressUse
from wire.sentences import HIDDEN, MAX_SENTENCE

MAX_PODS = 256
"""Pods in one `NodeProblems`; the agent chooses the latest ones."""
MAX_SERVICES = 256
"""Services in one `NodeProblems`."""
MAX_DENIED_PAIRS = 256
"""Pairs in one `NodeDenials`; the agent keeps the first ones of a minute."""
MAX_DENIED_PORTS = 5
"""Ports in one `DeniedPair`; the agent keeps the first ones."""
MAX_ADDRESSES = 64
"""Addresses in one `NodeAddresses`."""
RANGES = 256
"""Ranges of cookies that a digest has a sum for."""
MAX_SEALS = 256
"""Seals in one digest; a switch has two."""
OLD_FEATURES = 12
"""The greatest feature of the agents that do not say it."""
MAX_EXTERNAL_PORTS = 65_536
"""Pairs of an external address and a port that all Services together have."""

ExternalPorts = tuple[tuple[IPv4Address, ...], tuple[tuple[int, int], ...], str]
"""Addresses, (protocol, port) that a Service has at each of these addresses, and that Service."""


class NodeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Everything that an agent must know of the cluster (`paths.CONFIG`).

    The agent has no Kubernetes credentials, so it cannot read this from the API server.
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
    """Opaque. The agent sends it back (`paths.AFTER`) to wait for the next change."""
    mtu: int | None = None
    """The largest MTU of pods. None: what the uplink leaves."""
    uses_tunnel: bool = True
    """Whether packets of pods may go through a tunnel, which needs a part of the uplink's MTU."""


class PeerRoutes(msgspec.Struct, frozen=True, rename="camel"):
    """The peers that a node reaches without the tunnel (`paths.ROUTES`).

    Nodes with the same mode and subnet get the same document, in which they are themselves.
    """

    peers: tuple[tuple[IPv4Network, IPv4Address], ...]
    """podCIDR and address of each, sorted."""
    revision: str
    """As `NodeConfig.revision`."""
    source_complete: bool = msgspec.field(default=True, name="whole")
    """As `NodeServices.source_complete`."""


class NodeServices(msgspec.Struct, frozen=True, rename="camel"):
    """What the node's host itself does for Services (`paths.SERVICES`).

    A Service is named `NAMESPACE/NAME`.
    """

    node: str
    node_ports: tuple[tuple[int, int, str], ...]
    """Protocol (IANA's number), port and Service."""
    external_addresses: tuple[IPv4Address, ...]
    """Addresses of Services outside the Service range, none of them this node's own. The host sends
    traffic for these addresses to the switch."""
    health_checks: tuple[tuple[int, str, int], ...]
    """Port, Service, and number of its ready endpoints on this node."""
    revision: str
    """As `NodeConfig.revision`."""
    own_addresses: tuple[tuple[IPv4Address, int, int, IPv4Address, str], ...] = ()
    """For Services that name an address of this node itself: address, protocol, port, the address
    that the host translates it to, and the Service."""
    source_complete: bool = msgspec.field(default=True, name="whole")
    """False: the controller has not read everything yet, so the agent removes nothing."""
    external_ports: tuple[ExternalPorts, ...] = ()
    """The ports that Services take at `external_addresses`. All other traffic to these addresses
    stays with the host. An address that is not named here (a ClusterIP outside the Service range)
    belongs to the switch as a whole. At most `MAX_EXTERNAL_PORTS` pairs of address and port."""
    protected_addresses: tuple[IPv4Address, ...] = ()
    """API servers, controllers and others that no Service may take, besides what the host knows."""
    host_endpoints: tuple[tuple[IPv4Address | None, int, int, IPv4Address, int, str], ...] = ()
    """Services with `externalTrafficPolicy: Local` whose only endpoint on this node is the node
    itself: address (None: each of the node's own), protocol and port that clients outside connect
    to, address and port of the endpoint, and Service. The host translates these itself, so that
    the endpoint sees the client's address."""
    balancer_addresses: tuple[IPv4Address, ...] = ()
    """Of `external_addresses`, those of an AddressPool: nobody but Services has them. The host
    refuses all other traffic to them. It would send that on to where it came from."""


class SwitchDigest(msgspec.Struct, frozen=True, rename="camel"):
    """An agent's dump of its own switch as sums (`paths.DIGEST`).

    Numbers have 64 bits (`openflow.digest`). Foreign flows and groups are only counted. Flows that
    the switch learned by our own `learn` actions are left out.
    """

    seals: Annotated[list[int], Meta(max_length=MAX_SEALS)]
    """The cookies of all seals."""
    sums: Annotated[list[int], Meta(min_length=RANGES, max_length=RANGES)]
    """Sums of all other flows of Sluice, one for each range of cookies."""
    meters: int
    groups: int
    """Sum of all groups of Sluice."""
    foreign: int
    """Number of flows and groups that Sluice did not make."""
    datapath_flows: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Number of flows in the datapath's cache, rounded up to a power of two; 0: unknown. The more
    there are, the later the datapath follows a change of the switch's flows."""
    generation: Annotated[int, Meta(ge=0, lt=1 << 56)] = 0
    """The newest generation of a controller that the agent has seen on the switch, ever
    (`flows.features.state`); 0: none."""
    features: Annotated[int, Meta(ge=0, lt=1 << 8)] = OLD_FEATURES
    """The greatest number of a feature (`flows.layout.Feature`) that the agent knows. Flows of
    later features are foreign to it: they are not in `sums`."""


class Verdict(Enum):
    """The controller's answer to a digest."""

    RIGHT = "right"
    SUPERSEDED = "moved on"
    """The controller has changed the switch since, or is changing it: look again later."""
    DRIFT = "drift"
    """The switch differs from what it should hold; the controller repairs it."""


Sentence = Annotated[str, Meta(max_length=MAX_SENTENCE, pattern=rf"\A[^{HIDDEN}]*\Z")]


class NodeProblems(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything that an agent cannot do at the moment (`paths.PROBLEMS`).

    The agent sends it when it changes, and again at intervals while there is a problem; the
    controller forgets what is not repeated.
    """

    node: Sentence = ""
    """Why this node takes no pods; empty: it takes pods."""
    pods: Annotated[dict[str, Sentence], Meta(max_length=MAX_PODS)] = {}
    """By `NAMESPACE/NAME`, why a pod of this node has no network."""
    services: Annotated[dict[str, Sentence], Meta(max_length=MAX_SERVICES)] = {}
    """By `NAMESPACE/NAME`, what this node cannot do for a Service."""


class NodeAddresses(msgspec.Struct, frozen=True, rename="camel"):
    """What a node's network really is, as its agent sees it (`paths.ADDRESSES`).

    The agent sends it when it changes, and again at intervals.
    """

    addresses: Annotated[tuple[IPv4Address, ...], Meta(max_length=MAX_ADDRESSES)]
    """The host's own, sorted, on whatever interface: also those that kube-vip or keepalived has
    bound for the moment. None of loopback, link-local, pod or Service ranges."""
    pod_mtu: Annotated[int, Meta(ge=0, lt=1 << 16)] = 0
    """What pods get here; 0: unknown."""
    uplink: IPv4Interface | None = None
    """The Node's address with the prefix length of its subnet, as its interface has it."""


class DeniedPort(msgspec.Struct, frozen=True, omit_defaults=True):
    """What of a pair was denied, and by which rule."""

    protocol: Annotated[int, Meta(ge=0, lt=1 << 8)]
    """IANA's number."""
    port: Annotated[int, Meta(ge=0, lt=1 << 16)] | None = None
    """Of the destination; None: the protocol has none, or the packet is a later fragment."""
    rule: Annotated[int, Meta(gt=0, lt=1 << 32)] | None = None
    """The id of the rule that denies it (`flows.policy.rule_id`); None: no rule accepts it."""


class DeniedPair(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A pod of the node, and another end that policy denied it, in one direction."""

    attachment: Annotated[str, Meta(pattern=r"\Ap[a-z2-7]{14}\Z")]
    """The name of the pod's OVS port, which also identifies the Pod (`flows.names.port_name`)."""
    direction: Direction
    other_end: IPv4Address
    ports: Annotated[tuple[DeniedPort, ...], Meta(min_length=1, max_length=MAX_DENIED_PORTS)]
    more_ports: bool = False
    """Whether other ports were denied as well."""


class NodeDenials(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """Packets that policy denied on a node (`paths.DENIALS`).

    The agent sends a pair at most once a minute. The controller writes Events about them.
    """

    pairs: Annotated[tuple[DeniedPair, ...], Meta(max_length=MAX_DENIED_PAIRS)] = ()
    left_out: Annotated[int, Meta(ge=0, lt=1 << 32)] = 0
    """Packets of further pairs, which the agent only counted."""


class Refusal(msgspec.Struct, frozen=True):
    """The body of every answer with a status of 400 or more."""

    error: str


def encode(
    document: NodeConfig
    | NodeServices
    | PeerRoutes
    | SwitchDigest
    | NodeProblems
    | NodeAddresses
    | NodeDenials
    | NodeBGP
    | NodeSessions
    | EgressUse
    | Refusal,
) -> bytes:
    """As JSON."""
    return msgspec.json.encode(document, enc_hook=str)


def decode_config(data: bytes) -> NodeConfig:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeConfig = from_json(data, NodeConfig)
    return document


def decode_services(data: bytes) -> NodeServices:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeServices = from_json(data, NodeServices)
    return document


def decode_peer_routes(data: bytes) -> PeerRoutes:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: PeerRoutes = from_json(data, PeerRoutes)
    return document


def decode_digest(data: bytes) -> SwitchDigest:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: SwitchDigest = from_json(data, SwitchDigest)
    return document


def decode_verdict(data: bytes) -> Verdict:
    """From JSON. Raises `msgspec.MsgspecError`.

    A later version may say "superseded", once no agent is left that knows only "moved on".
    """
    given: str = from_json(data, Literal["right", "moved on", "superseded", "drift"])
    return Verdict.SUPERSEDED if given == "superseded" else Verdict(given)


def decode_problems(data: bytes) -> NodeProblems:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeProblems = from_json(data, NodeProblems)
    return document


def decode_addresses(data: bytes) -> NodeAddresses:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeAddresses = from_json(data, NodeAddresses)
    return document


def decode_denials(data: bytes) -> NodeDenials:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeDenials = from_json(data, NodeDenials)
    return document


def decode_refusal(data: bytes) -> str:
    """The reason, from JSON. Raises `msgspec.MsgspecError`."""
    return str(from_json(data, Refusal).error)


def from_json(data: bytes, kind: Any) -> Any:
    """Raises `msgspec.MsgspecError`, also for what is nested too deep to be read."""
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=_decode)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deep") from None


def _decode(kind: type, value: Any) -> Any:
    return kind(value)


def decode_egress_use(data: bytes) -> EgressUse:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: EgressUse = from_json(data, EgressUse)
    return document


class _EgressUse(msgspec.Struct, frozen=True):
    """`EgressUse`, whose addresses are not read yet."""

    addresses: Annotated[tuple[msgspec.Raw, ...], Meta(max_length=MAX_EGRESS_ADDRESSES)] = ()
    tracked: Count = 0
    capacity: Count = 0


def egress_use(data: bytes) -> Generator[None, None, EgressUse]:
    """As `decode_egress_use`, in steps: a megabyte takes 0.2 s."""
    document: _EgressUse = from_json(data, _EgressUse)
    addresses = []
    for each in document.addresses:
        yield
        addresses.append(from_json(bytes(each), AddressUse))
    return EgressUse(tuple(addresses), document.tracked, document.capacity)


def decode_bgp(data: bytes) -> NodeBGP:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeBGP = from_json(data, NodeBGP)
    return document


def decode_sessions(data: bytes) -> NodeSessions:
    """From JSON. Raises `msgspec.MsgspecError`."""
    document: NodeSessions = from_json(data, NodeSessions)
    return document
