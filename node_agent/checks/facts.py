"""Facts of one host, and what the cluster wants of it, as values. Nothing here looks at anything.

None stands for "could not be read"; the reason is in `Facts.unchecked`.
"""

from datetime import datetime
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Literal

import msgspec

from wire.findings import Peer


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What the settings and the cluster say about the node."""

    node: str
    installed: bool
    """Whether Sluice runs on this node already."""
    address: IPv4Address | None = None
    """The Node's InternalIP; None: nobody said."""
    pod_range: IPv4Network
    service_range: IPv4Network
    tunnel: Literal["geneve", "vxlan"] = "geneve"
    datapath: Literal["system", "netdev"] = "system"
    controllers: tuple[str, ...] = ()
    openflow_port: int = 6653
    api_port: int = 6654
    healthz_port: int = 10256
    peers: tuple[Peer, ...] = ()
    mtu: int | None = None
    """`cluster.mtu`."""
    certificates: tuple[Path, ...] = ()
    """Files with certificates."""
    together: float = 0.0
    """Seconds in which the peers are checked as well, and answer at the tunnel's port; 0: they do
    not."""

    @property
    def tunnel_port(self) -> int:
        """The tunnel's UDP port."""
        return {"geneve": 6081, "vxlan": 4789}[self.tunnel]


class Link(msgspec.Struct, frozen=True):
    """An interface."""

    name: str
    kind: str = ""
    """As netlink has it: veth, bridge, vxlan ...; empty: a device."""
    mtu: int = 1500
    tunnel_port: int | None = None
    """UDP port of a VXLAN or Geneve interface."""


class HostAddress(msgspec.Struct, frozen=True):
    """An address of the host itself."""

    address: IPv4Address
    link: str


class HostRoute(msgspec.Struct, frozen=True):
    """A route that takes traffic."""

    network: IPv4Network
    link: str
    metric: int = 0


class Chain(msgspec.Struct, frozen=True):
    """A chain of nftables, or of iptables, whose tables are seen as nftables."""

    family: str
    table: str
    name: str
    hook: str = ""
    """Empty: other chains jump to it."""
    policy: str = ""
    program: str = "nft"
    """What shows it: `nft`, or `iptables-legacy`."""
    names_gateway: bool = False
    """Whether one of its rules names the interface `sluice-gw`. Looked up for the chains of the
    hook `forward` that drop by policy, only."""

    @property
    def title(self) -> str:
        """For people."""
        return f"chain {self.name} of table {self.family} {self.table}"


class CniFile(msgspec.Struct, frozen=True):
    """A file that a container runtime would read."""

    path: str
    plugins: tuple[str, ...]
    """Their types; none: it cannot be read."""


class Certificate(msgspec.Struct, frozen=True):
    """One of PEM."""

    path: str
    not_before: datetime
    not_after: datetime
    is_ca: bool = False


class Listener(msgspec.Struct, frozen=True):
    """A socket of the host that waits for others."""

    protocol: Literal["TCP", "UDP"]
    port: int


class ControllerSession(msgspec.Struct, frozen=True):
    """A connection that the switch keeps to a controller."""

    target: str
    """As in OVSDB, for example `tcp:192.0.2.1:6653`."""
    is_connected: bool
    why: str = ""
    """Why not, as far as Open vSwitch says; or the state of the connection."""


class OpenVSwitch(msgspec.Struct, frozen=True):
    """What its two daemons say."""

    database: str = ""
    """Why ovsdb-server does not answer; empty: it does."""
    switch: str = ""
    """Why ovs-vswitchd does not answer; empty: it does."""
    version: str = ""
    """Of ovs-vswitchd; empty: unknown."""
    other_owner: str = ""
    """To whom `br-int` belongs, if neither to us nor to nobody."""
    sessions: tuple[ControllerSession, ...] = ()
    """Those that the agent has set up."""


class Reached(msgspec.Struct, frozen=True):
    """An attempt to connect to a controller."""

    host: str
    port: int
    problem: str = ""
    """Empty: connected."""
    refused: bool = False
    """The machine answers, and no program listens."""


class PathMtu(msgspec.Struct, frozen=True):
    """What full packets to another node come to."""

    peer: Peer
    wanted: int
    """Bytes of the largest IP packet that the node may send."""
    found: int | None
    """Bytes of the largest that was answered; None: none was."""
    through_tunnel: bool = False


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that is known about a host."""

    kernel: str
    """Its release."""
    modules: dict[str, bool]
    """By name, whether the kernel has the module, loaded or not. Unknown ones are missing."""
    python: tuple[int, ...] | None = ()
    """Version of /usr/bin/python3, which runs a CNI plugin that is not compiled; (): there is none.

    None: nothing needs it.
    """
    nft: str | None = ""
    """Version; empty: there is no such program."""
    nft_problem: str = ""
    """Why it cannot list the chains."""
    chains: tuple[Chain, ...] = ()
    tables: tuple[tuple[str, str], ...] = ()
    """Family and name."""
    open_vswitch: OpenVSwitch = OpenVSwitch()
    links: tuple[Link, ...] = ()
    addresses: tuple[HostAddress, ...] = ()
    routes: tuple[HostRoute, ...] = ()
    cni_files: tuple[CniFile, ...] = ()
    certificates: tuple[Certificate, ...] = ()
    listeners: frozenset[Listener] = frozenset()
    reached: tuple[Reached, ...] = ()
    paths: tuple[PathMtu, ...] = ()
    silent: tuple[Peer, ...] = ()
    """Nodes that do not answer at the tunnel's port, though they are checked together."""
    clock_offset: float | None = None
    """Seconds that this host is ahead of a controller."""
    now: datetime
    unchecked: tuple[str, ...] = ()


def encode_wanted(wanted: Wanted) -> bytes:
    """As JSON."""
    return msgspec.json.encode(wanted, enc_hook=str)


def decode_wanted(data: bytes) -> Wanted:
    """From JSON. Raises `msgspec.MsgspecError` and `ValueError`."""
    return msgspec.json.decode(data, type=Wanted, dec_hook=lambda kind, value: kind(value))
