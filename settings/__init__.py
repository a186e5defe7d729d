"""The configuration file, its schema and its checks. Controller and node agent read the same file.

A file with an unknown key, a wrong type or overlapping ranges is refused as a whole, with one
sentence that names the field (`SettingsError`).
"""

import os
import re
import socket
from ipaddress import IPv4Address, IPv4Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from settings import plain_yaml
from settings.plain_yaml import shown

SocketAddress: TypeAlias = Annotated[
    str,
    Meta(
        pattern=r"^([a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\]):"
        r"(6553[0-5]|655[0-2]\d|65[0-4]\d\d|6[0-4]\d{3}|[1-5]\d{4}|\d{1,4})$"
    ),
]
"""`HOST:PORT`."""
Host: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9]([a-zA-Z0-9.-]{0,252}[a-zA-Z0-9])?$")]
"""An IPv4 address or a DNS name."""
NamespaceName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
ServiceAccountName: TypeAlias = Annotated[
    str,
    Meta(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"),
]
"""`NAMESPACE/NAME`."""
PortNumber: TypeAlias = Annotated[int, Meta(ge=1, le=65535)]


MOST_CONTROLLERS: Final = 8
"""Each costs every node a session and a long poll."""


class SettingsError(ValueError):
    """The configuration cannot be used; the text names file and field."""


class Tls(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Mutual TLS: PEM files of our key, our certificate, and the CA that signed the peers'."""

    key: Path
    certificate: Path
    ca: Path


class ControllerEnrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The controller as CA of the nodes: it signs certificates for agents that prove their node.

    Key and certificate of the CA are in the Secret `sluice-ca` (`tls.key`, `tls.crt`); the
    certificate is also in the ConfigMap `sluice-ca` (`ca.crt`), which everybody may read. Both
    objects must exist; the controller fills them where they are empty.
    """

    namespace: NamespaceName = "sluice-system"
    addresses: tuple[Host, ...] = ()
    """Addresses of this controller, as in `agent.controllers`. Empty: $HOST_IP."""
    lifetime: Annotated[float, Meta(ge=5, le=366 * 86_400)] = 86_400.0
    """Seconds for which a certificate is valid, also the controller's own. It is renewed after two
    thirds of that time."""


class Reports(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A listener that serves reports to viewers.

    A viewer is who may create a token of the ServiceAccount `sluice-viewer`.
    """

    address: SocketAddress = "127.0.0.1:6655"
    """`HOST:PORT`. A port-forward reaches loopback."""
    namespace: NamespaceName = "sluice-system"
    """Where that ServiceAccount is."""
    scrapers: tuple[ServiceAccountName, ...] = ()
    """ServiceAccounts that may read the metrics of nodes, and nothing else: with a token of their
    own whose audience is `sluice-reports`."""


class AgentEnrolment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an agent proves to the controller which node it runs on, to get a certificate."""

    token: Path
    """A ServiceAccount token of the agent's own Pod, projected, with the audience `sluice`."""
    ca: Path
    """The CA of the controller, PEM."""


class PolicySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What the policy API leaves to the network; docs/decisions.md has the reasons."""

    established: Literal["keep", "cut"] = "keep"
    """What happens to an established connection that a changed policy forbids."""
    node_local_dns: bool = False
    """Whether policy from the pod lets every pod reach port 53 (UDP, TCP) of its own node."""
    mirror_pods_as_members: bool = False
    """Whether selectors match mirror pods. A kubelet may create one with any namespace and labels,
    so then a stolen node can put a pod of its own into the peers of any policy."""
    log_denials: bool = False
    """Whether the agents log denied packets, and Pods get Events about them: a bounded number."""


class NetworkSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """How packets of pods get from node to node."""

    mode: Literal["encap", "noEncap", "hybrid"] = "encap"
    """By the tunnel; by the hosts' routes without encapsulation; or without it within a subnet. The
    label `sluice.dev/network-mode` of a Node overrides it for this node."""


class ClusterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """What all nodes share. The ranges must not overlap each other or the addresses of any host."""

    pod_range: IPv4Network
    service_range: IPv4Network
    host_ranges: tuple[IPv4Network, ...] = ()
    tunnel: Literal["geneve", "vxlan"] = "geneve"
    tunnel_id: Annotated[int, Meta(ge=1, lt=1 << 24)] = 1
    """The VNI (24 bits)."""
    mtu: Annotated[int, Meta(ge=576, le=65535)] | None = None
    """The largest MTU of pods, in bytes; less where the uplink has less. None: the uplink's.

    Set it where uplinks differ: a full packet of a pod must fit the uplink of every other node."""
    new_connections_per_second: Annotated[int, Meta(ge=1, lt=1 << 32)] = 4_000
    """Connections that one pod may open, on average and in a burst."""
    policy: PolicySettings = PolicySettings()
    network: NetworkSettings = NetworkSettings()

    @property
    def tunnel_port(self) -> int:
        """The tunnel's UDP port (RFC 8926, RFC 7348)."""
        return {"geneve": 6081, "vxlan": 4789}[self.tunnel]


class Kubernetes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Where the API server is: a kubeconfig, or none for the ServiceAccount of the Pod."""

    kubeconfig: Path | None = None


LabelMatch = Annotated[
    str, Meta(pattern=r"^([-a-z0-9.]{1,253}/)?[-_.A-Za-z0-9]{1,63}(=[-_.A-Za-z0-9]{0,63})?$")
]
"""`KEY` or `KEY=VALUE`."""
EXCLUDED_NODES: Final = ("kubernetes.io/os=windows", "type=virtual-kubelet", "sluice.dev/excluded")


_NODE_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"


class Election(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Which of several controllers writes: the one that holds a Lease."""

    namespace: NamespaceName = "kube-system"
    """Where the Lease is."""
    name: Annotated[str, Meta(pattern=_NODE_NAME)] = "sluice-controller"
    address: SocketAddress | None = None
    """Where the other controllers reach the API of this one. None: at `api`; where that is no
    address, at $HOST_IP and its port."""


class BGP(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sessions with routers of the network. BGPPeers say which."""

    namespace: NamespaceName = "sluice-system"
    """Where the Secrets with their passwords are."""


class Controller(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Addresses of the controller, `HOST:PORT`, and the source of the cluster's objects."""

    openflow: SocketAddress = "0.0.0.0:6653"
    api: SocketAddress = "0.0.0.0:6654"
    api_socket: Path | None = None
    """A unix socket for local users of the same API, for example the command line."""
    reports: Reports | None = None
    """Serve reports to viewers too, with TLS. None: only on `apiSocket`."""
    directory: Path | None = None
    """Read manifests from this directory; overrides `kubernetes`. Same as `--cluster DIR`."""
    kubernetes: Kubernetes = Kubernetes()
    election: Election = Election()
    """Needs an API server: with a directory, this controller is the only one."""
    tls: Tls | None = None
    enrolment: ControllerEnrolment | None = None
    plain_tcp: bool = False
    bgp: BGP = BGP()
    excluded_nodes: tuple[LabelMatch, ...] = EXCLUDED_NODES
    """Labels of Nodes on which Sluice does not run: they get no flows and no condition."""

    def __post_init__(self) -> None:
        """Raise `ValueError` unless exactly one way of authentication is given."""
        _exactly_one(tls=self.tls, enrolment=self.enrolment, plainTcp=self.plain_tcp)
        if self.reports and self.plain_tcp:
            raise ValueError("`reports` needs TLS: give `tls` or `enrolment`, not `plainTcp`")


def _this_node() -> str:
    """$NODE_NAME, or the name that a kubelet gives its Node by default."""
    name = os.environ.get("NODE_NAME") or socket.gethostname().lower()
    if not re.match(_NODE_NAME, name):
        raise ValueError(f"agent.node: {shown(name)} is not a valid Node name; set $NODE_NAME")
    return name


class Agent(
    msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel", kw_only=True
):  # fmt: skip
    """One node's agent."""

    node: Annotated[str, Meta(pattern=_NODE_NAME)] = msgspec.field(default_factory=_this_node)
    controllers: Annotated[tuple[Host, ...], Meta(min_length=1, max_length=MOST_CONTROLLERS)]
    """Open vSwitch connects to each of them; the agent asks any of them, and tells each."""
    openflow_port: PortNumber = 6653
    api_port: PortNumber = 6654
    datapath: Literal["system", "netdev"] = "system"
    state: Path = Path("/var/lib/sluice")
    """Directory for leases and other state; must survive a reboot."""
    socket: Path = Path("/run/sluice/cni.sock")
    ovsdb: Path = Path("/run/openvswitch/db.sock")
    ovs_run: Path = Path("/run/openvswitch")
    cni_conf: Path = Path("/etc/cni/net.d")
    cni_bin: Path = Path("/opt/cni/bin")
    sysctl: Path = Path("/proc/sys")
    """Where sysctls can be written; in a container /proc/sys is read-only."""
    tls: Tls | None = None
    enrolment: AgentEnrolment | None = None
    plain_tcp: bool = False
    add_timeout: Annotated[float, Meta(gt=0, le=200)] = 20.0
    """Seconds that ADD waits for the switch to hold the pod's flows."""
    status_grace: Annotated[float, Meta(ge=0)] = 60.0
    """Seconds without a controller session after which STATUS reports it."""
    audit_interval: Annotated[float, Meta(gt=0)] = 10.0
    """Seconds between two audits of the switch, about."""
    healthz_port: Annotated[int, Meta(ge=0, lt=1 << 16)] = 10256
    """Where load balancers ask whether this node takes connections, as they ask kube-proxy; 0: at
    no port."""
    quarantine: Annotated[float, Meta(ge=0)] = 30.0
    """Seconds before a released address is leased again."""

    def __post_init__(self) -> None:
        """Raise `ValueError` where fields contradict each other."""
        _exactly_one(tls=self.tls, enrolment=self.enrolment, plainTcp=self.plain_tcp)
        if len(set(self.controllers)) < len(self.controllers):
            raise ValueError("`controllers` has an entry twice")

    @property
    def api_urls(self) -> tuple[str, ...]:
        """Where the controllers' APIs are."""
        scheme = "http" if self.plain_tcp else "https"
        return tuple(f"{scheme}://{host}:{self.api_port}" for host in self.controllers)


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file. A process refuses a file without the sections that it needs."""

    cluster: ClusterSettings | None = None
    controller: Controller | None = None
    agent: Agent | None = None
    log_level: Literal["debug", "info", "warning", "error"] = msgspec.field(
        default="info", name="logLevel"
    )


def load(path: Path) -> Settings:
    """Read and check a configuration file. Raises `SettingsError`."""
    try:
        content = plain_yaml.document(path.read_text())
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}") from error
    except ValueError as error:
        raise SettingsError(f"{path}: not YAML: {error}") from error
    if not isinstance(content, dict):
        raise SettingsError(f"{path}: not a mapping of cluster, controller, agent, logLevel")
    try:
        settings = msgspec.convert(content, Settings, dec_hook=_decode)
    except (msgspec.ValidationError, ValueError) as error:
        raise SettingsError(f"{path}: {error}") from error
    if settings.cluster is not None:
        check_ranges(settings.cluster, str(path))
    return settings


def check_ranges(cluster: ClusterSettings, where: str) -> None:
    """Raise `SettingsError` where two of the cluster's ranges overlap."""
    ours = [
        ("cluster.podRange", cluster.pod_range),
        ("cluster.serviceRange", cluster.service_range),
        *((f"cluster.hostRanges[{i}]", r) for i, r in enumerate(cluster.host_ranges)),
    ]
    nobodys = [
        ("the link-local range of the virtual gateway", IPv4Network("169.254.0.0/16")),
        ("the loopback range", IPv4Network("127.0.0.0/8")),
        ("the multicast range", IPv4Network("224.0.0.0/4")),
    ]
    for index, (name, network) in enumerate(ours):
        # Host ranges may lie in one another.
        others = [] if name.startswith("cluster.hostRanges") else ours[index + 1 :]
        for other_name, other in (*others, *nobodys):
            if network.overlaps(other):
                raise SettingsError(f"{where}: {name} {network} overlaps {other_name} {other}")


def _exactly_one(**given: object) -> None:
    names = [name for name, value in given.items() if value]
    if len(names) != 1:
        said = " and ".join(f"`{name}`" for name in names) or "nothing"
        raise ValueError(
            f"{said} where exactly one of `tls`, `enrolment`, `plainTcp: true` is to say"
            " how controller and nodes know each other"
        )


def _decode(kind: type, value: Any) -> Any:
    if kind is IPv4Network:
        return _network(value)
    if kind is IPv4Address:
        return IPv4Address(value)
    if issubclass(kind, Path):
        return _path(value)
    raise NotImplementedError(kind)


def _path(value: Any) -> Path:
    if not isinstance(value, str) or not value or "\0" in value:
        raise ValueError(f"{shown(value)} is not a path")
    return Path(value)


def _network(value: Any) -> IPv4Network:
    if not isinstance(value, str):
        raise ValueError(f"{shown(value)} is not a CIDR")  # noqa: TRY004 - msgspec adds the field's name
    try:
        network = ip_network(value)
    except ValueError as error:
        raise ValueError(f"{shown(value)} is not a CIDR: {error}") from None
    if not isinstance(network, IPv4Network):
        raise ValueError(f"{shown(value)} is not an IPv4 CIDR; this cluster is IPv4-only")  # noqa: TRY004
    return network
