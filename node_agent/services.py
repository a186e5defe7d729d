"""What this node's host does for Services: routes, translations and health checks.

The controller says which; a copy on disk says it after a reboot, with the controller away.
"""

import asyncio
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NoReturn

import msgspec
import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from flows.features.protocols import LAYER_4_NAMES
from node_agent import host, host_ports, install, nft
from node_agent.controller_link import Refused, Unreachable, services
from node_agent.health_checks import HealthChecks
from node_agent.host_table import HostTable, NodePort, OwnPort
from settings import Agent
from wire.documents import MAX_SERVICES, NodeConfig, NodeServices, decode_services, encode

LOOK: Final = 10.0
"""Seconds between two looks at which ports the host's processes hold."""
_RETRY: Final = 2.0

log = structlog.get_logger()


def file_of(agent: Agent) -> Path:
    """Where the copy is."""
    return agent.state / "services.json"


class Services:
    """Converges the host when the document changes, and with the node (`Node`)."""

    def __init__(self, agent: Agent, netlink: AsyncIPRoute, table: HostTable) -> None:
        self._agent = agent
        self._netlink = netlink
        self._table = table
        self._checks = HealthChecks()
        self._wanted = _remembered(agent)
        self._config: NodeConfig | None = None
        self._done: object = None
        """What `_look` has made so, and need not again."""
        self._problem = ""
        self._left_out: set[IPv4Address] = set()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._unanswered: dict[str, str] = {}
        """By Service, why its health checks are not answered."""
        self._busy: dict[NodePort, str] = {}
        """Ports of Services at this host on which a process is, and its name."""

    def problems(self) -> dict[str, str]:
        """By `NAMESPACE/NAME`, what of a Service this node cannot do."""
        found: dict[str, list[str]] = {}
        for what, at, service, is_served in self._ports():
            who = self._busy.get(at)
            if who is not None:
                found.setdefault(service, []).append(
                    f"{what} is the Service's already, and {who} listens on it for nothing"
                    if is_served
                    else f"{what} is not served: {who} listens on it"
                )
        for service, sentence in self._unanswered.items():
            found.setdefault(service, []).append(sentence)
        return {name: "; ".join(found[name]) for name in sorted(found)[:MAX_SERVICES]}

    def _ports(self) -> Iterator[tuple[str, NodePort, str, bool]]:
        """Each in words, which it is, whose, and whether it is translated."""
        wanted = self._wanted
        for protocol, port, service in wanted.node_ports if wanted else ():
            what = f"NodePort {port}/{_named(protocol)}"
            is_served = (protocol, port) in self._table.node_ports
            yield what, (protocol, port), service, is_served
        for address, protocol, port, _, service in wanted.own_addresses if wanted else ():
            what = f"port {port}/{_named(protocol)} of {address}"
            is_served = (address, protocol, port) in self._table.own_ports
            yield what, (protocol, port), service, is_served

    async def converge(self, config: NodeConfig) -> None:
        """Make routes and translations so, whatever happened to them.

        Raises what `host.set_up_routes` and `HostTable.converge` raise.
        """
        async with self._lock:
            self._config, self._done = config, None
            await self._look()

    async def run(self) -> NoReturn:
        """Follow the controller, and look at the host's ports from time to time; for ever."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_controller())
                while True:
                    self._news.clear()
                    pause = LOOK if await self._converge() else _RETRY
                    try:
                        async with asyncio.timeout(pause):
                            await self._news.wait()
                    except TimeoutError:
                        pass
        finally:
            await self._checks.close()

    async def _follow_controller(self) -> None:
        async for answer in services(self._agent):
            if isinstance(answer, Refused | Unreachable):
                continue  # What was said last stays in force; `Node` tells of it.
            wanted = answer if answer.source_complete else _both(self._wanted, answer)
            if wanted == self._wanted:
                continue
            self._wanted = wanted
            self._news.set()
            try:
                await asyncio.to_thread(
                    install.replace, file_of(self._agent), encode(wanted), 0o600
                )
            except OSError as error:
                log.warning("no copy kept of what Services need", reason=str(error))

    async def _converge(self) -> bool:
        if self._wanted is not None:
            self._unanswered = await self._checks.converge(self._wanted.health_checks)
        try:
            async with self._lock:
                await self._look()
        except (host.HostError, nft.NftError, NetlinkError, OSError) as error:
            if str(error) != self._problem:
                log.warning("Services are not served as they should be", reason=str(error))
            self._problem = str(error)
            return False
        self._problem = ""
        return True

    async def _look(self) -> None:
        """Do what is new since the last time."""
        config, wanted = self._config, self._wanted
        if config is None:
            return
        node_ports: set[NodePort] = set()
        own: dict[OwnPort, IPv4Address] = {}
        if wanted is not None:
            node_ports = {(protocol, port) for protocol, port, _ in wanted.node_ports}
            own = {(a, p, n): stand_in for a, p, n, stand_in, _ in wanted.own_addresses}
            ports = node_ports | {(protocol, port) for _, protocol, port in own}
            self._busy = await asyncio.to_thread(host_ports.held, ports)
        external = None if wanted is None else wanted.external_addresses
        todo = config, node_ports, own, self._busy.keys(), external
        if todo == self._done:
            return
        left_out = await host.set_up_routes(self._netlink, config, external)
        if left_out - self._left_out:
            # Which Service's, the controller has not said.
            titles = ", ".join(map(str, sorted(left_out)))
            log.warning("addresses of Services that this host needs itself", addresses=titles)
        self._left_out = left_out
        self._table.use(config.pod_cidr, config.pod_range)
        if wanted is not None:
            self._table.want(node_ports, own, set(self._busy))
        await self._table.converge()
        self._done = config, node_ports, own, set(self._busy), external
        log.debug("Services served", nodePorts=len(node_ports), busy=len(self._busy))


def _named(protocol: int) -> str:
    return LAYER_4_NAMES.get(protocol, str(protocol)).upper()


def _remembered(agent: Agent) -> NodeServices | None:
    try:
        found = decode_services(file_of(agent).read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("the copy of what Services need is not read", reason=str(error))
        return None
    return found if found.node == agent.node else None


def _both(old: NodeServices | None, new: NodeServices) -> NodeServices:
    """Nothing is taken away."""
    if old is None:
        return new
    # Of each key the newer one.
    node_ports = {(p, n): (p, n, s) for p, n, s in (*old.node_ports, *new.node_ports)}
    health_checks = {p: (p, s, n) for p, s, n in (*old.health_checks, *new.health_checks)}
    own = {each[:3]: each for each in (*old.own_addresses, *new.own_addresses)}
    return msgspec.structs.replace(
        new,
        node_ports=tuple(node_ports.values()),
        external_addresses=tuple({*old.external_addresses, *new.external_addresses}),
        health_checks=tuple(health_checks.values()),
        own_addresses=tuple(own.values()),
    )
