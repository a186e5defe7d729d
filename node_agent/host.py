"""The node's own network: its uplinks, what conflicts with the cluster, its gateway to the pods.

All through one netlink socket in the namespace that the agent runs in.
"""

import asyncio
import errno
import socket
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any, Final

import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from node_agent import routes
from node_agent.faults import NodeFault
from node_agent.sysctl import Sysctls
from wire.documents import NodeConfig

NUD_PERMANENT: Final = 0x80
_RTN_UNICAST: Final = 1
FORWARDING_TYPES: Final = {_RTN_UNICAST, 6, 7, 8, 9}
"""Also blackhole, unreachable, prohibit and throw (rtnetlink(7)): they take traffic as well."""
_IFF_UP: Final = 1
_IFF_LOOPBACK: Final = 8
_SCOPE_GLOBAL: Final = 0
_ROUTER: Final = str(names.ROUTER_ADDRESS)

log = structlog.get_logger()


class HostError(NodeFault):
    """The host cannot carry the node that the cluster describes; the text names both."""


def pod_mtu(uplink_mtu: int, config: NodeConfig) -> int:
    """The MTU of pods: what the uplink and the tunnel leave, or less where the cluster says so."""
    left = uplink_mtu - (names.ENCAPSULATION_OVERHEAD if config.uses_tunnel else 0)
    return left if config.mtu is None else min(left, config.mtu)


@dataclass(frozen=True, slots=True)
class Uplink:
    """What `check` finds."""

    mtu: int
    """Bytes that every way to other nodes carries."""
    problems: tuple[str, ...]
    """What is wrong with the host's network although it works; each one a sentence."""
    addresses: tuple[IPv4Address, ...] = ()
    """The host's own that others may reach it by, sorted."""
    own: IPv4Interface | None = None
    """The Node's address, with the prefix length of its subnet."""


async def check(
    netlink: AsyncIPRoute, config: NodeConfig, direct: Collection[IPv4Network] = ()
) -> Uplink:
    """Whether this host fits the configuration.

    `direct` are the podCIDRs of peers that are reached without the tunnel: the host may have routes
    to these from others, as a routing daemon learns them.

    Raises `HostError` where the node's address is on no interface or lies in one of the cluster's
    ranges, or where the podCIDR is not in the pod range.
    """
    ranges = {"cluster.podRange": config.pod_range, "cluster.serviceRange": config.service_range}
    who = f"Node {config.node}"
    for field, network in ranges.items():
        if config.address in network:
            raise HostError(f"{who}: its address {config.address} lies in {field} {network}")
    if not config.pod_cidr.subnet_of(config.pod_range):
        raise HostError(
            f"{who}: spec.podCIDR {config.pod_cidr} is not in cluster.podRange {config.pod_range}"
        )
    links = {link["index"]: link async for link in await netlink.get_links()}
    addresses = [address async for address in await netlink.get_addr(family=socket.AF_INET)]
    own = next(
        (a for a in addresses if address_of(a) == config.address and a["index"] in links), None
    )
    if own is None:
        raise HostError(
            f"{who}: its address {config.address} (status.addresses, InternalIP) is on no "
            "interface of this host"
        )
    uplink = links[own["index"]]
    found = await routes.dump(netlink, table=routes.MAIN)
    link_names = {index: str(link.get_attr("IFLA_IFNAME")) for index, link in links.items()}
    problems = [
        f"{who}: {field} {ranges[field]} overlaps the host's {what} on {link}"
        for field, what, link in (
            *_taking_addresses(addresses, link_names, config.pod_range),
            *_taking_routes(found, link_names, ranges, direct),
        )
    ]
    mtus = _mtus(uplink, links, found, config.host_ranges)
    if len(set(mtus.values())) > 1:
        log.debug("uplinks of different MTU", mtus=mtus)
    reachable = {
        address_of(address)
        for address in addresses
        if address["scope"] == _SCOPE_GLOBAL
        and link_names.get(address["index"]) != names.GATEWAY_PORT
        and not address_of(address).is_link_local
        and not any(address_of(address) in network for network in ranges.values())
    }
    interface = IPv4Interface((config.address, own["prefixlen"]))
    return Uplink(min(mtus.values()), tuple(problems), tuple(sorted(reachable)), interface)


