"""Dirty nodes: compile -> diff -> bundle -> installed. Start, change and repair are this one path.

Flows that all nodes share live in one program. Each of its changes becomes one batch, encoded
once, whose bytes go to every switch; a switch that is behind takes the batches it lacks. What a
node alone holds is compared with what its switch acknowledged.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace

import structlog

from controller import metrics
from controller.cluster import Inventory, Port
from controller.sources.objects import Object
from flows.compile import Program, fragments
from flows.diff import Delta, diff, is_ours
from flows.flow import Flow, Meter
from flows.pipeline import PipelineError
from flows.view import CLUSTER_SCOPE, Key
from openflow.batch import Batch, message_text
from openflow.messages import InstalledFlow, PortReason
from openflow.switch import ConnectionLost, Rejected, Switch

log = structlog.get_logger()

SHARED_TICK = 0.005
"""Seconds in which changes of what all nodes share are gathered into one batch."""
LOG_LENGTH = 256
"""Batches kept for switches that are behind; one further behind is compared whole."""
LONGEST_APPLY = 60.0
"""Seconds that a switch may take to acknowledge a batch."""
TURNS = 16
"""Switches that are compared at a time. All at once, when a thousand come back, would hold up the
loop for seconds, and all their dumps in memory."""
LONGEST_TURN = 1.0
"""Seconds after which the next has its turn, though one is not done: it may be slow or dead."""
RETRY_AFTER_REFUSAL = 5.0
"""Seconds until a switch that refused a message is compared and tried again."""


@dataclass(eq=False)
class Session:
    """One connected switch and what it has acknowledged."""

    node: str
    switch: Switch
    shared_version: int = 0
    """The version of the shared program that it holds."""
    cookies: set[int] = field(default_factory=set)
    """The node's own flows that it holds."""
    meters: dict[int, Meter] = field(default_factory=dict)
    left_out: set[int] = field(default_factory=set)
    """Cookies of what the switch refused, and of all that belongs to the same object."""
    compare: bool = True
    """What it holds is unknown, in part or whole: dump it before anything else is sent."""
    dirty: asyncio.Event = field(default_factory=asyncio.Event)
    in_sync: bool = False


