"""What sources and switches tell, brought together: who is dirty, and who owns which switch.

Start, change and repair are one path: `controller.inventory` says what an event touched,
`controller.desired` compiles that anew, `controller.session` makes the switch so.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import asynccontextmanager, nullcontext
from functools import partial

import structlog

from controller import metrics
from controller.desired import Desired
from controller.inventory import BridgePort, Inventory
from controller.problems import SOURCE, Owner, Problems, Reporter, Subject, SwitchRef
from controller.session import Session
from controller.sources.objects import Object
from controller.stale_udp import Stale
from flows.family import IPAddress
from flows.pipeline import SNAT_ZONE, ZONE, PipelineError
from flows.refs import CLUSTER, ObjectRef
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, Key
from openflow.batch import Batch, message_text
from openflow.messages import InstalledFlow, InstalledGroup, PortReason, PortStatus
from openflow.switch import ConnectionLost, Rejected, Switch
from wire.documents import SwitchDigest, Verdict

log = structlog.get_logger()

COMPILER = Owner(Reporter.COMPILER)
STRANGERS = Owner(Reporter.SWITCH)
"""Speaks of switches that are no known node's."""
SHARED_TICK = 0.005
"""Seconds after one batch of what all nodes share, in which changes are gathered into the next."""
FORGET_TICK = 5.0
"""Seconds in which addresses that were given back are gathered; agents let them rest for longer."""
FORGET_AT_ONCE = 8
"""Of these in one batch, so that no flow has to wait for many of them."""
TURNS = 16
"""Switches that are compared at a time. All at once, when a thousand come back, would hold up the
loop for seconds, and all their dumps in memory."""
LONGEST_TURN = 1.0
"""Seconds after which the next has its turn, though one is not done: it may be slow or dead."""
RETRY_AFTER_REFUSAL = 5.0
"""Seconds until a switch that refused a message is compared and tried again."""
RETRY_LEFT_OUT = 60.0
"""Seconds until objects that a switch refused, and that were left out, are tried again."""