def address_of(address: Any) -> IPv4Address:
    return IPv4Address(address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS"))


def _taking_addresses(
    addresses: Iterable[Any], link_names: Mapping[int, str], pod_range: IPv4Network
) -> Iterator[tuple[str, str, str]]:
    """Addresses of the host that are a pod's: which range, what, and on which interface.

    One of the Service range is no conflict: NodeLocal DNSCache has that of kube-dns on purpose.
    """
    for address in addresses:
        link = link_names.get(address["index"], "?")
        if link != names.GATEWAY_PORT and address_of(address) in pod_range:
            yield "cluster.podRange", f"address {address_of(address)}/{address['prefixlen']}", link


def _taking_routes(
    found: Iterable[Any],
    link_names: Mapping[int, str],
    ranges: Mapping[str, IPv4Network],
    direct: Collection[IPv4Network],
) -> Iterator[tuple[str, str, str]]:
    """Routes of the host that win over ours: which range, what, and to which interface.

    The longest prefix decides, so a wider route (a VPN's 0.0.0.0/1) takes nothing from a range.
    """
    for route in found:
        link = link_names.get(route.get_attr("RTA_OIF"), "?")
        network = routes.destination_of(route)
        is_ours = link == names.GATEWAY_PORT or route["proto"] == routes.PROTOCOL
        if is_ours or network in direct or route["type"] not in FORWARDING_TYPES:
            continue
        for field, cluster_range in ranges.items():
            # For the whole range, ours has the best metric: 0.
            is_whole = network == cluster_range
            if network.subnet_of(cluster_range) and not (is_whole and _metric(route)):
                yield field, f"route {network}", link


def _metric(route: Any) -> int:
    return int(route.get_attr("RTA_PRIORITY") or 0)


def _mtus(
    uplink: Any, links: Mapping[int, Any], found: Iterable[Any], host_ranges: Iterable[IPv4Network]
) -> dict[str, int]:
    """The MTU of each interface by which other nodes may be reached.

    These are the one with the node's address, and those of the routes to `host_ranges`, or of the
    default routes where no ranges are known. An address on the loopback interface, as in routed
    fabrics, says nothing about the way.
    """
    indexes = set()
    if not uplink["flags"] & _IFF_LOOPBACK:
        indexes.add(uplink["index"])
    ranges = tuple(host_ranges)
    for route in found:
        network = routes.destination_of(route)
        leads_there = (
            any(network.overlaps(each) and network.prefixlen for each in ranges)
            if ranges
            else not network.prefixlen
        )
        if route["type"] == _RTN_UNICAST and leads_there:
            indexes |= routes.interfaces_of(route)
    if not indexes:
        for route in found:
            if not routes.destination_of(route).prefixlen:
                indexes |= routes.interfaces_of(route)
    return {
        link.get_attr("IFLA_IFNAME"): int(link.get_attr("IFLA_MTU"))
        for link in (links[index] for index in indexes if index in links)
        if link.get_attr("IFLA_IFNAME") != names.GATEWAY_PORT
    } or {uplink.get_attr("IFLA_IFNAME"): int(uplink.get_attr("IFLA_MTU"))}


async def set_up_gateway(
    netlink: AsyncIPRoute, sysctls: Sysctls, config: NodeConfig, mtu: int, *, within: float = 10.0
) -> None:
    """Configure `sluice-gw`, the host's own interface to the pods, once Open vSwitch has made it.

    It owns the first address of the podCIDR, the source of what the host sends to pods. The next
    hop to all pods is the virtual router, whose MAC is a permanent neighbour entry.

    What is right already is not set again. The kernel deletes all neighbours of an interface whose
    MAC is set, even to the same one, and tells others of it; then Open vSwitch reads all routes
    again, and meanwhile the tunnels of the userspace datapath have none and lose packets.

    Raises `HostError`, `OSError` and `NetlinkError`.
    """
    index = await _wait_for_link(netlink, names.GATEWAY_PORT, within)
    # Before the interface is up, or the kernel solicits its own address.
    sysctls.disable_ipv6(names.GATEWAY_PORT)
    # Loose: a reply may come by the gateway whose request left by the uplink.
    sysctls.write(f"ipv4/conf/{names.GATEWAY_PORT}/rp_filter", "2")
    # The switch returns what the host sent to a Service without endpoints, and the host refuses
    # it. The switch also makes sure that nobody else has the host's addresses.
    sysctls.write(f"ipv4/conf/{names.GATEWAY_PORT}/accept_local", "1")
    # A pod is not a router: it cannot tell the host a better way.
    sysctls.write(f"ipv4/conf/{names.GATEWAY_PORT}/accept_redirects", "0")
    sysctls.forward()
    address = str(names.gateway_address(config.pod_cidr))
    link = (await netlink.link("get", index=index))[0]
    shown = link.get_attr("IFLA_ADDRESS"), link.get_attr("IFLA_MTU"), link["flags"] & _IFF_UP
    if shown != (names.GATEWAY_MAC, mtu, _IFF_UP):
        await netlink.link("set", index=index, address=names.GATEWAY_MAC, mtu=mtu, state="up")
    found = {
        (old.get_attr("IFA_LOCAL"), old["prefixlen"])
        async for old in await netlink.get_addr(family=socket.AF_INET, index=index)
    }
    for old, length in found - {(address, 32)}:
        with _ignoring(errno.EADDRNOTAVAIL):
            await netlink.addr("del", index=index, address=old, prefixlen=length)
    if (address, 32) not in found:
        await netlink.addr("replace", index=index, address=address, prefixlen=32)
    await netlink.neigh(
        "replace", dst=_ROUTER, lladdr=names.ROUTER_MAC, ifindex=index, state=NUD_PERMANENT
    )


@contextmanager
def _ignoring(code: int) -> Iterator[None]:
    """Ignore one of the kernel's error codes: that what is to be deleted is not there."""
    try:
        yield
    except NetlinkError as error:
        if error.code != code:
            raise


async def _wait_for_link(netlink: AsyncIPRoute, name: str, within: float) -> int:
    try:
        async with asyncio.timeout(within):
            while True:
                index = await link_index(netlink, name)
                if index is not None:
                    return index
                await asyncio.sleep(0.02)
    except TimeoutError:
        raise HostError(
            f"Open vSwitch has not made the interface {name} within {within:.0f} s: "
            "is ovs-vswitchd running?"
        ) from None


async def find_gateway(netlink: AsyncIPRoute) -> int:
    """The index of `sluice-gw`. Raises `HostError` where it does not exist."""
    index = await link_index(netlink, names.GATEWAY_PORT)
    if index is None:
        raise HostError(f"the interface {names.GATEWAY_PORT} is gone")
    return index


async def link_index(netlink: AsyncIPRoute, name: str) -> int | None:
    """An interface's index; None where there is none of that name."""
    link = await find_link(netlink, name)
    return None if link is None else int(link["index"])


async def find_link(netlink: AsyncIPRoute, name: str) -> Any:
    """An interface as netlink describes it; None where there is none of that name."""
    try:
        return (await netlink.link("get", ifname=name))[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
