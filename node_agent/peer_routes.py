"""Routes to the pods of peers that this node reaches without the tunnel.

The controller says which peers these are (`wire.paths.ROUTES`). Each has a route in table `main`,
with a protocol number of our own: to the peer itself if it is on the link, else by the next hops
that the host has for the peer's address. It is longer than the route of the whole pod range, which
leads into the switch. After a reboot, a copy on disk is used until a controller answers.
"""

import asyncio
import errno
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, Final, NamedTuple, NoReturn

import msgspec
import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from node_agent import install, routes
from node_agent.controller_link import NodeRefused, Unreachable, peer_routes
from node_agent.controllers import MAX_ANSWER, Controllers
from node_agent.faults import NodeFault
from settings import Agent
from wire.documents import NodeConfig, PeerRoutes, decode_peer_routes, encode

_UNICAST: Final = 1
_ONLINK: Final = 4
_AT_ONCE: Final = 200
"""Peers that are looked at before others have their turn: some 10 ms."""
_MOST_NAMED: Final = 5
"""Peers that one sentence names."""

log = structlog.get_logger()


class Hop(NamedTuple):
    """A next hop: its address (None: the destination itself is on the link), and the interface."""

    address: IPv4Address | None
    interface: int


class PeerRouteError(NodeFault):
    """The host cannot have a route; the text says to which peer."""


def file_of(agent: Agent) -> Path:
    """The path of the copy."""
    return agent.state / "peer-routes.json"


class PeerRouting:
    """Keeps the routes as the controller's document says."""

    def __init__(self, agent: Agent, netlink: AsyncIPRoute) -> None:
        self._agent = agent
        self._netlink = netlink
        self._wanted = _remembered(agent)
        self._config: NodeConfig | None = None
        self._problem = ""
        self._lock = asyncio.Lock()
        self.interfaces: frozenset[int] = frozenset()
        """The interfaces that the routes lead to, by index."""
        self.routed: Mapping[IPv4Network, IPv4Address] = {}
        """By podCIDR, the addresses of the peers that are not on the link, but behind a router."""

    @property
    def gateway(self) -> IPv4Address | None:
        """The host's own address among its pods; None: not known yet."""
        return None if self._config is None else names.gateway_address(self._config.pod_cidr)

    @property
    def ranges(self) -> frozenset[IPv4Network]:
        """The podCIDRs of the peers that are reached without the tunnel."""
        return frozenset(pods for pods, _ in self._wanted.peers) if self._wanted else frozenset()

    def problem(self) -> str:
        """Why peers are not reached; empty if all are."""
        return self._problem

    async def run(self, controllers: Controllers) -> NoReturn:
        """Follow the controllers. Never ends."""
        while True:
            async for answer in peer_routes(controllers):
                if isinstance(answer, NodeRefused | Unreachable):
                    continue  # The last document stays in force; `LocalNode` reports the reason.
                await self._take(answer)

    async def _take(self, new: PeerRoutes) -> None:
        wanted = new if new.source_complete else _merged(self._wanted, new)
        if wanted == self._wanted:
            return
        self._wanted = wanted
        try:
            if self._config is not None:
                await self.converge(self._config)
            await asyncio.to_thread(install.replace, file_of(self._agent), encode(wanted), 0o600)
        except (NodeFault, NetlinkError, OSError) as error:
            # The node's next repair tries again.
            log.warning("routes to peers are not complete", reason=str(error))

    async def converge(self, config: NodeConfig) -> None:
        """Make the routes as wanted. Raises `NetlinkError` and `OSError`."""
        async with self._lock:
            self._config = config
            if self._wanted is not None:
                await self._set_up(config, self._wanted)

    async def _set_up(self, config: NodeConfig, wanted: PeerRoutes) -> None:
        found = await routes.dump(self._netlink, table=routes.MAIN)
        ours = {routes.destination_of(each): each for each in found if _is_ours(each)}
        others = [each for each in found if not _is_ours(each)]
        # Somebody else's route for exactly this range, with the metric of ours, is left in place.
        taken = {
            routes.destination_of(each) for each in others if not each.get_attr("RTA_PRIORITY")
        }
        hosts = _Hosts(others)
        source = names.gateway_address(config.pod_cidr)
        errors: list[NetlinkError] = []
        missing: list[str] = []
        interfaces: set[int] = set()
        routed: dict[IPv4Network, IPv4Address] = {}
        ranges = {
            pods: address
            for pods, address in wanted.peers
            if pods != config.pod_cidr and pods.subnet_of(config.pod_range)
        }
        for number, (pods, address) in enumerate(ranges.items()):
            if not number % _AT_ONCE:
                await asyncio.sleep(0)
            hops = hosts.hops(address)
            if not hops:
                missing.append(f"{address} (pods {pods})")
                continue
            interfaces |= {hop.interface for hop in hops}
            if hops[0].address is not None:
                routed[pods] = address
            via = tuple(Hop(hop.address or address, hop.interface) for hop in hops)
            old = ours.get(pods)
            if pods in taken or (old is not None and _is_right(old, via, source)):
                continue
            made = self._netlink.route("replace", **_route(pods, via, source))
            await routes.attempt(made, errors)
        for pods, old in ours.items():
            if pods not in ranges:
                await routes.attempt(self._delete(old), errors, ignore=errno.ESRCH)
        self.interfaces, self.routed = frozenset(interfaces), routed
        more = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        self._problem = (
            f"no route of the host leads to the nodes {', '.join(missing[:_MOST_NAMED])}{more}"
            if missing
            else ""
        )
        if errors:
            raise errors[0]

    async def _delete(self, route: Any) -> None:
        await self._netlink.route("del", **_key(route))


