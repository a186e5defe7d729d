"""A lab's names, addresses and paths; all follow from its name."""

import re
from dataclasses import dataclass
from hashlib import sha256
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

LABS = Path("/run/sluice-lab")
DISKS = Path("/var/lib/sluice-lab")
"""What cannot be in /run: images and containers, and programs."""
NAMESPACES = Path("/run/netns")
"""Where `ip netns` keeps its names."""

# Every lab uses the same addresses: they exist only inside its namespaces.
UNDERLAY = IPv4Network("172.30.0.0/16")
FABRIC_ADDRESS = IPv4Address("172.30.0.1")
CONTROL_ADDRESS = IPv4Address("172.30.0.2")
FIRST_NODE_ADDRESS = IPv4Address("172.30.1.1")
POD_RANGE = IPv4Network("10.244.0.0/16")
SERVICE_RANGE = IPv4Network("10.96.0.0/16")
CLUSTER_DNS = SERVICE_RANGE[10]
"""What kubelets tell their pods to ask."""
STATIC_PODS = "/etc/kubernetes/manifests"
"""Where a node's kubelet looks for pods that no API server has told it of."""
# Outside the cluster, in a range that is reserved for documentation (RFC 5737).
WORLD = IPv4Network("203.0.113.0/24")
FABRIC_WORLD_ADDRESS = IPv4Address("203.0.113.1")
OUTSIDE_ADDRESS = IPv4Address("203.0.113.10")

MOST_SUBNETS = 2
"""Of nodes. The fabric routes between them."""
MOST_NODES = 255
"""As many /24 as `POD_RANGE` has, less its first."""
MOST_CONTROLLERS = 3

OPENFLOW_PORT = 6653
API_PORT = 6654

_NAME = re.compile(r"[a-z0-9-]{1,20}")


@dataclass(frozen=True)
class NodeLayout:
    """One node: what it is called, its addresses, and its own directory."""

    name: str
    netns: str
    address: IPv4Address
    subnet: IPv4Network
    """Of its address."""
    pod_cidr: IPv4Network
    """Where the lab itself writes the Node down; else the controller-manager hands it out."""
    directory: Path
    disk: Path
    cgroup: str
    """Of everything that kubelet runs, in each hierarchy."""

    @property
    def router(self) -> IPv4Address:
        """The fabric's address in the node's subnet."""
        return self.subnet[1]

    @property
    def interface(self) -> str:
        """Its address with the prefix length of its subnet."""
        return f"{self.address}/{self.subnet.prefixlen}"

    @property
    def ovs_run(self) -> Path:
        """OVS_RUNDIR of this node's Open vSwitch."""
        return self.directory / "ovs"

    @property
    def ovsdb(self) -> Path:
        return self.ovs_run / "db.sock"

    @property
    def mgmt(self) -> Path:
        """The OpenFlow socket of br-int for programs on this node."""
        return self.ovs_run / "br-int.mgmt"

    @property
    def settings(self) -> Path:
        return self.directory / "sluice.yaml"

    @property
    def logs(self) -> Path:
        return self.directory / "log"

    @property
    def cni_socket(self) -> Path:
        # In a directory of its own, which the agent opens to root only.
        return self.directory / "agent" / "cni.sock"

    @property
    def cni_conf(self) -> Path:
        return self.directory / "cni" / "net.d"

    @property
    def cni_bin(self) -> Path:
        # Not in /run, which Debian mounts noexec.
        return self.disk / "cni" / "bin"

    @property
    def static_pods(self) -> Path:
        """Manifests of pods that kubelet runs without an API server."""
        return self.directory / "manifests"

    @property
    def state(self) -> Path:
        """What the agent keeps across a reboot."""
        return self.directory / "state"

    @property
    def namespaces(self) -> Path:
        """The namespaces besides the network's, where the node has some (`lab.machine`)."""
        return self.directory / "ns"

    @property
    def private_paths(self) -> dict[str, Path]:
        """What the node's own mounts show at the paths that every machine has."""
        return {
            "/run/openvswitch": self.ovs_run,
            "/run/sluice": self.cni_socket.parent,
            "/etc/cni/net.d": self.cni_conf,
            "/opt/cni/bin": self.cni_bin,
            STATIC_PODS: self.static_pods,
            "/var/lib/sluice": self.state,
            "/var/lib/containerd": self.disk / "containerd",
            "/var/lib/kubelet": self.disk / "kubelet",
            "/var/log/pods": self.disk / "pods",
            "/var/log/containers": self.disk / "containers",
        }


