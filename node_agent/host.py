"""The node's own network: where its uplink is, what is in the way, and its gateway to the pods.

All through one netlink socket in the namespace that the agent runs in.
"""

import asyncio
import errno
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from node_agent.sysctl import Sysctls
from wire.documents import NodeConfig

NUD_PERMANENT: Final = 0x80
_RTN_UNICAST: Final = 1
_RT_TABLE_MAIN: Final = 254
_RT_SCOPE_ANY: Final = 255
_RTNH_F_ONLINK: Final = 4
_ROUTER: Final = str(names.ROUTER_ADDRESS)
# What stands for the host where it would meet itself: two addresses, and one for each of its own.
_LINK_LOCAL: Final = (IPv4Network((names.HAIRPIN_ADDRESS, 31)), names.STAND_INS)


class HostError(Exception):
    """The host cannot carry the node that the cluster describes; the text names both."""


def pod_mtu(uplink_mtu: int, config: NodeConfig) -> int:
    """What is left inside the tunnel, or less where the cluster says so."""
    left = uplink_mtu - names.ENCAPSULATION_OVERHEAD
    return left if config.mtu is None else min(left, config.mtu)


async def check(netlink: AsyncIPRoute, config: NodeConfig) -> int:
    """Whether this host fits the configuration; returns its uplink's MTU in bytes.

    Raises `HostError` where the node's address is on no interface, or an address or route of
    this host lies in one of the cluster's ranges (or holds one), other than our own on
    `sluice-gw`, and where the node's address lies in one.
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
    link_names = {index: link.get_attr("IFLA_IFNAME") for index, link in links.items()}
    uplink: Any = None
    async for address in await netlink.get_addr(family=2):
        host_address = IPv4Address(address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS"))
        name = link_names.get(address["index"])
        if host_address == config.address:
            uplink = links.get(address["index"])
        if name != names.GATEWAY_PORT:
            network = IPv4Network((host_address, address["prefixlen"]), strict=False)
            _refuse_overlap(
                who, f"address {host_address}/{address['prefixlen']}", name, network, ranges
            )
    async for route in await netlink.get_routes(family=2):
        network = IPv4Network((route.get_attr("RTA_DST") or 0, route["dst_len"]))
        name = link_names.get(route.get_attr("RTA_OIF"))
        # The default route holds every range, and is there for what nothing else holds.
        if route["type"] == _RTN_UNICAST and network.prefixlen and name != names.GATEWAY_PORT:
            _refuse_overlap(who, f"route {network}", name, network, ranges)
    if uplink is None:
        raise HostError(
            f"{who}: its address {config.address} (status.addresses, InternalIP) is on no "
            "interface of this host"
        )
    return int(uplink.get_attr("IFLA_MTU"))


def _refuse_overlap(
    who: str, what: str, link: str | None, network: IPv4Network, ranges: dict[str, IPv4Network]
) -> None:
    for field, cluster_range in ranges.items():
        if network.overlaps(cluster_range):
            raise HostError(
                f"{who}: {field} {cluster_range} overlaps the host's {what} on {link or '?'}"
            )


async def set_up_gateway(
    netlink: AsyncIPRoute, sysctls: Sysctls, config: NodeConfig, mtu: int, *, within: float = 10.0
) -> None:
    """Give the host its own end among the pods, once Open vSwitch has made `sluice-gw`.

    It owns the first address of the podCIDR, so that is the source of whatever the host sends to
    any pod; the way to all pods is the virtual router, whose MAC is known for ever. Raises
    `HostError`, `OSError` and `NetlinkError`.
    """
    index = await _wait_for_link(netlink, names.GATEWAY_PORT, within)
    # Before it is up, or the kernel solicits its own address.
    sysctls.disable_ipv6(names.GATEWAY_PORT)
    # Loose: a reply may come by the gateway whose request left by the uplink.
    sysctls.write(f"ipv4/conf/{names.GATEWAY_PORT}/rp_filter", "2")
    # What the host sent to a Service without endpoints comes back, and is refused. The switch sees
    # to it that nobody else has the host's addresses.
    sysctls.write(f"ipv4/conf/{names.GATEWAY_PORT}/accept_local", "1")
    sysctls.forward()
    address = str(names.gateway_address(config.pod_cidr))
    await netlink.link("set", index=index, address=names.GATEWAY_MAC, mtu=mtu, state="up")
    async for old in await netlink.get_addr(family=2, index=index):
        if old.get_attr("IFA_LOCAL") != address:
            await netlink.addr("del", index=index, address=old.get_attr("IFA_LOCAL"),
                               prefixlen=old["prefixlen"])  # fmt: skip
    await netlink.addr("replace", index=index, address=address, prefixlen=32)
    await netlink.neigh(
        "replace", dst=_ROUTER, lladdr=names.ROUTER_MAC, ifindex=index, state=NUD_PERMANENT
    )


async def set_up_routes(
    netlink: AsyncIPRoute, config: NodeConfig, external: Iterable[IPv4Address] | None
) -> set[IPv4Address]:
    """Send into the switch what is for pods and Services, and nothing else; afterwards the gateway.

    `external` are addresses of Services, outside the cluster's ranges; None: nobody knows yet, and
    those that are there stay. Returns the ones that are left out, because the host needs them
    itself: its own, and those of its routers. Raises `HostError` where there is no gateway, and
    `NetlinkError`.
    """
    index = await link_index(netlink, names.GATEWAY_PORT)
    if index is None:
        raise HostError(f"the interface {names.GATEWAY_PORT} is gone")
    needed = set()
    if external:
        external = set(external)
        needed = external & await _needed(netlink)
        external -= needed
    # From the host's address among the pods, or from the one that a socket is bound to.
    source = str(names.gateway_address(config.pod_cidr))
    fixed = (config.pod_range, config.service_range, *_LINK_LOCAL)
    wanted = {str(network) for network in fixed} | {f"{address}/32" for address in external or ()}
    found = set()
    async for route in await netlink.get_routes(family=2, oif=index, table=_RT_TABLE_MAIN):
        destination = f"{route.get_attr('RTA_DST') or '0.0.0.0'}/{route['dst_len']}"  # noqa: S104
        if destination not in wanted and (external is not None or route["dst_len"] != 32):
            await netlink.route("del", dst=destination, oif=index, scope=_RT_SCOPE_ANY)
        elif (route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_PREFSRC")) == (_ROUTER, source):
            found.add(destination)
    for destination in wanted - found:
        await netlink.route(
            "replace", dst=destination, oif=index, gateway=_ROUTER, prefsrc=source,
            flags=_RTNH_F_ONLINK,
        )  # fmt: skip
    return needed


async def _needed(netlink: AsyncIPRoute) -> set[IPv4Address]:
    """The host's own addresses and its routers'."""
    texts = [a.get_attr("IFA_LOCAL") async for a in await netlink.get_addr(family=2)]
    texts += [r.get_attr("RTA_GATEWAY") async for r in await netlink.get_routes(family=2)]
    return {IPv4Address(text) for text in texts if text is not None}


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


async def link_index(netlink: AsyncIPRoute, name: str) -> int | None:
    """An interface's index; None where there is none of that name."""
    link = await find_link(netlink, name)
    return None if link is None else int(link["index"])


async def find_link(netlink: AsyncIPRoute, name: str) -> Any:
    """What netlink says of an interface; None where there is none of that name."""
    try:
        return (await netlink.link("get", ifname=name))[0]
    except NetlinkError as error:
        if error.code == errno.ENODEV:
            return None
        raise