async def remove(netlink: AsyncIPRoute) -> None:
    """Remove all our routes to peers. Raises `NetlinkError`."""
    errors: list[NetlinkError] = []
    for each in await routes.dump(netlink, table=routes.MAIN):
        if _is_ours(each):
            await routes.attempt(netlink.route("del", **_key(each)), errors, ignore=errno.ESRCH)
    if errors:
        raise errors[0]


def _is_ours(route: Any) -> bool:
    return bool(route["proto"] == routes.PROTOCOL)


def _key(route: Any) -> dict[str, Any]:
    return {
        "dst": str(routes.destination_of(route)),
        "proto": routes.PROTOCOL,
        "table": routes.MAIN,
        "priority": route.get_attr("RTA_PRIORITY") or 0,
    }


def _route(pods: IPv4Network, via: tuple[Hop, ...], source: IPv4Address) -> dict[str, Any]:
    """What pyroute2 makes the route of."""
    common = {
        "dst": str(pods), "proto": routes.PROTOCOL, "table": routes.MAIN, "prefsrc": str(source),
    }  # fmt: skip
    if len(via) == 1:
        (hop,) = via
        return {
            **common, "gateway": str(hop.address), "oif": hop.interface, "flags": _ONLINK,
        }  # fmt: skip
    several = [
        {"gateway": str(hop.address), "oif": hop.interface, "flags": _ONLINK, "hops": 0}
        for hop in via
    ]
    return {**common, "multipath": several}


def _is_right(route: Any, via: tuple[Hop, ...], source: IPv4Address) -> bool:
    return set(_hops(route)) == set(via) and route.get_attr("RTA_PREFSRC") == str(source)


def _hops(route: Any) -> Iterator[Hop]:
    """The next hops of a route; none where it leads by an address of another family."""
    for hop in route.get_attr("RTA_MULTIPATH") or [route]:
        interface = route.get_attr("RTA_OIF") if hop is route else hop["oif"]
        if not interface or hop.get_attr("RTA_VIA") is not None:
            continue
        address = hop.get_attr("RTA_GATEWAY")
        yield Hop(IPv4Address(address) if address else None, int(interface))


class _Hosts:
    """The host's own routes: where an address is reached. Other tables than `main` are not seen."""

    def __init__(self, found: Iterable[Any]) -> None:
        self._by_length: dict[int, dict[int, tuple[int, Any]]] = {}
        for route in found:
            if route["type"] != _UNICAST:
                continue
            network = routes.destination_of(route)
            same_length = self._by_length.setdefault(network.prefixlen, {})
            key, metric = int(network.network_address), int(route.get_attr("RTA_PRIORITY") or 0)
            if key not in same_length or metric < same_length[key][0]:
                same_length[key] = metric, route

    def hops(self, address: IPv4Address) -> tuple[Hop, ...]:
        """The next hops to an address; empty: the host has no route to it."""
        for length in sorted(self._by_length, reverse=True):
            network = IPv4Network((address, length), strict=False)
            found = self._by_length[length].get(int(network.network_address))
            if found is not None:
                return tuple(sorted(_hops(found[1]), key=str))
        return ()


def _remembered(agent: Agent) -> PeerRoutes | None:
    try:
        return decode_peer_routes(install.read(file_of(agent), MAX_ANSWER))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        log.warning("the copy of the routes to peers cannot be read", reason=str(error))
        return None


def _merged(old: PeerRoutes | None, new: PeerRoutes) -> PeerRoutes:
    """The union: the new document is not complete, so nothing is removed."""
    if old is None:
        return new
    peers = {**dict(old.peers), **dict(new.peers)}
    return msgspec.structs.replace(new, peers=tuple(sorted(peers.items())))
