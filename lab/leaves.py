"""A fabric of two routers that speak BGP: FRR and BIRD, each with half of the nodes behind it.

    node1, node3, control ── leaf1 (FRR)  ──┐
                                            ├── outside
    node2, node4          ── leaf2 (BIRD) ──┘

The leaves know each other's subnet of nodes, and nothing of pods or Services: that they learn from
Sluice. The outside host sends half of its connections to each (ECMP by addresses and ports).
"""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final

from lab.commands import LabError, complete, run
from lab.daemons import Daemons
from lab.layout import FABRIC_WORLD_ADDRESS, UNDERLAY, WORLD, LabLayout
from lab.network import bridge_of, configure, create_namespace, links, mac_of

CLUSTER_ASN: Final = 64512
FRR: Final = Path("/usr/lib/frr")
_ECMP: Final = "net.ipv4.fib_multipath_hash_policy=1"
"""By addresses and ports, so that connections of one client spread."""
NAMES: Final = ("leaf1", "leaf2")


@dataclass(frozen=True)
class Leaf:
    """One of the two routers."""

    name: str
    netns: str
    directory: Path
    asn: int
    subnet: IPv4Network
    """Of its nodes."""
    outside: IPv4Address
    """Its address in the network that the outside host is in."""

    @property
    def address(self) -> IPv4Address:
        """Its address in the subnet of its nodes."""
        return self.subnet[1]

    @property
    def daemons(self) -> Daemons:
        return Daemons(self.netns, self.directory / "log")


def leaves(layout: LabLayout) -> tuple[Leaf, Leaf]:
    """Both, leaf1 first."""
    one, two = (
        Leaf(
            name=name,
            netns=layout.netns(name),
            directory=layout.directory / name,
            asn=64601 + index,
            subnet=layout.subnet(index),
            outside=FABRIC_WORLD_ADDRESS + index,
        )
        for index, name in enumerate(NAMES)
    )
    return one, two


def connect(layout: LabLayout) -> None:
    """Make the leaves' namespaces and wires. The bridges of the fabric are there already."""
    fabric, outside = layout.netns("fabric"), layout.netns("outside")
    both = leaves(layout)
    for index, leaf in enumerate(both):
        create_namespace(leaf.netns)
        run(["sysctl", "-qw", "net.ipv4.ip_forward=1", _ECMP], netns=leaf.netns)
        if "nodes" in links(leaf.netns):
            continue
        other = both[1 - index]
        configure(
            fabric,
            [
                *_wire(leaf.name, leaf.netns, "nodes", leaf.address, bridge_of(leaf.subnet)),
                *_wire(f"{leaf.name}w", leaf.netns, "world", leaf.outside, "world"),
            ],
        )
        configure(
            leaf.netns,
            [
                f"addr add {leaf.address}/{leaf.subnet.prefixlen} dev nodes",
                f"addr add {leaf.outside}/{WORLD.prefixlen} dev world",
                "link set nodes up",
                "link set world up",
                # Farther than its own nodes, so that it prefers these.
                f"route add {other.subnet} via {other.outside} metric 100",
            ],
        )
    run(["sysctl", "-qw", _ECMP], netns=outside)
    hops = " ".join(f"nexthop via {leaf.outside}" for leaf in both)
    configure(outside, [f"route replace default {hops}"])


def _wire(end: str, netns: str, far_end: str, far: IPv4Address, bridge: str) -> list[str]:
    peer = f"peer name {far_end} address {mac_of(far)} netns {netns}"
    return [
        f"link add {end} address {mac_of(far, kind=2)} type veth {peer}",
        f"link set {end} master {bridge} up",
    ]


def start(layout: LabLayout) -> None:
    """Start what does not run of FRR and BIRD; return when they listen. Raises `LabError`."""
    one, two = leaves(layout)
    _start_frr(one)
    _start_bird(two)


def peers(layout: LabLayout) -> list[dict[str, Any]]:
    """The BGPPeers by which Sluice knows them."""
    return [
        {
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "BGPPeer",
            "metadata": {"name": leaf.name},
            "spec": {
                "address": str(leaf.address),
                "asn": leaf.asn,
                "localASN": CLUSTER_ASN,
                # One of them is behind the other, for a controller.
                "multihop": 8,
                "announce": [
                    "PodRanges",
                    "LoadBalancerAddresses",
                    "ExternalIPs",
                    "EgressAddresses",
                ],
            },
        }
        for leaf in leaves(layout)
    ]


