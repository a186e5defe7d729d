"""The node as a whole: applies the controller's configuration, and knows if the node is ready."""

import asyncio
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from flows.features import classify
from node_agent import bridge, host, install, nft
from node_agent.cni_call import CniError, Code
from node_agent.controller_link import NodeRefused, Unreachable, configurations
from node_agent.controllers import Controllers
from node_agent.fabric_probe import FabricProbe
from node_agent.faults import NodeFault
from node_agent.kernel_watch import KernelWatch
from node_agent.leases import LeaseError, LeaseFileError, Leases
from node_agent.ovsdb import Ovsdb, OvsdbError
from node_agent.peer_routes import PeerRouting
from node_agent.services import LocalServices
from node_agent.sysctl import Sysctls
from settings import Agent
from wire.documents import MAX_ADDRESSES, NodeAddresses, NodeConfig

REPAIR_INTERVAL = 60.0
"""Seconds between two regular repairs of everything that the agent set up."""
REPAIR_SPACING = 1.0
"""Shortest time in seconds between two repairs, however often the host changes."""
RETRY_INTERVAL = 2.0
"""Seconds between a failure and the next attempt."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeReady:
    """What an ADD needs of the node."""

    config: NodeConfig
    mtu: int
    """Of pod interfaces, in bytes."""


class ClassifierWatch(Protocol):
    """The part of `openflow.watch.FlowWatch` that is used here, for the table Classifier."""

    @property
    def connected(self) -> bool:
        """Whether ovs-vswitchd answers, and the table's content is known."""

    async def wait_for(self, cookie: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Whether a flow with this cookie is in the table, within `timeout` seconds."""


class LocalNode:
    """Sets up this node and keeps it so; `ready` and `status` answer from memory."""

    def __init__(
        self,
        agent: Agent,
        ovsdb: Ovsdb,
        netlink: AsyncIPRoute,
        leases: Leases,
        watch: ClassifierWatch,
        services: LocalServices,
        peers: PeerRouting,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._ovsdb = ovsdb
        self._netlink = netlink
        self._leases = leases
        self._watch = watch
        self._services = services
        self._peers = peers
        self._probe = FabricProbe(peers)
        self._monotonic = monotonic
        self._wanted: NodeConfig | None = None
        self._refused: str | None = None
        self._unreachable: str | None = None
        self._unenrolled = ""
        self._ready: NodeReady | None = None
        self._problem = ""
        """Why the last attempt to set up the node failed; empty after a success."""
        self._addresses: NodeAddresses | None = None
        self._conflicts: tuple[str, ...] = ()
        """Conflicts with the host's network that do not stop the node."""
        self._news = asyncio.Event()
        self._kernel = KernelWatch(self._news.set)
        # If the node was ready before, a restart of the agent does not make it unready.
        self._was_ready = (agent.cni_conf / install.CONF_NAME).exists()
        self._session_last_seen = monotonic()

    def ready(self) -> NodeReady:
        """What an ADD needs. Raises `CniError` with the reason while there is no answer."""
        if self._refused is not None or self._ready is None:
            raise CniError(Code.TRY_AGAIN, "this node takes no pods now", self._why_not())
        return self._ready

    def status(self) -> None:
        """Raise `CniError` 50 with the reason if this node cannot take pods."""
        if self._refused is not None or self._ready is None:
            raise CniError(Code.NOT_AVAILABLE, "this node takes no pods now", self._why_not())
        if not self._ovsdb.connected:
            raise CniError(Code.NOT_AVAILABLE, self._no_ovsdb)
        up, why = self._session()
        missing = self._monotonic() - self._session_last_seen
        if not up and not (self._was_ready and missing < self._agent.status_grace):
            raise CniError(
                Code.NOT_AVAILABLE,
                f"the switch has had no controller session for {missing:.0f} s",
                f"{why}; {self._away}" if self._away else why,
            )

    def problem(self) -> str:
        """A problem of this node that the controller cannot see; empty if there is none.

        One sentence, which does not change while the problem stays the same.
        """
        if not self._ovsdb.answers:
            return self._no_ovsdb
        if self._problem:
            return self._problem
        found = [*self._conflicts, self._services.node_problem(), self._peers.problem()]
        found.append(self._probe.problem())
        if corrupt := bridge.corrupt_attachments(self._ovsdb):
            found.append(f"rows in OVSDB that cannot be read: {', '.join(corrupt[:10])}")
        up, why = self._session()
        lost = self._monotonic() - self._session_last_seen
        if not up and self._ready is not None and lost >= self._agent.status_grace:
            found.append(f"no controller session: {why}")
        return "; ".join(filter(None, found))

    def addresses(self) -> NodeAddresses | None:
        """The host's own addresses and the pods' MTU; None before the first check."""
        return self._addresses

    def config(self) -> NodeConfig | None:
        """What the controller has said of the node; None: nothing yet."""
        return self._wanted

    def report_enrolment(self, problem: str) -> None:
        """Note why this node cannot get its certificate; empty when it has one."""
        self._unenrolled = problem

    async def run(self, controllers: Controllers) -> None:
        """Run all tasks of the node. Never ends."""
        await self._ovsdb.wait_until(lambda: self._ovsdb.connected, None)
        await self._adopt()
        remembered = None
        try:
            remembered = bridge.remembered_config(self._ovsdb)
        except OvsdbError as error:
            self._problem = str(error)
            log.warning("the remembered configuration is not used", reason=self._problem)
        if remembered is not None and remembered.node == self._agent.node:
            log.info("carrying on with the remembered configuration", revision=remembered.revision)
            self._wanted = remembered
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._follow_controllers(controllers))
            tasks.create_task(self._follow_ovsdb())
            tasks.create_task(self._converge_loop())
            tasks.create_task(self._announce())
            tasks.create_task(self._kernel.run())
            tasks.create_task(self._probe.run())

    async def _adopt(self) -> None:
        """Write leases for ports that exist without one, because the lease file was lost."""
        for attachment in bridge.attachments(self._ovsdb):
            if self._leases.get(attachment.container_id, attachment.ifname) is None:
                try:
                    self._leases.adopt(attachment)
                    log.warning("port without a lease adopted", port=attachment.port)
                except LeaseError as error:
                    log.warning("port without a lease", port=attachment.port, error=str(error))

    async def _follow_controllers(self, controllers: Controllers) -> None:
        async for answer in configurations(controllers):
            self._unreachable = answer.why if isinstance(answer, Unreachable) else None
            if isinstance(answer, Unreachable):
                pass  # The last answer stays in force.
            elif isinstance(answer, NodeRefused):
                # A refusal changes nothing for running pods.
                self._refused = answer.why
                log.warning("the controller refuses this node", reason=answer.why)
            else:
                self._refused = None
                self._wanted = answer
                self._news.set()

    async def _follow_ovsdb(self) -> None:
        gateway = None
        while True:
            if self._session()[0]:
                self._session_last_seen = self._monotonic()
            row = self._ovsdb.row("Interface", names.GATEWAY_PORT)
            seen = (row.ifindex, row.link_resets) if row is not None else None
            if seen != gateway:
                # A new interface has no address: ovs-vswitchd removes its internal ports when it
                # ends with a cleanup. An interface that was set down has lost its routes.
                gateway = seen
                self._news.set()
            await self._ovsdb.changed(within=1.0)

    async def _announce(self) -> None:
        """Once, when bridge, tunnel and controller session are first up: write the conf file."""
        if self._was_ready:
            install.write_conf(self._agent)  # in the form of this version
        while not self._was_ready:
            if self._ready is None:
                await self._ovsdb.changed(within=0.2)
            # OVSDB shows the session only every 5 s; the controller's flows show it at once.
            elif (
                await self._watch.wait_for(classify.gateway_classifier_flow().cookie, 1.0)
                or bridge.controller_session(self._ovsdb)[0]
            ):
                install.write_conf(self._agent)
                self._was_ready = True
                self._session_last_seen = self._monotonic()
                log.info("ready for pods", conf=str(self._agent.cni_conf / install.CONF_NAME))

    async def _converge_loop(self) -> None:
        while True:
            self._news.clear()
            pause = REPAIR_INTERVAL
            if self._wanted is not None and not await self._converge(self._wanted):
                pause = RETRY_INTERVAL
            await asyncio.sleep(REPAIR_SPACING)
            await _wait(self._news, pause - REPAIR_SPACING)

    async def _converge(self, config: NodeConfig) -> bool:
        try:
            uplink = await host.check(self._netlink, config, self._peers.ranges)
            mtu = host.pod_mtu(uplink.mtu, config)
            self._addresses = NodeAddresses(uplink.addresses[:MAX_ADDRESSES], mtu, uplink.own)
            self._note_conflicts(uplink.problems)
            await asyncio.to_thread(self._leases.use, config.pod_cidr)
            change = bridge.converge(self._agent, config, mtu)
            if await self._ovsdb.transact(change):
                log.info("bridge configured", revision=config.revision, mtu=mtu)
            await host.set_up_gateway(self._netlink, Sysctls.of(self._agent), config, mtu)
            await self._services.converge(config)
            await self._peers.converge(config)
            gateway = await host.find_gateway(self._netlink)
            self._kernel.use(
                (config.pod_range, config.service_range), gateway, self._peers.interfaces
            )
            if self._agent.datapath == "netdev":
                links = {name for _, name in socket.if_nameindex()}
                await nft.restore_host_ingress_drops(
                    links & {lease.port for lease in self._leases.all()}
                )
        except (NodeFault, NetlinkError, OSError) as error:
            problem = str(error)
            if self._problem != problem:
                log.warning("this node cannot be set up", reason=problem)
            self._problem = problem
            # After a temporary fault, pods can still be added.
            if isinstance(error, host.HostError | LeaseError) and not isinstance(
                error, LeaseFileError
            ):
                self._ready = None
            return False
        ready = NodeReady(config, mtu)
        if self._ready != ready:
            log.info("node set up", podCIDR=str(config.pod_cidr), mtu=mtu)
        self._ready, self._problem = ready, ""
        return True

    def _note_conflicts(self, conflicts: tuple[str, ...]) -> None:
        """Raise `HostError` for a conflict on a node that was never ready.

        A node that was ready keeps working: the conflict concerns only a part of its traffic.
        """
        if conflicts and not self._was_ready:
            raise host.HostError("; ".join(conflicts))
        for conflict in set(conflicts) - set(self._conflicts):
            log.warning("conflict with the host's network", problem=conflict)
        self._conflicts = conflicts

    def _session(self) -> tuple[bool, str]:
        """Whether the switch runs and has a controller session, and why not."""
        if not self._watch.connected:
            # A stopped ovs-vswitchd cannot update the session's state in OVSDB.
            return False, f"ovs-vswitchd does not answer in {self._agent.ovs_run}"
        return bridge.controller_session(self._ovsdb)

    def _why_not(self) -> str:
        if self._refused or self._problem:
            return self._refused or self._problem
        if not self._ovsdb.connected:
            return self._no_ovsdb
        missing = f"Node {self._agent.node}: no configuration from the controller yet"
        return f"{missing}: {self._away}" if self._away else missing

    @property
    def _away(self) -> str:
        """Why the controller cannot be asked."""
        return "; ".join(filter(None, [self._unreachable, self._unenrolled]))

    @property
    def _no_ovsdb(self) -> str:
        return f"ovsdb-server does not answer at {self._agent.ovsdb}"


async def _wait(event: asyncio.Event, within: float) -> None:
    try:
        async with asyncio.timeout(within):
            await event.wait()
    except TimeoutError:
        pass
