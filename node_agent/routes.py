"""Routes and routing rules of the host: what it sends into the switch by `sluice-gw`.

Table `main` has the cluster's ranges, and addresses of Services that are taken whole. Addresses of
which a Service has single ports only are in a table of our own, which two rules use:

    MARKED      before `main`: packets that `table ip sluice` has marked, because their protocol
                and port are a Service's
    LAST        after `main`: all packets, where no other route leads to the address; without it the
                host itself could not even begin a connection to such an address

So all other traffic for the address goes where it went before.
"""

import errno
import socket
from collections.abc import Awaitable, Collection, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from wire.documents import NodeConfig

MARK: Final = 0x0400_0000
"""The bit of a packet's mark that says: its destination, protocol and port are a Service's."""
MAIN: Final = 254
TABLE: Final = 21356
"""Our own routing table: a /32 route for each address, never a wider one. The outer packet of a
tunnel may carry the mark of the inner one, and must not come back into the switch."""
PROTOCOL: Final = 213
"""Of our routes to peers (rtnetlink(7), rtm_protocol). 213 is in no rt_protos of iproute2."""
MARKED_PRIORITY: Final = 5_356
LAST_PRIORITY: Final = 33_356
"""After the rule for table `default` (32767)."""

_SCOPE_ANY: Final = 255
_ONLINK: Final = 4
_RTM_F_CLONED: Final = 0x200
_TO_TABLE: Final = 1
"""FR_ACT_TO_TBL of linux/fib_rules.h."""
_ROUTER: Final = str(names.ROUTER_ADDRESS)
# Addresses that stand for the host itself where its own would meet: see `flows.names`.
_LINK_LOCAL: Final = (IPv4Network((names.HAIRPIN_ADDRESS, 31)), names.HOST_DNAT_RANGE)


@dataclass(frozen=True, slots=True)
class External:
    """Addresses of Services outside the cluster's ranges, for `set_up`."""

    whole: frozenset[IPv4Address] = frozenset()
    """All traffic to them goes into the switch."""
    by_port: frozenset[IPv4Address] = frozenset()
    """Only marked packets to them go into the switch."""


async def dump(netlink: AsyncIPRoute, **match: Any) -> list[Any]:
    """The IPv4 routes that somebody has configured.

    The kernel's dump also has route exceptions: what an ICMP error has taught it about one
    destination (path MTU, redirect). They cannot be deleted, and any pod can cause one.
    """
    return [
        route
        async for route in await netlink.get_routes(family=socket.AF_INET, **match)
        if not route["flags"] & _RTM_F_CLONED
    ]


async def set_up(
    netlink: AsyncIPRoute,
    gateway: int,
    config: NodeConfig,
    external: External | None,
    protected: Collection[IPv4Address] = (),
) -> None:
    """Make the routes by `sluice-gw` (interface index `gateway`) and our rules as they should be.

    `external` None: nobody knows yet, and what is there stays, except the way to `protected`
    addresses. All that can be done is done before the first error is raised (`NetlinkError`).
    """
    never = {IPv4Network(address) for address in protected}
    # Connections of the host come from its address among the pods, unless a socket is bound.
    source = str(names.gateway_address(config.pod_cidr))
    ranges = {str(n) for n in (config.pod_range, config.service_range, *_LINK_LOCAL)}
    way = {"oif": gateway, "gateway": _ROUTER, "prefsrc": source, "flags": _ONLINK}
    errors: list[NetlinkError] = []
    for table in (MAIN, TABLE):
        wanted = set(ranges) if table == MAIN else set()
        if external is not None:
            addresses = external.whole if table == MAIN else external.by_port
            wanted |= {f"{address}/32" for address in addresses}
        right = set()
        for route in await dump(netlink, oif=gateway, table=table):
            destination = str(destination_of(route))
            keep = (
                external is None
                and route["dst_len"] == 32
                and IPv4Network(destination) not in never
            )
            if destination not in wanted and not keep:
                gone = netlink.route(
                    "del", dst=destination, oif=gateway, table=table, scope=_SCOPE_ANY,
                    priority=route.get_attr("RTA_PRIORITY") or 0,
                )  # fmt: skip
                await attempt(gone, errors, ignore=errno.ESRCH)
            elif (route.get_attr("RTA_GATEWAY"), route.get_attr("RTA_PREFSRC")) == (
                _ROUTER, source,
            ):  # fmt: skip
                right.add(destination)
        for destination in wanted - right:
            await attempt(netlink.route("replace", dst=destination, table=table, **way), errors)
    if external is not None:
        await _set_up_rules(netlink, errors, wanted=bool(external.by_port))
    if errors:
        raise errors[0]


async def remove_rules(netlink: AsyncIPRoute) -> None:
    """Remove our routing rules. Their routes go with `sluice-gw`. Raises `NetlinkError`."""
    errors: list[NetlinkError] = []
    await _set_up_rules(netlink, errors, wanted=False)
    if errors:
        raise errors[0]


async def _set_up_rules(netlink: AsyncIPRoute, errors: list[NetlinkError], *, wanted: bool) -> None:
    missing = {(MARKED_PRIORITY, MARK), (LAST_PRIORITY, 0)} if wanted else set()
    # Other rules are none of our business, whatever their table.
    for rule in await _rules(netlink):
        key = rule.get_attr("FRA_PRIORITY"), rule.get_attr("FRA_FWMARK") or 0
        if key in missing:
            missing.remove(key)
        else:
            gone = netlink.rule("del", priority=key[0], table=TABLE, family=socket.AF_INET)
            await attempt(gone, errors, ignore=errno.ENOENT)
    for priority, mark in missing:
        marked = {"fwmark": mark, "fwmask": mark} if mark else {}
        made = netlink.rule("add", priority=priority, table=TABLE, family=socket.AF_INET, **marked)
        await attempt(made, errors, ignore=errno.EEXIST)


async def _rules(netlink: AsyncIPRoute) -> list[Any]:
    return [
        rule
        async for rule in await netlink.get_rules(family=socket.AF_INET)
        if rule["action"] == _TO_TABLE and rule.get_attr("FRA_TABLE") == TABLE
    ]


async def attempt(change: Awaitable[Any], errors: list[NetlinkError], *, ignore: int = 0) -> None:
    """Carry out one change. A `NetlinkError` other than `ignore` is added to `errors`."""
    try:
        await change
    except NetlinkError as error:
        if error.code != ignore:
            errors.append(error)


def destination_of(route: Any) -> IPv4Network:
    """Of a route from `dump`."""
    return IPv4Network((route.get_attr("RTA_DST") or 0, route["dst_len"]))


def hops(route: Any) -> Iterator[Any]:
    """The route itself, and each next hop of a multipath route."""
    yield route
    yield from route.get_attr("RTA_MULTIPATH") or ()


def interfaces_of(route: Any) -> set[int]:
    """The indexes of the interfaces that it leads to."""
    several = {int(hop["oif"]) for hop in route.get_attr("RTA_MULTIPATH") or ()}
    one = route.get_attr("RTA_OIF")
    return several | ({int(one)} if one else set())
