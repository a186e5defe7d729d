"""Which node each connected switch belongs to, and when the switch is compared."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext
from functools import partial
from ipaddress import IPv4Address, ip_address
from typing import Final

import structlog

from controller import metrics
from controller.conntrack_flush import AnyFlush, ConntrackFlush
from controller.desired import Desired
from controller.fan_out import FanOut
from controller.inventory import BridgePort, Inventory
from controller.leadership import Leadership
from controller.mastery import Superseded
from controller.problems import Reporter, ReporterKind, SwitchRef
from controller.rates import Rate
from controller.session import Session
from controller.session_state import State
from controller.work_budget import WorkBudget
from flows import names
from flows.refs import ObjectRef
from flows.view import Key
from openflow.batch import message_text
from openflow.errors import ConnectionLost, NotWriter
from openflow.messages import PortReason, PortStatus
from openflow.switch import Rejected, Switch

log = structlog.get_logger()

UNCLAIMED: Final = Reporter(ReporterKind.SWITCH)
"""Reports switches that belong to no known Node."""
MAX_UNCLAIMED: Final = 1_000
"""Switches that wait for their Node. There can be many only without certificates: a switch with a
certificate has one datapath id."""
MAX_CONCURRENT_COMPARISONS: Final = 16
"""If a thousand switches reconnect and all are compared at once, the event loop is blocked for
seconds, and all dumps are in memory at the same time."""
MAX_CONCURRENT_ROLES: Final = 64
"""Switches that are asked for a role at the same time."""
LONGEST_TURN: Final = 1.0
"""Seconds after which the next comparison may begin, even if this one is not done: its switch may
be slow or dead."""
RETRY_ROUND: Final = 5.0
"""Seconds until a switch that rejected a message of no known object is compared again."""
RETRY_ROLE: Final = 1.0
"""Seconds until a leader tries again to write to a switch that has another master."""
MOST_BELIEVED: Final = 1 << 30
"""A generation of which half of all that there can be is used. No election comes that far."""
RAISE_PERIOD: Final = 10.0
"""Seconds between two terms that begin only because switches claim a newer generation."""
HANDED_OVER: Final = 30.0
"""Seconds before the end of a term of which the next leader sends all flushes once more: the last
one may have died before it sent them. More than switches take to do them."""
MAX_RECENT: Final = 256
"""Flushes that a new leader sends."""
MAX_LOGGED: Final = 20
"""Messages of one rejection that are logged."""
PRUNE_TICK: Final = 5.0
"""Seconds between two checks which shared changes every switch holds already."""
PORT_EVENTS_PER_SECOND: Final = 200
"""Events that are taken from one switch. Further ones wait, and do not delay other switches."""
PORT_EVENTS_BURST: Final = 1_000
"""A node with all of its pods started at once has fewer."""

LONGEST_WAIT_FOR_MEMBERS: Final = 30.0
"""Seconds that a controller waits after its start for the switches of all nodes to connect, before
it removes members of peer sets that it does not know (`Desired.members_known`)."""

Absorb = Callable[[set[Key]], None]


class Switches:
    """The sessions of all nodes."""

    def __init__(
        self,
        inventory: Inventory,
        desired: Desired,
        conntrack_flush: Callable[[], ConntrackFlush],
        absorb: Absorb,
        compiled: Callable[[str], Awaitable[None]],
        acknowledged: Callable[[str], None],
        leadership: Leadership | None = None,
    ) -> None:
        """`absorb` is called with the keys that a switch's ports changed.

        `compiled` returns when a node's program is up to date. `acknowledged` is called with a node
        whose switch has acknowledged its program, or is gone.
        """
        self.sessions: dict[str, Session] = {}
        """By node."""
        self.written: dict[str, Session] = {}
        """Those to which this controller writes: all of them, or none."""
        self.leadership = leadership or Leadership()
        self.leadership.tell(self)
        self.nodes_changed = asyncio.Event()
        """Set, and replaced, when Nodes or ranges change."""
        self._inventory = inventory
        self._desired = desired
        self._conntrack_flush = conntrack_flush
        self._absorb = absorb
        self._compiled = compiled
        self._acknowledged = acknowledged
        self._unclaimed: dict[int, Switch] = {}
        """By datapath id, switches that wait for their Node."""
        self._pruning: asyncio.TimerHandle | None = None
        self._connected: set[str] = set()
        """Nodes whose ports are known, until `Desired.members_known`."""
        self._fan_out = FanOut()
        self._roles = asyncio.Semaphore(MAX_CONCURRENT_ROLES)
        self._comparisons = asyncio.Semaphore(MAX_CONCURRENT_COMPARISONS)
        self._warm: set[str] = set()
        """Nodes whose program is compiled although another controller writes to their switches."""
        self._claims: dict[str, int] = {}
        """By node, the generation with which its switch refuses that of this controller; 0: it
        does not say, or what nobody believes."""
        self._raised_at = float("-inf")
        """When `_note_claim` wanted a greater generation."""
        self._turns = 0
        """How often this controller began or ceased to lead."""
        self._recent_flushes: deque[tuple[float, AnyFlush]] = deque(maxlen=MAX_RECENT)
        """The last flushes, and when they came: their sender may have died before it sent them."""

    # --- controller.leadership.Follower ---

    def lead(self) -> None:
        """Begin to write to every switch."""
        metrics.TERMS.inc()
        self._turns += 1
        self._claims.clear()
        self.written.update(self.sessions)
        recent = self._recent()
        for session in self.sessions.values():
            session.lead()
            session.flushes.add(recent)
        log.info("leading", generation=self.leadership.generation, switches=len(self.sessions))

    def _recent(self) -> list[AnyFlush]:
        """The flushes that the last leader may not have sent."""
        since = self.leadership.last_led - HANDED_OVER
        return [flush for came, flush in self._recent_flushes if came >= since]

    def follow(self) -> None:
        """Stop writing to every switch."""
        self._turns += 1
        self.written.clear()
        for node, session in self.sessions.items():
            session.follow()
            self._inventory.problems.clear_reporter(session.reporter)
            self._acknowledged(node)
        log.info("following", generation=self.leadership.generation)

    def follow_next(self) -> None:
        """Tell every switch once more that this controller does not write.

        One that knew a newer generation than this controller has refused to hear that.
        """
        for session in self.sessions.values():
            session.stand_by_again()

    # --- what others ask for ---

    def program_changed(self, node: str) -> None:
        """A node's own program changed."""
        if session := self.sessions.get(node):
            session.changed()

    def shared_changed(self) -> None:
        """The shared program changed."""
        self._fan_out.add([each for each in self.sessions.values() if each.shared_changed()])
        if self._pruning is None:
            self._pruning = asyncio.get_running_loop().call_later(PRUNE_TICK, self._prune)

    @property
    def has_work(self) -> bool:
        """Whether switches wait for the last shared change to be sent."""
        return self._fan_out.is_busy

    def _prune(self) -> None:
        """Drop the changes that every switch holds already."""
        self._pruning = None
        version = self._desired.shared.version
        # A standby keeps as many as fit: a switch may lack the last ones when it takes over.
        kept = 0 if not self.leadership.holds() else version
        oldest = min((each.shared_version for each in self.written.values()), default=kept)
        self._desired.forget_changes(oldest)
        if oldest != version and self.written:
            self._pruning = asyncio.get_running_loop().call_later(PRUNE_TICK, self._prune)

    def compare_all(self) -> None:
        """The source is complete: compare every switch, to find and delete stale flows."""
        for session in self.sessions.values():
            session.invalidate()
        if not self._desired.members_known and not self._knows_members():
            asyncio.get_running_loop().call_later(LONGEST_WAIT_FOR_MEMBERS, self._members_known)

    def _knows_members(self) -> bool:
        """Note it if the switch of every Node has connected once."""
        nodes = self._inventory.view.nodes
        if len(self._connected) < len(nodes) or not nodes.keys() <= self._connected:
            return False
        self._members_known()
        return True

    def _members_known(self) -> None:
        self._desired.members_known = True
        self._connected.clear()
        for session in self.sessions.values():
            if session.kept_members:
                session.changed()

    def forget(self, flush: AnyFlush) -> None:
        """Flush connections on every switch."""
        self._recent_flushes.append((self.leadership.now(), flush))
        for session in self.written.values():
            session.flushes.add([flush])

    def wake_nodes(self) -> None:
        """Nodes or ranges changed."""
        for node, session in self.sessions.items():
            # Its program may be the same as before, so nothing else would wake it.
            if node not in self._inventory.view.nodes:
                continue
            if session.state is State.PAUSED:
                session.changed()
            elif session.state is State.STANDBY and node not in self._warm:
                session.look_again()
        self.nodes_changed.set()
        self.nodes_changed = asyncio.Event()

    def drop_ports(self, node: str) -> None:
        """Drop the ports of a node that is neither connected nor known."""
        if node not in self.sessions and not self._inventory.knows_node(node):
            self._absorb(self._inventory.set_ports(node, [], WorkBudget()))

    # --- one switch ---

    async def own(self, switch: Switch) -> None:
        """Own one connected switch until it goes. The caller closes it on return."""
        node = await self._node_of(switch)
        if node is None:
            return
        session = Session(node, switch, self._desired, self._acknowledged, self.leadership)
        self.sessions[node] = session
        if self.leadership.holds():
            self.written[node] = session
        log.info("switch connected", node=node, peer=switch.peer)
        metrics.CONNECTIONS.inc()
        metrics.SESSIONS.set(len(self.sessions))
        try:
            if (address := _address(switch.host)) is not None:
                self._absorb(self._inventory.node_connected(node, address, WorkBudget()))
            async with self._turn():
                ports = [BridgePort(p.name, p.ofport, p.mac) for p in switch.ports.values()]
                self._absorb_ports(
                    node, lambda: self._inventory.set_ports(node, ports, WorkBudget())
                )
            if not self._desired.members_known:
                self._connected.add(node)
                if self._desired.source_complete:
                    self._knows_members()
            async with asyncio.TaskGroup() as group:
                group.create_task(self._follow_ports(session))
                group.create_task(self._keep_in_sync(session))
                group.create_task(session.flushes.run())
        except* ConnectionLost as lost:
            log.info("switch lost", node=node, reason=str(lost.exceptions[0]))
        finally:
            log.info("switch gone", node=node, peer=switch.peer)
            session.end()
            self._fan_out.remove(session)
            self._inventory.problems.clear_reporter(session.reporter)
            self._warm.discard(node)
            if self.written.get(node) is session:
                del self.written[node]
            if self.sessions.get(node) is session:
                del self.sessions[node]
                self.drop_ports(node)
                # The next session reports them again.
                self._inventory.problems.clear_reporter(Reporter(ReporterKind.PORTS, node))
                self._acknowledged(node)
            metrics.SESSIONS.set(len(self.sessions))

    async def _node_of(self, switch: Switch) -> str | None:
        """The node that this switch belongs to; None: it is refused. Waits for an unknown Node."""
        name = switch.certificate_name
        # Checked first: a stolen certificate must not keep sessions open under invented ids.
        if name is not None and switch.dpid != names.datapath_id(name):
            log.error(
                "a switch with another node's datapath id is refused",
                node=name,
                datapath_id=f"{switch.dpid:016x}",
            )
            return None
        if (node := self._inventory.node_of(switch.dpid)) is None:
            node = await self._wait_for_node(switch)
        if node is None:
            return None
        # A rebooted switch must not be refused because of its own half-open connection. A second
        # connection must not replace a living one. Of two new connections, only one may replace
        # a dead one.
        while (earlier := self.sessions.get(node)) is not None:
            if await earlier.switch.alive(2.0):
                log.error("a second session is refused: the first one is alive", node=node)
                return None
            if self.sessions.get(node) is earlier:
                earlier.switch.close("replaced by a new session")
                del self.sessions[node]
                self.written.pop(node, None)
        return node

    async def _wait_for_node(self, switch: Switch) -> str | None:
        if (earlier := self._unclaimed.pop(switch.dpid, None)) is not None:
            earlier.close("replaced by a new session")
        elif len(self._unclaimed) >= MAX_UNCLAIMED:
            log.error("a switch is refused: too many wait for their Nodes", peer=switch.peer)
            return None
        problems, subject = self._inventory.problems, SwitchRef(switch.dpid, switch.peer)
        problems.set(UNCLAIMED, subject, "no Node's name gives this datapath id; it waits for one")
        self._unclaimed[switch.dpid] = switch
        try:
            while (node := self._inventory.node_of(switch.dpid)) is None:
                await self.nodes_changed.wait()
        finally:
            if self._unclaimed.get(switch.dpid) is switch:
                del self._unclaimed[switch.dpid]
            problems.clear(UNCLAIMED, subject)
        return node

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """Wait for a place among the comparisons. A slow one gives its place up after a while."""
        await self._comparisons.acquire()
        over = asyncio.get_running_loop().create_future()
        over.add_done_callback(lambda _: self._comparisons.release())
        timer = asyncio.get_running_loop().call_later(LONGEST_TURN, over.cancel)
        try:
            yield
        finally:
            timer.cancel()
            over.cancel()

    # --- its ports ---

    async def _follow_ports(self, session: Session) -> None:
        rate = Rate(PORT_EVENTS_PER_SECOND, PORT_EVENTS_BURST)
        async for event in session.switch.port_events():
            if self.sessions.get(session.node) is not session:
                return
            await rate.wait()
            self._absorb_ports(session.node, partial(self._take_port, session.node, event))

    def _take_port(self, node: str, event: PortStatus) -> set[Key]:
        port = event.port
        if event.reason is PortReason.DELETE:
            return self._inventory.remove_port(node, port.name, WorkBudget())
        found = BridgePort(port.name, port.ofport, port.mac)
        return self._inventory.set_port(node, found, WorkBudget())

    def _absorb_ports(self, node: str, change: Callable[[], set[Key]]) -> None:
        conntrack_flush = self._conntrack_flush()
        before = conntrack_flush.attached(node)
        self._absorb(change())
        after = conntrack_flush.attached(node)
        conntrack_flush.free(node, before - after)
        conntrack_flush.reuse(after - before)

    # --- its flows ---

    async def _keep_in_sync(self, session: Session) -> None:
        while True:
            await session.turn.wait()
            await self._sync(session)
            self._fan_out.done(session)

    async def _sync(self, session: Session) -> None:
        if session.state is State.STANDBY:
            await session.stand_by()
            # It takes over at once if it knows what the switch should hold.
            await self._compiled(session.node)
            if session.node in self._inventory.view.nodes:
                self._warm.add(session.node)
            return
        turns = self._turns
        try:
            await self._write(session)
        except NotWriter as refused:
            # Otherwise the session knows already, and may have begun to lead again.
            if turns == self._turns:
                await self._stop_writing(session, refused)
        except Rejected as rejected:
            self._log_rejection(session.node, rejected)
            causes = session.leave_out(rejected, self._on_retry)
            for subject, why in causes.items():
                self._inventory.problems.set(session.reporter, subject, why)
            if not causes:
                await asyncio.sleep(RETRY_ROUND)

    async def _write(self, session: Session) -> None:
        """Bring the switch up to date. Raises what `Session.sync` raises."""
        # A Node that is refused or gone keeps its flows: there is no program to replace them.
        if session.node not in self._inventory.view.nodes:
            session.pause()
            return
        if session.needs_comparison:
            # A comparison with a program that is only partly compiled would delete right flows.
            await self._compiled(session.node)
            # All at once: one renewal of the Lease is enough for all that have the role then.
            await session.mastery.become(self._roles)
            if self._claims.pop(session.node, None) is not None:
                self._inventory.problems.clear(session.reporter, ObjectRef.node(session.node))
        async with self._turn() if session.needs_comparison else nullcontext():
            await session.sync()

    async def _stop_writing(self, session: Session, refused: NotWriter) -> None:
        """The switch knows another writer: perhaps the Lease is somebody else's already."""
        if session.node not in self._claims:
            log.warning("not written", node=session.node, reason=str(refused))
        turns = self._turns
        session.follow()
        self.leadership.doubt()
        if isinstance(refused, Superseded):
            self._note_claim(session.node, refused)
            self._inventory.problems.set(
                session.reporter,
                ObjectRef.node(session.node),
                f"its switch is not written: {refused}",
            )
        else:
            self._inventory.problems.clear_reporter(session.reporter)
        await asyncio.sleep(RETRY_ROLE)
        if turns == self._turns and self.leadership.holds():
            session.lead()
            session.flushes.add(self._recent())

    def _note_claim(self, node: str, refused: Superseded) -> None:
        """Raise the generation if most switches refuse it. A stolen one may claim anything."""
        known = refused.known or 0
        self._claims[node] = known if known <= MOST_BELIEVED else 0
        nodes = self._inventory.view.nodes
        claims = sorted(claim for node, claim in self._claims.items() if claim and node in nodes)
        now = self.leadership.now()
        if 2 * len(claims) > len(nodes) and now - self._raised_at >= RAISE_PERIOD:
            self._raised_at = now
            self.leadership.wanted_generation = claims[len(claims) // 2]

    def _on_retry(self, session: Session) -> None:
        self._inventory.problems.clear_reporter(session.reporter)

    @staticmethod
    def _log_rejection(node: str, rejected: Rejected) -> None:
        metrics.REJECTED.inc(len(rejected.rejections))
        for message, error in rejected.rejections[:MAX_LOGGED]:
            log.error(
                "rejected by a switch", node=node, message=message_text(message), error=str(error)
            )
        if (more := len(rejected.rejections) - MAX_LOGGED) > 0:
            log.error("rejected by a switch", node=node, message=f"{more} more", error="")


def _address(host: str) -> IPv4Address | None:
    """The IPv4 address that a switch connects from; None: it is no IPv4 address."""
    try:
        found = ip_address(host)
    except ValueError:
        return None
    # A socket for both families shows an IPv4 address as `::ffff:192.0.2.1`.
    return found if isinstance(found, IPv4Address) else found.ipv4_mapped