class Reconciler:
    """Takes what sources and switches tell, and makes the switches what they should be."""

    def __init__(self, inventory: Inventory) -> None:
        self.inventory = inventory
        self.listed = asyncio.Event()
        """The source was read once, as far as it can be read: switches may come."""
        self.whole = False
        """All of it could be read; until then nothing is removed from any switch."""
        self.sessions: dict[str, Session] = {}
        self.problems: dict[str, str] = {}
        """What sources report of themselves: unreadable files, an API server that is away."""
        self.changed = asyncio.Event()
        """Set, and replaced, when nodes or ranges change: wakes agents that wait."""
        self._shared = Program()
        self._programs: dict[str, Program] = {}
        self._log: deque[tuple[int, Batch]] = deque(maxlen=LOG_LENGTH)
        self._whole_batch: tuple[int, Batch] | None = None
        self._stale: set[Key] = set()
        self._tick: asyncio.TimerHandle | None = None
        self._turns = asyncio.Semaphore(TURNS)
        self._absorb({Key(CLUSTER_SCOPE, "cluster", "")})

    # --- what the sources tell (controller.sources.feed.Feed) ---

    def update(self, changed: Iterable[Object], gone: Iterable[tuple[str, str, str]]) -> None:
        """Objects added or changed, and (kind, namespace, name) of those that are gone."""
        touched: set[Key] = set()
        for kind, namespace, name in gone:
            touched |= self.inventory.remove_object(kind, namespace, name)
            if kind == "Node":
                self._forget(name)
        for item in changed:
            touched |= self.inventory.set_object(item)
        self._absorb(touched | self.inventory.settle())

    def report(self, subject: str, problem: str) -> None:
        """Say what is wrong with a subject of the source; empty: nothing any more."""
        if not problem:
            self.problems.pop(subject, None)
        elif self.problems.get(subject) != problem:
            self.problems[subject] = problem
            log.warning("refused", subject=subject, problem=problem)

    def complete(self, whole: bool) -> None:
        """The source was read; `whole`: with nothing left out. Once so, it stays so."""
        if not self.listed.is_set():
            self._publish()
            self.listed.set()
            log.info("the cluster is known", nodes=len(self.inventory.view.nodes), whole=whole)
        if self.whole or not whole:
            return
        self.whole = True
        # What was not removed so far shows when the switches are compared.
        for session in self.sessions.values():
            session.compare = True
            session.dirty.set()

    # --- what the switches tell ---

    async def on_switch(self, switch: Switch) -> None:
        """Own one connected switch until it goes. Closing it is the caller's, on return."""
        node = await self._owner(switch)
        if node is None:
            return
        session = Session(node, switch)
        self.sessions[node] = session
        log.info("switch connected", node=node, peer=switch.peer)
        metrics.SESSIONS.set(len(self.sessions))
        try:
            async with self._turn():
                ports = [Port(p.name, p.ofport, p.mac) for p in switch.ports.values()]
                self._absorb(self.inventory.set_ports(node, ports))
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_ports(session))
                group.create_task(self._keep_in_sync(session))
        except* ConnectionLost as lost:
            log.info("switch lost", node=node, reason=str(lost.exceptions[0]))
        finally:
            log.info("switch gone", node=node, peer=switch.peer)
            if self.sessions.get(node) is session:
                del self.sessions[node]
                self._forget(node)
            for subject in [s for s in self.problems if s.endswith(f" on the switch of {node}")]:
                del self.problems[subject]
            metrics.SESSIONS.set(len(self.sessions))

    async def _owner(self, switch: Switch) -> str | None:
        """Which node this switch is; None: refused. Waits for a Node not known yet."""
        stranger = f"switch {switch.dpid:016x} at {switch.peer}"
        try:
            while (node := self.inventory.node_of(switch.dpid)) is None:
                self.report(stranger, "no Node's name gives this datapath id; it waits for one")
                await self.changed.wait()
        finally:
            self.report(stranger, "")
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
            if event.reason is PortReason.DELETE:
                self._absorb(self.inventory.remove_port(session.node, event.port.name))
            else:
                port = Port(event.port.name, event.port.ofport, event.port.mac)
                self._absorb(self.inventory.set_port(session.node, port))

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
            else:
                by_node.setdefault(key.scope, []).append(key)
        for node, keys in by_node.items():
            program = self._programs.setdefault(node, Program())
            try:
                changed = program.update(fragments(self.inventory.view, keys))
            except PipelineError as error:
                # One node's fault must not be everybody's.
                self.report(f"flows of {node}", str(error))
                continue
            if changed:
                self._wake(node)
            if not program.cookies and node not in self.inventory.view.nodes:
                del self._programs[node]
        if self._stale and self._tick is None and self.listed.is_set():
            self._tick = asyncio.get_running_loop().call_later(SHARED_TICK, self._publish)
        if any(key.kind in {"peer", "node"} for key in touched):
            self.changed.set()
            self.changed = asyncio.Event()

    def _publish(self) -> None:
        """Turn the gathered changes of what all nodes share into one batch."""
        self._tick = None
        delta = self._shared.update(fragments(self.inventory.view, sorted(self._stale)))
        self._stale.clear()
        if not delta:
            return
        if not self.whole:
            delta = Delta(adds=delta.adds)
        self._log.append((self._shared.version, batch_of(delta)))
        for node in self.sessions:
            self._wake(node)

    def _wake(self, node: str) -> None:
        if session := self.sessions.get(node):
            session.in_sync = False
            session.dirty.set()

    # --- installed ---

    async def _sync(self, session: Session) -> None:
        """Make the switch hold what it should, and return when it said so."""
        try:
            while True:
                session.dirty.clear()
                if session.node not in self.inventory.view.nodes:
                    # A Node that is refused or gone keeps its flows: what they would be instead
                    # is unknown.
                    return
                if session.compare:
                    async with self._turn():
                        await self._compare(session)
                await self._catch_up(session)
                await self._sync_node(session)
                if not session.dirty.is_set():
                    break
            session.in_sync = self.whole
            metrics.SYNCS.inc()
        except Rejected as refused:
            metrics.REFUSALS.inc(len(refused.refusals))
            for message, error in refused.refusals:
                log.error(  # noqa: TRY400 - no stack helps here
                    "refused by a switch",
                    node=session.node,
                    message=message_text(message),
                    error=str(error),
                )
            session.compare = True
            session.dirty.set()
            if not self._leave_out(session, refused):
                await asyncio.sleep(RETRY_AFTER_REFUSAL)

    async def _compare(self, session: Session) -> None:
        """Find out what the switch holds, and make its shared flows right."""
        # Cleared first: what asks for a comparison while this one runs gets another.
        session.compare = False
        installed = {flow.cookie for flow in await session.switch.dump_flows()}
        session.meters = dict(await session.switch.dump_meters())
        version = self._shared.version
        shared = self._shared.cookies
        held = shared.keys() & installed
        if held or session.left_out:
            known = held | session.left_out
            missing = tuple(flow for cookie, (flow, _) in shared.items() if cookie not in known)
            batch = batch_of(Delta(adds=missing))
        else:
            batch = self._whole()
        # What is neither shared nor the node's own goes in `_sync_node`, after all additions.
        session.cookies = {cookie for cookie in installed - held if is_ours(cookie)}
        metrics.COMPARISONS.inc()
        log.info(
            "compared", node=session.node, installed=len(installed), missing=len(shared) - len(held)
        )
        await _apply(session.switch, batch)
        session.shared_version = version

    def _whole(self) -> Batch:
        """All shared flows, encoded once for all switches that hold none."""
        if self._whole_batch is None or self._whole_batch[0] != self._shared.version:
            self._whole_batch = (
                self._shared.version,
                batch_of(Delta(adds=tuple(self._shared.flows()))),
            )
        return self._whole_batch[1]

    async def _catch_up(self, session: Session) -> None:
        """Send the batches of shared changes that the switch has not had."""
        while session.shared_version != self._shared.version:
            lacking = [entry for entry in self._log if entry[0] > session.shared_version]
            if not lacking or lacking[0][0] != session.shared_version + 1:
                await self._compare(session)
                continue
            for version, batch in lacking:
                await _apply(session.switch, batch)
                session.shared_version = version

    async def _sync_node(self, session: Session) -> None:
        """Make the node's own flows and meters right."""
        program = self._programs.setdefault(session.node, Program())
        desired = {
            cookie: flow
            for cookie, (flow, _) in program.cookies.items()
            if cookie not in session.left_out
        }
        meters = dict(program.meters)
        delta = diff(session.cookies, session.meters, desired, meters)
        # A flow left over from before may have become a shared one again meanwhile.
        deletes = tuple(c for c in delta.deletes if c not in self._shared.cookies)
        delta = replace(delta, deletes=deletes)
        if not self.whole:
            delta = replace(delta, deletes=(), meters_delete=())
        if not delta:
            return
        await _apply(session.switch, batch_of(delta, session.meters))
        session.cookies = session.cookies - set(delta.deletes) | {f.cookie for f in delta.adds}
        for meter in delta.meters_set:
            session.meters[meter.id] = meter
        for meter_id in delta.meters_delete:
            session.meters.pop(meter_id, None)

    def _leave_out(self, session: Session, refused: Rejected) -> bool:
        """Go on without the objects whose flows were refused; whether any is newly left out.

        All flows of such an object are left out: half of them might open what the others close.
        """
        before = len(session.left_out)
        for message, error in refused.refusals:
            if not isinstance(message, Flow):
                continue
            for program in (self._shared, self._programs.get(session.node, Program())):
                if found := program.cookies.get(message.cookie):
                    fragment = found[1]
                    session.left_out |= {flow.cookie for flow in fragment.flows}
                    self.report(
                        f"{fragment.cause} on the switch of {session.node}",
                        f"the switch refused {message_text(message)}: {error}",
                    )
        return len(session.left_out) > before

    def _forget(self, node: str) -> None:
        """Drop the ports of a node that is neither connected nor known."""
        if node not in self.sessions and not self.inventory.knows_node(node):
            self._absorb(self.inventory.set_ports(node, []))

    # --- what people ask ---

    def explain(self, node: str, cookie: int) -> tuple[Flow, str] | None:
        """The desired flow with this cookie on a node, and the object it is there for."""
        for program in (self._programs.get(node), self._shared):
            if program is not None and (found := program.cookies.get(cookie)):
                return found[0], found[1].cause
        return None

    def desired(self, node: str) -> dict[int, tuple[Flow, str]]:
        """Every flow that a node should hold, by cookie, with the object it is there for."""
        programs = (self._shared, self._programs.get(node, Program()))
        return {
            cookie: (flow, fragment.cause)
            for program in programs
            for cookie, (flow, fragment) in program.cookies.items()
        }

    async def installed(self, node: str) -> list[InstalledFlow]:
        """What a node's switch holds right now. Raises `KeyError` if it is not connected."""
        return list(await self.sessions[node].switch.dump_flows())


async def _apply(switch: Switch, batch: Batch) -> None:
    """As `Switch.apply`; a switch that does not acknowledge in time is cut off.

    One that answers echoes, but no commit, would otherwise be out of sync for ever.
    """
    try:
        async with asyncio.timeout(LONGEST_APPLY):
            await switch.apply(batch)
    except TimeoutError:
        raise ConnectionLost(f"a batch was not acknowledged in {LONGEST_APPLY:g} s") from None


def batch_of(delta: Delta, meters: Mapping[int, Meter] | None = None) -> Batch:
    """Encode a delta for a switch that has these meters."""
    known = meters or {}
    return Batch.of(
        adds=delta.adds,
        deletes=delta.deletes,
        meters_set=[meter for meter in delta.meters_set if meter.id not in known],
        meters_change=[meter for meter in delta.meters_set if meter.id in known],
        meters_delete=delta.meters_delete,
    )