@dataclass(frozen=True)
class ControllerLayout:
    """One controller: its namespace, address and directory. The API server is beside the first."""

    name: str
    """Of its namespace: control, control2, control3."""
    certificate: str
    netns: str
    address: IPv4Address
    directory: Path
    api_socket: Path
    """Its API for local users."""

    @property
    def settings(self) -> Path:
        return self.directory / "sluice.yaml"

    @property
    def logs(self) -> Path:
        return self.directory / "log"


@dataclass(frozen=True)
class LabLayout:
    """The whole lab. Raises `ValueError` for a name that could not be part of a path."""

    name: str
    subnets: int = 1
    """The subnets that the nodes are in, in turn. Controllers are in the first."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"lab name {self.name!r}: 1 to 20 of a-z, 0-9 and - are allowed")

    @property
    def directory(self) -> Path:
        return LABS / self.name

    @property
    def disk(self) -> Path:
        return DISKS / self.name

    @property
    def cgroup(self) -> str:
        return self.prefix.rstrip(".")

    @property
    def lock(self) -> Path:
        # Beside the directory, which comes and goes while it is held. No lab's name has a dot.
        return LABS / f"{self.name}.lock"

    @property
    def spec(self) -> Path:
        return self.directory / "lab.json"

    @property
    def cluster(self) -> Path:
        """The manifests, where the source is a directory."""
        return self.directory / "cluster"

    @property
    def pods(self) -> Path:
        """What the lab as container runtime remembers of each pod."""
        return self.directory / "pods"

    @property
    def api_socket(self) -> Path:
        """The first controller's API for local users."""
        return self.controller(1).api_socket

    @property
    def control(self) -> Path:
        """The directory of the first controller and the API server."""
        return self.controller(1).directory

    @property
    def prefix(self) -> str:
        """The prefix of the names of all namespaces of this lab, and of no other lab."""
        return f"sluice.{self.name}."

    def netns(self, role: str) -> str:
        """The name of a namespace: `fabric`, `outside`, a controller's or a node's name."""
        return self.prefix + role

    def pod_netns(self, namespace: str, name: str) -> str:
        full = f"{namespace}.{name}"
        short = full if len(full) <= 60 else sha256(full.encode()).hexdigest()[:16]
        return f"{self.prefix}pod.{short}"

    def controller(self, number: int) -> ControllerLayout:
        """The controller with this number, from 1."""
        suffix = "" if number == 1 else str(number)
        name = f"control{suffix}"
        return ControllerLayout(
            name=name,
            certificate=f"controller{suffix}",
            netns=self.netns(name),
            address=CONTROL_ADDRESS + (number - 1),
            directory=self.directory / name,
            api_socket=self.directory / f"api{suffix}.sock",
        )

    def controllers(self, count: int) -> tuple[ControllerLayout, ...]:
        return tuple(self.controller(number) for number in range(1, count + 1))

    def subnet(self, index: int) -> IPv4Network:
        """The subnet with this index, from 0: `UNDERLAY`, and those after it."""
        size = UNDERLAY.num_addresses
        return IPv4Network((int(UNDERLAY[0]) + index * size, UNDERLAY.prefixlen))

    @property
    def all_subnets(self) -> tuple[IPv4Network, ...]:
        return tuple(map(self.subnet, range(self.subnets)))

    def node(self, number: int) -> NodeLayout:
        """The node with this number, from 1."""
        name = f"node{number}"
        subnet = self.subnet((number - 1) % self.subnets)
        first = subnet[int(FIRST_NODE_ADDRESS) - int(UNDERLAY[0])]
        return NodeLayout(
            name=name,
            netns=self.netns(name),
            address=first + (number - 1),
            subnet=subnet,
            pod_cidr=IPv4Network((int(POD_RANGE[0]) + (number << 8), 24)),
            directory=self.directory / "nodes" / name,
            disk=self.disk / name,
            cgroup=f"{self.cgroup}/{name}",
        )

    def nodes(self, count: int) -> tuple[NodeLayout, ...]:
        return tuple(self.node(number) for number in range(1, count + 1))