class Reconciler:
    """Takes what sources and switches tell, and makes the switches what they should be."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.desired = Desired(inventory.view)
        self.listed = asyncio.Event()
        """The source was read once, as far as it can be read: switches may come."""
        self.sessions: dict[str, Session] = {}
        self.changed = asyncio.Event()
        """Set, and replaced, when nodes or ranges change: wakes agents that wait."""
        self.services_changed = asyncio.Event()
        """Set, and replaced, when what hosts do for Services changes: wakes agents that wait."""
        self._stale: set[Key] = set()
        """Shared fragments to be compiled at the next tick."""
        self._unmade: dict[str, set[Key]] = {}
        """By node, fragments that could not be compiled."""
        self._tick: asyncio.TimerHandle | None = None
        self._published_at = 0.0
        self._freed: dict[IPAddress, str] = {}
        """Addresses that no attachment has any more, and the node whose they are."""
        self._stale_udp: dict[Stale, None] = {}
        self._host_changes = 0
        self._started = time.time()
        self._turns = asyncio.Semaphore(TURNS)
        self._absorb({Key(CLUSTER_SCOPE, "cluster", "")})

    @property
    def problems(self) -> Problems:
        """Whatever is refused, or does not work, at the moment."""
        return self.inventory.problems

    # --- what the sources tell (controller.sources.feed.Feed) ---

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        """Objects added or changed, and references to those that are gone."""
        touched: set[Key] = set()
        for ref in gone:
            kind, namespace, name = ref
            touched |= self.inventory.remove_object(kind, namespace, name)
            self.problems.clear_subject(ref)
            if kind == "Node":
                self.problems.clear_owner(Owner(Reporter.AGENT, name))
                self._forget(name)
        for item in changed:
            touched |= self.inventory.set_object(item)
        self._absorb(touched | self.inventory.settle())
        self._follow_services()

    def report_addresses(self, node: str, addresses: Iterable[IPAddress]) -> None:
        """What a node's agent has found on its host's interfaces."""
        self.inventory.report_addresses(node, addresses)
        self._absorb(self.inventory.settle())
        self._follow_services()

    def report(self, subject: Subject, problem: str) -> None:
        """Say what is wrong with a subject of the source; empty: nothing any more."""
        self.problems.set(SOURCE, subject, problem)

    def complete(self, whole: bool) -> None:
        """The source was read; `whole`: with nothing left out. Once so, it stays so."""
        newly_whole = whole and not self.desired.whole
        self.desired.whole |= whole
        if not self.listed.is_set():
            self._publish()
            self.listed.set()
            log.info("the cluster is known", nodes=len(self.inventory.view.nodes), whole=whole)
        if newly_whole:
            self._wake_hosts()
            # What was not removed so far shows when the switches are compared.
            for session in self.sessions.values():
                session.wake(compare=True)

    # --- what the switches tell ---

    async def on_switch(self, switch: Switch) -> None:
        """Own one connected switch until it goes. Closing it is the caller's, on return."""
        node = await self._owner(switch)
        if node is None:
            return
        session = Session(node, switch, self.desired)
        self.sessions[node] = session
        log.info("switch connected", node=node, peer=switch.peer)
        metrics.SESSIONS.set(len(self.sessions))
        try:
            async with self._turn():
                ports = [BridgePort(p.name, p.ofport, p.mac) for p in switch.ports.values()]
                self._absorb_ports(node, lambda: self.inventory.set_ports(node, ports))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_ports(session))
                group.create_task(self._keep_in_sync(session))
                group.create_task(session.forget_for_ever())
        except* ConnectionLost as lost:
            log.info("switch lost", node=node, reason=str(lost.exceptions[0]))
        finally:
            log.info("switch gone", node=node, peer=switch.peer)
            if self.sessions.get(node) is session:
                del self.sessions[node]
                self._forget(node)
            self.problems.clear_owner(session.owner)
            metrics.SESSIONS.set(len(self.sessions))

    async def _owner(self, switch: Switch) -> str | None:
        """Which node this switch is; None: refused. Waits for a Node not known yet."""
        stranger = SwitchRef(switch.dpid, switch.peer)
        try:
            while (node := self.inventory.node_of(switch.dpid)) is None:
                self.problems.set(
                    STRANGERS, stranger, "no Node's name gives this datapath id; it waits for one"
                )
                await self.changed.wait()
        finally:
            self.problems.clear(STRANGERS, stranger)
        if switch.certificate_name not in {None, node}:
            log.error(
                "a switch with another's certificate is refused",
                node=node,
                certificate=switch.certificate_name,
            )
            return None
        # A rebooted switch must not be locked out by its own half-open connection, nor may a
        # second one take over from a living one; nor two at once from a dead one.
        while (earlier := self.sessions.get(node)) is not None:
            if await earlier.switch.alive(2.0):
                log.error("a second session is refused: the first lives", node=node)
                return None
            if self.sessions.get(node) is earlier:
                earlier.switch.close("replaced by a new session")
                del self.sessions[node]
        return node

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """For what is expensive: few at a time, and who is slow makes nobody wait for long."""
        await self._turns.acquire()
        over = asyncio.get_running_loop().create_future()
        over.add_done_callback(lambda _: self._turns.release())
        timer = asyncio.get_running_loop().call_later(LONGEST_TURN, over.cancel)
        try:
            yield
        finally:
            timer.cancel()
            over.cancel()

    async def _follow_ports(self, session: Session) -> None:
        async for event in session.switch.port_events():
            if self.sessions.get(session.node) is not session:
                return
            self._absorb_ports(session.node, partial(self._take_port, session.node, event))

    def _take_port(self, node: str, event: PortStatus) -> set[Key]:
        port = event.port
        if event.reason is PortReason.DELETE:
            return self.inventory.remove_port(node, port.name)
        return self.inventory.set_port(node, BridgePort(port.name, port.ofport, port.mac))

    def _absorb_ports(self, node: str, change: Callable[[], set[Key]]) -> None:
        before = self._addresses(node)
        self._absorb(change())
        gone = before - self._addresses(node)
        if gone and not self._freed:
            asyncio.get_running_loop().call_later(FORGET_TICK, self._forget_freed)
        self._freed |= dict.fromkeys(gone, node)

    def _follow_services(self) -> None:
        """What else than flows has to change with Services: hosts, and what connections know."""
        services = self.inventory.services
        if services.hosts.changes != self._host_changes:
            self._host_changes = services.hosts.changes
            self._wake_hosts()
        stale = services.stale_udp.take()
        # What the first list holds was so before, as far as anybody knows.
        if self.listed.is_set():
            self._stale_udp |= dict.fromkeys(stale)

    def _wake_hosts(self) -> None:
        self.services_changed.set()
        self.services_changed = asyncio.Event()

    def _forget_stale_udp(self) -> None:
        """Have every switch forget UDP to endpoints that are gone, and to what had none.

        No answer would ever tell a client that nobody is there any more.
        """
        stale, self._stale_udp = list(self._stale_udp), {}
        forgets = [each.forget(zone) for each in stale for zone in (ZONE, SNAT_ZONE)]
        for at in range(0, len(forgets), FORGET_AT_ONCE):
            self._have_forgotten(Batch.of_forgets(forgets[at : at + FORGET_AT_ONCE]))

    def _have_forgotten(self, batch: Batch) -> None:
        for session in self.sessions.values():
            session.to_forget.put_nowait(batch)

    def _addresses(self, node: str) -> set[IPAddress]:
        attachments = self.inventory.view.attachments.get(node, {})
        return {attachment.address for attachment in attachments.values()}

    def _forget_freed(self) -> None:
        """Have every switch forget the connections of addresses that were given back.

        Their next owner must not meet them. A node's agent does the same when it hands one out.
        """
        freed, self._freed = self._freed, {}
        nodes = {node: self._addresses(node) for node in set(freed.values())}
        # Where one has a new owner already, it is too late: what there is may be the owner's.
        addresses = [address for address, node in freed.items() if address not in nodes[node]]
        for at in range(0, len(addresses), FORGET_AT_ONCE):
            self._have_forgotten(Batch.forgetting(ZONE, addresses[at : at + FORGET_AT_ONCE]))

    async def _keep_in_sync(self, session: Session) -> None:
        while True:
            await self._sync(session)
            await session.dirty.wait()

    # --- compile ---

    def _absorb(self, touched: Collection[Key]) -> None:
        """Bring the programs up to date with the view; nodes at once, shared ones by the tick."""
        by_node: dict[str, list[Key]] = {}
        for key in touched:
            if key.scope == CLUSTER_SCOPE:
                self._stale.add(key)
            elif key.scope == SOME_SCOPE:
                for node in self.desired.touch_some(key):
                    by_node.setdefault(node, []).append(key)
            else:
                by_node.setdefault(key.scope, []).append(key)
        for node, keys in by_node.items():
            unmade = self._unmade.pop(node, set()).union(keys)
            try:
                changed = self.desired.update_node(node, unmade)
            except PipelineError as error:
                # One node's fault must not be everybody's.
                self._unmade[node] = unmade
                self.problems.set(Owner(Reporter.COMPILER, node), ObjectRef.node(node), str(error))
                continue
            self.problems.clear_owner(Owner(Reporter.COMPILER, node))
            if changed and (session := self.sessions.get(node)):
                session.wake()
        if self._stale and self._tick is None and self.listed.is_set():
            # At once after a while of quiet; what follows closely waits.
            due = self._published_at + SHARED_TICK
            self._tick = asyncio.get_running_loop().call_at(due, self._publish)
        if any(key.kind in {"peer", "node"} for key in touched):
            self.changed.set()
            self.changed = asyncio.Event()

    def _publish(self) -> None:
        """Turn the gathered changes of what all nodes share into one batch."""
        self._tick = None
        self._published_at = time.monotonic()
        services = self.inventory.services
        # As in kube-proxy: what was done before this process began says nothing of how fast it is.
        triggers = [t for t in services.take_triggers().values() if t >= self._started]
        before = self.desired.shared.version
        with metrics.SYNC_SECONDS.time():
            self.problems.set(COMPILER, CLUSTER, self._compile_stale(triggers))
        metrics.SYNCED_AT.set_to_current_time()
        metrics.ENDPOINT_CHANGES.set(services.endpoint_changes)
        metrics.SERVICE_CHANGES.set(services.service_changes)
        if self.desired.shared.version != before:
            for session in self.sessions.values():
                session.wake()
        self._forget_stale_udp()

    def _compile_stale(self, triggers: Iterable[float]) -> str:
        """Compile what is stale; what is wrong with what stays so until the next change."""
        try:
            self.desired.update_shared(self._stale, triggers)
        except PipelineError as error:
            problem = str(error)
        else:
            self._stale.clear()
            return ""
        # One object's fault must not be everybody's: each by itself, as long as that leads on.
        count = 0
        while count != len(self._stale):
            count = len(self._stale)
            for key in sorted(self._stale):
                try:
                    self.desired.update_shared([key], triggers)
                except PipelineError as error:
                    problem = str(error)
                else:
                    self._stale.discard(key)
        return problem if self._stale else ""

    async def _sync(self, session: Session) -> None:
        # A Node that is refused or gone keeps its flows: what they would be instead is unknown.
        if session.node not in self.inventory.view.nodes:
            session.leave_as_it_is()
            return
        try:
            # To look at what a switch holds is what costs.
            async with self._turn() if session.compare else nullcontext():
                await session.sync()
        except Rejected as refused:
            metrics.REFUSALS.inc(len(refused.refusals))
            for message, error in refused.refusals:
                log.error(  # noqa: TRY400 - no stack helps here
                    "refused by a switch",
                    node=session.node,
                    message=message_text(message),
                    error=str(error),
                )
            session.wake(compare=True)
            causes = session.leave_out(refused)
            for cause, why in causes.items():
                self.problems.set(session.owner, cause, why)
            if causes:
                asyncio.get_running_loop().call_later(RETRY_LEFT_OUT, self._retry, session)
            else:
                await asyncio.sleep(RETRY_AFTER_REFUSAL)

    def _retry(self, session: Session) -> None:
        """Try once more what was left out: its table may have been full for a while."""
        self.problems.clear_owner(session.owner)
        session.try_again()

    def _forget(self, node: str) -> None:
        """Drop the ports of a node that is neither connected nor known."""
        if node not in self.sessions and not self.inventory.knows_node(node):
            self._absorb(self.inventory.set_ports(node, []))

    # --- what agents tell, and people ask ---

    def take_digest(self, node: str, given: SwitchDigest) -> Verdict:
        """Hold an agent's digest of its switch against what the switch acknowledged.

        Raises `KeyError` where the switch is not connected.
        """
        verdict = self.sessions[node].take_digest(given)
        metrics.FOREIGN.set(sum(session.foreign for session in self.sessions.values()))
        return verdict

    async def installed(self, node: str) -> tuple[list[InstalledFlow], list[InstalledGroup]]:
        """The flows and the groups that a node's switch holds right now.

        Raises `KeyError` if it is not connected.
        """
        switch = self.sessions[node].switch
        return await switch.dump_flows(), await switch.dump_groups()
