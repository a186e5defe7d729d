"""The host's part of Services on this node: routes, translations and health checks.

The controller sends the document. After a reboot, a copy on disk is used until a controller
answers.
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
from node_agent import host_ports, install, routes
from node_agent.controller_link import NodeRefused, Unreachable, services
from node_agent.controllers import MAX_ANSWER, Controllers
from node_agent.faults import NodeFault
from node_agent.health_checks import HealthChecks
from node_agent.host import find_gateway
from node_agent.host_table import HostTable
from node_agent.protected import Protected
from node_agent.routes import External
from settings import Agent
from wire.documents import (
    MAX_SERVICES,
    NodeConfig,
    NodeServices,
    decode_services,
    encode,
)
from wire.service_ports import NodePort, ServicePorts, external_ports, whole_addresses

PORT_CHECK_INTERVAL: Final = 10.0
"""Seconds between two checks of which ports the host's processes hold."""
_RETRY: Final = 2.0

log = structlog.get_logger()


def file_of(agent: Agent) -> Path:
    """The path of the copy."""
    return agent.state / "services.json"


class LocalServices:
    """Applies the controller's document when it changes, and at each repair of the `LocalNode`."""

    def __init__(self, agent: Agent, netlink: AsyncIPRoute, table: HostTable) -> None:
        self._agent = agent
        self._netlink = netlink
        self._table = table
        self._checks = HealthChecks(agent.healthz_port or None, self._is_healthy)
        self._no_healthz = ""
        self._wanted = _remembered(agent)
        self._config: NodeConfig | None = None
        self._done: object = None
        """What `_apply` has applied last."""
        self._problem = ""
        self._protected = Protected(agent.controllers)
        self._left_out: dict[IPv4Address, str] = {}
        """Addresses of Services that this host needs itself, and for what."""
        self._egress: frozenset[IPv4Address] = frozenset()
        self._news = asyncio.Event()
        self._lock = asyncio.Lock()
        self._unanswered: dict[str, str] = {}
        """By Service: why its health checks are not answered."""
        self._busy: dict[NodePort, str] = {}
        """Ports of Services on this host that a process holds, and its name."""

    def route(self, egress: frozenset[IPv4Address]) -> None:
        """Send what comes for these egress addresses into the switch: replies to pods."""
        if egress != self._egress:
            self._egress = egress
            self._news.set()

    def _is_healthy(self) -> bool:
        """Whether connections to Services are served here, as far as this host knows."""
        return self._config is not None and not self._problem

    def node_problem(self) -> str:
        """Why health checks of the node are not served; empty if they are."""
        return self._no_healthz

    def problems(self) -> dict[str, str]:
        """By `NAMESPACE/NAME` of a Service, what this node cannot do for it."""
        found: dict[str, list[str]] = {}
        for what, at, service, is_served in self._ports():
            who = self._busy.get(at)
            if who is not None:
                found.setdefault(service, []).append(
                    f"{what} is the Service's already, so {who} gets nothing on it"
                    if is_served
                    else f"{what} is not served: {who} listens on it"
                )
        for service, sentence in self._unanswered.items():
            found.setdefault(service, []).append(sentence)
        for address, _, _, service in self._external_ports():
            if (why := self._left_out.get(address)) is not None:
                found.setdefault(service, []).append(f"{address} is not served: it is {why}")
        return {
            name: "; ".join(dict.fromkeys(found[name])) for name in sorted(found)[:MAX_SERVICES]
        }

    def _external_ports(self) -> Iterator[tuple[IPv4Address, int, int, str]]:
        return iter(()) if self._wanted is None else external_ports(self._wanted)

    def _ports(self) -> Iterator[tuple[str, NodePort, str, bool]]:
        """Of each port: its title, its key, its Service, and whether the host translates it."""
        wanted = self._wanted
        for protocol, port, service in wanted.node_ports if wanted else ():
            what = f"NodePort {port}/{_named(protocol)}"
            is_served = (protocol, port) in self._table.served.node_ports
            yield what, (protocol, port), service, is_served
        for address, protocol, port, _, service in wanted.own_addresses if wanted else ():
            if (address, protocol, port) in self._table.served.host_endpoints:
                continue  # The process that listens is the endpoint.
            what = f"port {port}/{_named(protocol)} of {address}"
            is_served = (address, protocol, port) in self._table.served.own
            yield what, (protocol, port), service, is_served

    async def converge(self, config: NodeConfig) -> None:
        """Restore routes and translations.

        Raises `NodeFault`, `NetlinkError` and `OSError`.
        """
        async with self._lock:
            self._config, self._done = config, None
            await self._apply()

    async def run(self, controllers: Controllers) -> NoReturn:
        """Follow the controllers, and check the host's ports at intervals. Never ends."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow_controllers(controllers))
                while True:
                    self._news.clear()
                    pause = PORT_CHECK_INTERVAL if await self._converge() else _RETRY
                    try:
                        async with asyncio.timeout(pause):
                            await self._news.wait()
                    except TimeoutError:
                        pass
        finally:
            await self._checks.close()

    async def _follow_controllers(self, controllers: Controllers) -> None:
        async for answer in services(controllers):
            if isinstance(answer, NodeRefused | Unreachable):
                continue  # The last document stays in force; `Node` reports the reason.
            wanted = answer if answer.source_complete else _merged(self._wanted, answer)
            if wanted == self._wanted:
                continue
            self._wanted = wanted
            self._news.set()
            try:
                await asyncio.to_thread(
                    install.replace, file_of(self._agent), encode(wanted), 0o600
                )
            except OSError as error:
                log.warning("the copy of what Services need is not saved", reason=str(error))

    async def _converge(self) -> bool:
        if self._wanted is not None:
            self._unanswered = await self._checks.converge(self._wanted.health_checks)
        self._no_healthz = await self._checks.serve_healthz()
        try:
            async with self._lock:
                await self._apply()
        except (NodeFault, NetlinkError, OSError) as error:
            if str(error) != self._problem:
                log.warning("Services are not fully served", reason=str(error))
            self._problem = str(error)
            return False
        self._problem = ""
        return True

    async def _apply(self) -> None:
        """Apply what has changed since the last time."""
        config, wanted = self._config, self._wanted
        if config is None:
            return
        ports, external = ServicePorts(), None
        left_out = await self._leave_out(wanted)
        if wanted is not None:
            ports = ServicePorts.of(wanted, left_out)
            could_be_busy = {
                *ports.node_ports,
                *(at[1:] for at in (*ports.own, *ports.host_endpoints)),
            }
            self._busy = await asyncio.to_thread(host_ports.held, could_be_busy)
            external = External(
                frozenset(whole_addresses(wanted, left_out)) | (self._egress - left_out.keys()),
                frozenset(address for address, *_ in ports.external),
            )
        todo = config, ports, set(self._busy), external
        if todo == self._done:
            return
        gateway = await find_gateway(self._netlink)
        await routes.set_up(self._netlink, gateway, config, external, left_out)
        self._table.use(config.pod_cidr, config.pod_range, config.tunnel_port)
        if wanted is not None:
            self._table.want(ports, set(self._busy))
        await self._table.converge()
        self._done = todo
        log.debug("Services served", nodePorts=len(ports.node_ports), busy=len(self._busy))

    async def _leave_out(self, wanted: NodeServices | None) -> dict[IPv4Address, str]:
        """The addresses that no Service or EgressAddress may take here, and what each one is.

        Not even looked for where none names an external address.
        """
        if wanted is None:
            return await self._protected.addresses(self._netlink)
        named = {*wanted.external_addresses, *(at[0] for at in self._external_ports())}
        named |= self._egress
        if not named:
            return {}
        protected = await self._protected.addresses(self._netlink, wanted.protected_addresses)
        found = {address: protected[address] for address in named & protected.keys()}
        for address in found.keys() - self._left_out.keys():
            log.warning(
                "address left out: this host needs it", address=str(address), why=found[address]
            )
        self._left_out = found
        return found


def _named(protocol: int) -> str:
    return LAYER_4_NAMES.get(protocol, str(protocol)).upper()


def _remembered(agent: Agent) -> NodeServices | None:
    try:
        found = decode_services(install.read(file_of(agent), MAX_ANSWER))
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("the copy of what Services need cannot be read", reason=str(error))
        return None
    return found if found.node == agent.node else None


def _merged(old: NodeServices | None, new: NodeServices) -> NodeServices:
    """The union: the new document is not complete, so nothing is removed."""
    if old is None:
        return new
    # Of each key the newer one.
    node_ports = {(p, n): (p, n, s) for p, n, s in (*old.node_ports, *new.node_ports)}
    health_checks = {p: (p, s, n) for p, s, n in (*old.health_checks, *new.health_checks)}
    own = {each[:3]: each for each in (*old.own_addresses, *new.own_addresses)}
    endpoints = {each[:3]: each for each in (*old.host_endpoints, *new.host_endpoints)}
    return msgspec.structs.replace(
        new,
        node_ports=tuple(node_ports.values()),
        external_addresses=tuple({*old.external_addresses, *new.external_addresses}),
        health_checks=tuple(health_checks.values()),
        own_addresses=tuple(own.values()),
        external_ports=tuple(dict.fromkeys((*old.external_ports, *new.external_ports))),
        host_endpoints=tuple(endpoints.values()),
        protected_addresses=tuple({*old.protected_addresses, *new.protected_addresses}),
        balancer_addresses=tuple({*old.balancer_addresses, *new.balancer_addresses}),
    )