def vtysh(leaf: Leaf) -> list[str]:
    """The command line of FRR's shell, without its commands."""
    return ["vtysh", "--vty_socket", str(leaf.directory)]


def birdc(leaf: Leaf) -> list[str]:
    """The same of BIRD's."""
    return ["birdc", "-s", str(leaf.directory / "bird.ctl")]


def _start_frr(leaf: Leaf) -> None:
    _need(FRR / "bgpd", "frr")
    leaf.directory.mkdir(exist_ok=True)
    # FRR gives up root. Its sockets are for its own user.
    shutil.chown(leaf.directory, "frr", "frr")
    sources = "\n".join(
        f" bgp listen range {subnet} peer-group SLUICE" for subnet in _sources(leaf)
    )
    text = f"""\
hostname {leaf.name}
router bgp {leaf.asn}
 bgp router-id {leaf.address}
 no bgp ebgp-requires-policy
 no bgp default ipv4-unicast
 bgp graceful-restart
 neighbor SLUICE peer-group
 neighbor SLUICE remote-as {CLUSTER_ASN}
 neighbor SLUICE passive
 neighbor SLUICE ebgp-multihop 8
{sources}
 address-family ipv4 unicast
  neighbor SLUICE activate
  neighbor SLUICE route-map NOTHING out
  maximum-paths 16
 exit-address-family
exit
route-map NOTHING deny 1
exit
"""
    file = leaf.directory / "bgpd.conf"
    file.write_text(text)
    (leaf.directory / "zebra.conf").write_text(f"hostname {leaf.name}\n")
    zserv = leaf.directory / "zserv.api"
    for name in ("zebra", "bgpd"):
        leaf.daemons.start(
            name,
            [
                str(FRR / name),
                *("-u", "frr", "-g", "frr", "-f", str(leaf.directory / f"{name}.conf")),
                *("-i", str(leaf.directory / f"{name}.run"), "-z", str(zserv)),
                *("--vty_socket", str(leaf.directory), "--log", "stdout"),
            ],
            listens_at=_at(leaf.directory / f"{name}.vty"),
        )


def _start_bird(leaf: Leaf) -> None:
    _need(Path("/usr/sbin/bird"), "bird2")
    leaf.directory.mkdir(exist_ok=True)
    control = leaf.directory / "bird.ctl"
    sources = "\n".join(
        f"protocol bgp sluice{number} from sluice {{ neighbor range {subnet} as {CLUSTER_ASN};"
        f' dynamic name "sluice{number}_"; }}'
        for number, subnet in enumerate(_sources(leaf))
    )
    text = f"""\
router id {leaf.address};
protocol device {{ scan time 5; }}
protocol direct {{ ipv4; }}
protocol static {{ ipv4; route {UNDERLAY} via {FABRIC_WORLD_ADDRESS}; }}
protocol kernel {{
  merge paths on limit 16;
  graceful restart on;
  ipv4 {{ import none; export where source = RTS_BGP; }};
}}
template bgp sluice {{
  local as {leaf.asn};
  multihop;
  passive;
  graceful restart on;
  ipv4 {{ import all; export none; add paths rx; }};
}}
{sources}
"""
    file = leaf.directory / "bird.conf"
    file.write_text(text)
    leaf.daemons.start(
        "bird",
        ["/usr/sbin/bird", "-f", "-c", str(file), "-s", str(control)],
        listens_at=_at(control),
    )


def _at(path: Path) -> Callable[[int], Path]:
    return lambda _: path


def _sources(leaf: Leaf) -> list[IPv4Network]:
    """Where sessions may come from: controllers are in the first subnet, nodes in both."""
    return list(dict.fromkeys((UNDERLAY, leaf.subnet)))


def _need(program: Path, package: str) -> None:
    if not os.access(program, os.X_OK):
        raise LabError(f"{program} is missing: install Debian's package {package} (make setup)")


def ask(leaf: Leaf, command: str) -> str:
    """What a router answers to a command of its shell. Raises `LabError`."""
    shell = [*vtysh(leaf), "-c", command] if leaf.name == "leaf1" else [*birdc(leaf), command]
    done = complete(shell, timeout=20)
    if done.returncode:
        raise LabError(f"{leaf.name}: {command}: {(done.stderr + done.stdout).strip()}")
    return done.stdout
