"""The node as a whole: takes what the controller says, makes it so, and knows if it is ready."""

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
from node_agent.faults import NodeFault
from node_agent.kernel_watch import KernelWatch
from node_agent.leases import LeaseError, LeaseFileError, Leases
from node_agent.ovsdb import Ovsdb, OvsdbError
from node_agent.services import LocalServices
from node_agent.sysctl import Sysctls
from settings import Agent
from wire.documents import MAX_ADDRESSES, NodeAddresses, NodeConfig

REPAIR_INTERVAL = 60.0
"""Seconds after which everything is made so again, whatever happened to it."""
REPAIR_SPACING = 1.0
"""Seconds at least between two repairs, whoever changes the host how often."""
RETRY_INTERVAL = 2.0
"""Seconds after which what could not be done is tried again."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class NodeReady:
    """What an ADD needs of the node."""

    config: NodeConfig
    mtu: int
    """Of pod interfaces, in bytes."""


class ClassifierWatch(Protocol):
    """What is asked of `openflow.watch.FlowWatch`, of the table Classifier."""

    @property
    def connected(self) -> bool:
        """Whether ovs-vswitchd answers, and the table's content is known."""

    async def wait_for(self, cookie: int, timeout: float) -> bool:  # noqa: ASYNC109
        """Whether a flow with this cookie is in the table, within `timeout` seconds."""


class LocalNode:
    """Converges the host; `ready` and `status` answer from memory."""

    def __init__(
        self,
        agent: Agent,
        ovsdb: Ovsdb,
        netlink: AsyncIPRoute,
        leases: Leases,
        watch: ClassifierWatch,
        services: LocalServices,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._agent = agent
        self._ovsdb = ovsdb
        self._netlink = netlink
        self._leases = leases
        self._watch = watch
        self._services = services
        self._monotonic = monotonic
        self._wanted: NodeConfig | None = None
        self._refused: str | None = None
        self._unreachable: str | None = None
        self._unenrolled = ""
        self._ready: NodeReady | None = None
        self._problem = ""
        """Why the node could not be set up as it is wanted, the last time."""
        self._addresses: NodeAddresses | None = None
        self._conflicts: tuple[str, ...] = ()
        """What is in the way of the node although it works."""
        self._news = asyncio.Event()
        self._kernel = KernelWatch(self._news.set)
        # Once ready, a restart of the agent is no reason to send pods elsewhere.
        self._was_ready = (agent.cni_conf / install.CONF_NAME).exists()
        self._session_last_seen = monotonic()

    def ready(self) -> NodeReady:
        """What an ADD needs. Raises `CniError` with the reason while there is no answer."""
        if self._refused is not None or self._ready is None:
            raise CniError(Code.TRY_AGAIN, "this node takes no pods now", self._why_not())
        return self._ready

    def status(self) -> None:
        """Raise `CniError` 50 where this node cannot take pods, with the reason."""
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
        """What is wrong on this node that the controller cannot know; empty: nothing, or not yet.

        One sentence, which stays the same as long as that is so.
        """
        if not self._ovsdb.answers:
            return self._no_ovsdb
        if self._problem:
            return self._problem
        found = [*self._conflicts, self._services.node_problem()]
        if corrupt := bridge.corrupt_attachments(self._ovsdb):
            found.append(f"rows in OVSDB that cannot be read: {', '.join(corrupt[:10])}")
        up, why = self._session()
        lost = self._monotonic() - self._session_last_seen
        if not up and self._ready is not None and lost >= self._agent.status_grace:
            found.append(f"no controller session: {why}")
        return "; ".join(filter(None, found))

    def addresses(self) -> NodeAddresses | None:
        """The host's own addresses and pods' MTU; None before it was looked at."""
        return self._addresses

    def report_enrolment(self, problem: str) -> None:
        """Say why this node cannot get its certificate; empty: nothing any more."""
        self._unenrolled = problem

    async def run(self) -> None:
        """Everything, for ever."""
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
            tasks.create_task(self._follow_controller())
            tasks.create_task(self._follow_ovsdb())
            tasks.create_task(self._converge_loop())
            tasks.create_task(self._announce())
            tasks.create_task(self._kernel.run())

    async def _adopt(self) -> None:
        """Lease to existing ports what they have, where the lease file was lost."""
        for attachment in bridge.attachments(self._ovsdb):
            if self._leases.get(attachment.container_id, attachment.ifname) is None:
                try:
                    self._leases.adopt(attachment)
                    log.warning("port without a lease adopted", port=attachment.port)
                except LeaseError as error:
                    log.warning("port without a lease", port=attachment.port, error=str(error))

    async def _follow_controller(self) -> None:
        async for answer in configurations(self._agent):
            self._unreachable = answer.why if isinstance(answer, Unreachable) else None
            if isinstance(answer, Unreachable):
                pass  # What was said last stays in force.
            elif isinstance(answer, NodeRefused):
                # What works stays as it is: a refusal takes nothing away from running pods.
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
                # Made anew, it has no address. A killed ovs-vswitchd leaves its internal ports
                # behind; one that was told to clean up does not. Set down, it has no routes.
                gateway = seen
                self._news.set()
            await self._ovsdb.changed(within=1.0)

    async def _announce(self) -> None:
        """Once, when bridge, tunnel and controller session are first up: write the conf file."""
        if self._was_ready:
            install.write_conf(self._agent)  # as this version has it
        while not self._was_ready:
            if self._ready is None:
                await self._ovsdb.changed(within=0.2)
            # OVSDB tells of the session every 5 s only. The controller's flows say it at once.
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
            uplink = await host.check(self._netlink, config)
            mtu = host.pod_mtu(uplink.mtu, config)
            self._addresses = NodeAddresses(uplink.addresses[:MAX_ADDRESSES], mtu)
            self._note_conflicts(uplink.problems)
            await asyncio.to_thread(self._leases.use, config.pod_cidr)
            change = bridge.converge(self._agent, config, mtu)
            if await self._ovsdb.transact(change):
                log.info("bridge configured", revision=config.revision, mtu=mtu)
            await host.set_up_gateway(self._netlink, Sysctls.of(self._agent), config, mtu)
            await self._services.converge(config)
            gateway = await host.find_gateway(self._netlink)
            self._kernel.use((config.pod_range, config.service_range), gateway)
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
            # A passing fault must not stop pods that could be added all the same.
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
        """Raise `HostError` for what is in the way of a new node.

        A node that has had pods goes on with what works: its other traffic is not the conflict's.
        """
        if conflicts and not self._was_ready:
            raise host.HostError("; ".join(conflicts))
        for conflict in set(conflicts) - set(self._conflicts):
            log.warning("conflict with the host's network", problem=conflict)
        self._conflicts = conflicts

    def _session(self) -> tuple[bool, str]:
        """Whether the switch runs and has its controller, or why not."""
        if not self._watch.connected:
            # It can no longer say in OVSDB that its session is gone.
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
