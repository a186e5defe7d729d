"""The lab's namespaces and the wires between them.

    outside ── fabric (a bridge, and the router to the outside) ── node1, ..., control, control2

With several subnets, each has a bridge of its own in the fabric, which routes between them.

Links are made inside the namespaces that they connect: the machine's own network has none of them.
"""

import contextlib
import json
from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from lab.commands import run
from lab.datapath import Datapath
from lab.layout import (
    FABRIC_ADDRESS,
    FABRIC_WORLD_ADDRESS,
    NAMESPACES,
    OUTSIDE_ADDRESS,
    UNDERLAY,
    WORLD,
    LabLayout,
    NodeLayout,
)

BRIDGE = "underlay"
UPLINK = "uplink"
"""A node's end of its wire to the fabric."""

# rp_filter is inherited from the machine, so it is set here.
_SYSCTLS = (
    "net.ipv6.conf.all.disable_ipv6=1",
    "net.ipv6.conf.default.disable_ipv6=1",
    "net.ipv4.conf.all.rp_filter=0",
    "net.ipv4.conf.default.rp_filter=0",
)


def create_namespace(name: str) -> None:
    """Make a namespace with its loopback up and no IPv6, unless it is there. Raises `LabError`."""
    if not is_namespace(NAMESPACES / name):
        (NAMESPACES / name).unlink(missing_ok=True)  # left by an `ip netns add` that was killed
        run(["ip", "netns", "add", name])
    # -e: a kernel without IPv6 does not have these.
    run(["sysctl", "-qew", *_SYSCTLS], netns=name)
    run(["ip", "link", "set", "lo", "up"], netns=name)


def delete_namespace(name: str) -> None:
    """Take a namespace's name away, and with it, when no process is left in it, all its links."""
    path = NAMESPACES / name
    if is_namespace(path):
        run(["ip", "netns", "del", name])
    path.unlink(missing_ok=True)


def is_namespace(path: Path) -> bool:
    """Whether a namespace, of any kind, is bound to this file."""
    # Only then does it belong to another device than its directory.
    with contextlib.suppress(FileNotFoundError):
        return path.stat().st_dev != path.parent.stat().st_dev
    return False


def namespaces(prefix: str) -> list[str]:
    """The names that begin so."""
    with contextlib.suppress(FileNotFoundError):
        return sorted(path.name for path in NAMESPACES.iterdir() if path.name.startswith(prefix))
    return []


def configure(netns: str, commands: Iterable[str]) -> None:
    """Carry out commands of `ip` in a namespace, by one process. Raises `LabError`."""
    run(["ip", "-batch", "-"], netns=netns, stdin="\n".join(commands))


def links(netns: str) -> set[str]:
    """The names of a namespace's interfaces."""
    return {link["ifname"] for link in json.loads(run(["ip", "-json", "link"], netns=netns))}


def connect(
    layout: LabLayout,
    nodes: Sequence[NodeLayout],
    datapath: Datapath,
    *,
    controllers: int = 1,
    routes: bool = True,
) -> None:
    """Make all namespaces and the fabric between them; what is there already is left alone.

    `routes`: whether the fabric is the router between the subnets and to the outside; otherwise it
    is bridges alone (`lab.leaves`).
    """
    fabric, outside = map(layout.netns, ("fabric", "outside"))
    places = layout.controllers(controllers)
    controls = [place.netns for place in places]
    for name in (fabric, outside, *controls, *(node.netns for node in nodes)):
        create_namespace(name)
    run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], netns=fabric)

    present = links(fabric)
    for subnet in layout.all_subnets:
        if (bridge := bridge_of(subnet)) not in present:
            configure(
                fabric,
                [
                    f"link add {bridge} type bridge mcast_snooping 0",
                    *_router(bridge, subnet[1], subnet.prefixlen if routes else None),
                    f"link set {bridge} up",
                ],
            )
    if "world" not in present:
        configure(fabric, _to_outside(outside, routes=routes))
        _address(outside, f"{OUTSIDE_ADDRESS}/{WORLD.prefixlen}", FABRIC_WORLD_ADDRESS)
    for place in places:
        if place.name not in present:
            configure(fabric, _bridged(place.name, "eth0", place.netns, place.address))
            _address(place.netns, f"{place.address}/{UNDERLAY.prefixlen}", FABRIC_ADDRESS)
    for node in nodes:
        if node.name not in present:
            wires = _bridged(node.name, UPLINK, node.netns, node.address, bridge_of(node.subnet))
            configure(fabric, wires)
            if datapath == "system":
                continue
            # Open vSwitch reads raw frames. With offload, their checksums would be left to a
            # network card that does not exist.
            run(["ethtool", "-K", node.name, "tx", "off"], netns=fabric)
            run(["ethtool", "-K", UPLINK, "tx", "off"], netns=node.netns)


def _router(bridge: str, address: IPv4Address, length: int | None) -> list[str]:
    """Give a bridge the address of the router; nothing without a prefix length."""
    if length is None:
        return []
    return [
        f"link set {bridge} address {mac_of(address)}",
        f"addr add {address}/{length} dev {bridge}",
    ]


def _to_outside(outside: str, *, routes: bool) -> list[str]:
    if routes:
        return [
            _wire("world", "eth0", outside, OUTSIDE_ADDRESS),
            f"addr add {FABRIC_WORLD_ADDRESS}/{WORLD.prefixlen} dev world",
            "link set world up",
        ]
    return [
        "link add world type bridge mcast_snooping 0",
        "link set world up",
        *_bridged("outside", "eth0", outside, OUTSIDE_ADDRESS, "world"),
    ]


def disconnect(layout: LabLayout, node: NodeLayout) -> None:
    """Take a node's wire and its namespace away."""
    # First the link: it exists until its namespace has ended, which takes a while.
    if node.name in links(layout.netns("fabric")):
        configure(layout.netns("fabric"), [f"link del {node.name}"])
    delete_namespace(node.netns)


def bridge_of(subnet: IPv4Network) -> str:
    """The fabric's bridge that is one subnet's link."""
    index = (int(subnet[0]) - int(UNDERLAY[0])) // UNDERLAY.num_addresses
    return f"{BRIDGE}{index + 1}" if index else BRIDGE


def router_mac(node: NodeLayout) -> str:
    """The MAC of the fabric in the node's subnet."""
    return mac_of(node.router)


def node_mac(node: NodeLayout) -> str:
    """The MAC of the node itself: of the interface that has its address."""
    return mac_of(node.address)


# All MACs are set explicitly: udev changes random ones.


def mac_of(address: IPv4Address, *, kind: int = 0) -> str:
    """Of the interface that has an address; of other ends of its wire with another `kind`."""
    return f"02:{kind:02x}:" + address.packed.hex(":")


def _wire(end: str, far_end: str, far_netns: str, far: IPv4Address) -> str:
    peer = f"peer name {far_end} address {mac_of(far, kind=1)} netns {far_netns}"
    return f"link add {end} address {mac_of(far, kind=2)} type veth {peer}"


def _bridged(
    end: str, far_end: str, far_netns: str, far: IPv4Address, bridge: str = BRIDGE
) -> list[str]:
    return [_wire(end, far_end, far_netns, far), f"link set {end} master {bridge} up"]


def _address(netns: str, address: str, gateway: IPv4Address) -> None:
    configure(
        netns,
        ["link set eth0 up", f"addr add {address} dev eth0", f"route add default via {gateway}"],
    )
