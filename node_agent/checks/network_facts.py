"""Facts about interfaces, addresses and routes, by netlink."""

import socket
from typing import Any, Final

from pyroute2 import AsyncIPRoute

from node_agent import routes
from node_agent.checks.facts import HostAddress, HostRoute, Link
from node_agent.host import FORWARDING_TYPES, address_of

MOST: Final = 10_000
"""Interfaces, addresses and routes that are looked at; the routes of a BGP table are more."""


async def network() -> tuple[list[Link], list[HostAddress], list[HostRoute]]:
    """Those of this network namespace. Raises `NetlinkError` and `OSError`."""
    async with AsyncIPRoute() as netlink:
        links = {link["index"]: _link(link) async for link in await netlink.get_links()}
        addresses = [
            HostAddress(address_of(each), _name(links, each["index"]))
            async for each in await netlink.get_addr(family=socket.AF_INET)
        ]
        found = [
            HostRoute(
                routes.destination_of(route),
                _name(links, route.get_attr("RTA_OIF")),
                int(route.get_attr("RTA_PRIORITY") or 0),
            )
            for route in await routes.dump(netlink, table=routes.MAIN)
            if route["type"] in FORWARDING_TYPES and route["proto"] != routes.PROTOCOL
        ]
    return list(links.values())[:MOST], addresses[:MOST], found[:MOST]


def _name(links: dict[int, Link], index: int | None) -> str:
    return links[index].name if index in links else "no interface"


def _link(given: Any) -> Link:
    info = given.get_attr("IFLA_LINKINFO")
    kind = str(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else ""
    data = info.get_attr("IFLA_INFO_DATA") if info is not None else None
    port = None
    if kind in {"vxlan", "geneve"} and data is not None:
        port = data.get_attr(f"IFLA_{kind.upper()}_PORT")
    return Link(
        str(given.get_attr("IFLA_IFNAME")),
        kind,
        int(given.get_attr("IFLA_MTU") or 0),
        int(port) if port else None,
    )
