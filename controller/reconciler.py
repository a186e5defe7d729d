"""Connects sources, inventory, compilation and switches.

Start, change and repair are one path: `controller.inventory` says which keys an event changed,
`controller.compilation` compiles them, `controller.session` updates the switch. The other parts:
`controller.switches` (which node a switch belongs to), `controller.conntrack_flush` (which
connections are flushed), `controller.problems`.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Collection, Iterable
from functools import partial

import structlog

from controller.compilation import Compilation
from controller.conntrack_flush import ConntrackFlush
from controller.desired import Desired
from controller.inventory import Inventory
from controller.leadership import Leadership
from controller.problems import SOURCE, Problems, Reporter, ReporterKind, Subject
from controller.proofs import Proofs
from controller.session import Session
from controller.session_state import State
from controller.sources.objects import Object
from controller.switches import Switches
from controller.work_budget import WorkBudget
from flows.compile import Compiler
from flows.family import IPAddress
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Key
from openflow.messages import InstalledFlow, InstalledGroup
from openflow.switch import Switch
from wire.documents import SwitchDigest, Verdict

log = structlog.get_logger()

OBJECT_COST = 10
"""Of one object that is taken in, as `work_budget.MAX_COST` counts."""


class Reconciler:
    """Takes in what sources and switches report, and keeps the switches up to date."""

    def __init__(
        self,
        inventory: Inventory,
        compiler: Compiler | None = None,
        leadership: Leadership | None = None,
    ) -> None:
        """`compiler`: of all features by default. `leadership`: None: there is no election."""
        self.inventory = inventory
        self.desired = Desired(inventory.view, compiler)
        self.listed = asyncio.Event()
        """The source was read once, as far as it can be read: switches may come."""
        self.services_changed = asyncio.Event()
        """Set, and replaced, when the hosts' part of Services changes: wakes agents that wait."""
        self.settled: list[Callable[[], None]] = []
        """Each is called when something was taken in that may have changed the view."""
        self.acknowledged_at = time.monotonic()
        """When a switch has acknowledged its program last, as `time.monotonic` has it."""
        self.proofs = Proofs(inventory.view.nodes)
        self.switches = Switches(
            inventory,
            self.desired,
            lambda: self.conntrack_flush,
            self._absorb,
            self._compiled,
            self._acknowledged,
            leadership,
        )
        self.conntrack_flush = ConntrackFlush(
            inventory.view, self.switches.forget, inventory.services.stale_udp
        )
        self.compilation = Compilation(
            inventory,
            self.desired,
            on_node=self.switches.program_changed,
            on_shared=self.switches.shared_changed,
            on_published=self._published,
            sessions=self.switches.written,
            is_sending=lambda: self.switches.has_work,
        )
        self._intake: deque[Object | ObjectRef | partial[None]] = deque()
        """What the source reported and was not taken in yet, in its order."""
        self._taking: asyncio.Handle | None = None
        self._touched: set[Key] = set()
        self._host_changes = 0
        inventory.load_balancers.followers.append(self._follow_services)
        self._absorb({Key(CLUSTER_SCOPE, "cluster", "")})
        inventory.address_owners.start(self.leadership, self._absorb)

    @property
    def sessions(self) -> dict[str, Session]:
        """The session of each connected node."""
        return self.switches.sessions

    @property
    def leadership(self) -> Leadership:
        """Whether this controller may write."""
        return self.switches.leadership

    @property
    def is_idle(self) -> bool:
        """Whether the programs have everything that sources and switches have reported."""
        return not self._intake and self.compilation.is_idle

    @property
    def changed(self) -> asyncio.Event:
        """Set, and replaced, when Nodes or ranges change: wakes agents that wait."""
        return self.switches.nodes_changed

    @property
    def problems(self) -> Problems:
        """Every current problem."""
        return self.inventory.problems

    # --- what the sources tell (controller.sources.feed.Feed) ---

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        """Objects added or changed, and references to those that are gone.

        A few are taken in at once, many in several turns of the event loop.
        """
        self._intake.extend(ObjectRef(*ref) for ref in gone)
        self._intake.extend(changed)
        self._take_in()

    def report_addresses(self, node: str, addresses: Iterable[IPAddress]) -> None:
        """What a node's agent has found on its host's interfaces."""
        self.inventory.report_addresses(node, addresses)
        self._settle(WorkBudget())

    def report(self, subject: Subject, problem: str) -> None:
        """Say what is wrong with a subject of the source; empty: nothing any more."""
        self._intake.append(partial(self.problems.set, SOURCE, subject, problem))
        self._take_in()

    def source_complete(self, whole: bool) -> None:
        """The source was read once; `whole`: nothing of it was unreadable. This is remembered."""
        self._intake.append(partial(self._complete, whole))
        self._take_in()

    def _take_in(self) -> None:
        if self._taking is None:
            self._take_slice()

    def _take_slice(self) -> None:
        self._taking = None
        budget = WorkBudget()
        while self._intake and not budget.over:
            item = self._intake.popleft()
            if isinstance(item, ObjectRef):
                self._remove(item, budget)
            elif isinstance(item, partial):
                # It concerns everything that came before it.
                self._settle(budget)
                if not self.inventory.is_settled:
                    self._intake.appendleft(item)
                    break
                item()
            else:
                self._touched |= self.inventory.set_object(item)
            budget.spend(OBJECT_COST)
        self._settle(budget)
        self._go_on()

    def _go_on(self) -> None:
        """See to it that what is left is done in the next turn."""
        if (self._intake or not self.inventory.is_settled) and self._taking is None:
            self._taking = asyncio.get_running_loop().call_soon(self._take_slice)

    def _remove(self, gone: ObjectRef, budget: WorkBudget) -> None:
        self._touched |= self.inventory.remove_object(*gone)
        self.problems.clear_subject(gone)
        if gone.kind == "Node":
            self.problems.clear_reporter(Reporter(ReporterKind.AGENT, gone.name))
            self._settle(budget)
            self.switches.drop_ports(gone.name)
            self.proofs.forget(gone.name)

    def _settle(self, budget: WorkBudget) -> None:
        """Update what depends on the objects that were taken in."""
        touched, self._touched = self._touched, set()
        self._absorb(touched | self.inventory.settle(budget))
        self._follow_services()
        for follower in self.settled:
            follower()

    def _complete(self, whole: bool) -> None:
        newly_complete = whole and not self.desired.source_complete
        self.desired.source_complete |= whole
        if not self.listed.is_set():
            self.compilation.open()
        elif newly_complete:
            self._source_completed()

    def _source_completed(self) -> None:
        self._wake_hosts()
        self.switches.compare_all()

    def _published(self) -> None:
        """All shared changes so far are in the shared program."""
        self.conntrack_flush.published()
        if not self.listed.is_set():
            self.listed.set()
            complete = self.desired.source_complete
            log.info("the cluster is known", nodes=len(self.inventory.view.nodes), whole=complete)
            self._source_completed()

    # --- what follows ---

    def _absorb(self, touched: Collection[Key]) -> None:
        """Bring the programs up to date with the view."""
        self.compilation.touch(touched)
        if any(key.kind in {"peer", "node"} for key in touched):
            self.switches.wake_nodes()
        if not self.inventory.is_settled:
            self._go_on()

    def _follow_services(self) -> None:
        """Update what changes with Services besides flows: hosts and conntrack."""
        services = self.inventory.services
        if services.hosts.changes != self._host_changes:
            self._host_changes = services.hosts.changes
            self._wake_hosts()
        stale = services.stale_udp.take()
        # The first list is no change: Services may have been so before the controller started.
        if self.listed.is_set():
            self.conntrack_flush.add_stale(stale)

    async def _compiled(self, node: str) -> None:
        await self.compilation.compiled(node)

    def _acknowledged(self, node: str) -> None:
        if node in self.switches.written:
            self.acknowledged_at = time.monotonic()
        self.compilation.policy.acknowledged(node)

    def _wake_hosts(self) -> None:
        self.services_changed.set()
        self.services_changed = asyncio.Event()

    # --- what switches and agents tell, and people ask ---

    async def on_switch(self, switch: Switch) -> None:
        """Own one connected switch until it is gone. The caller closes it after that."""
        await self.switches.own(switch)

    def prepare_digest(self, node: str) -> bool:
        """Compute a part of the expected digest. True: it is complete.

        Raises `KeyError` if the switch is not connected.
        """
        session = self.sessions[node]
        is_judged = session.in_sync or session.state is State.STANDBY
        return not is_judged or self.desired.digests(node) is not None

    def take_digest(self, node: str, given: SwitchDigest) -> Verdict:
        """Compare an agent's digest of its switch with what the switch acknowledged.

        Raises `KeyError` if the switch is not connected.
        """
        verdict = self.sessions[node].audit.judge(given)
        if verdict is Verdict.RIGHT:
            self.proofs.proven(node)
        return verdict

    async def installed(self, node: str) -> tuple[list[InstalledFlow], list[InstalledGroup]]:
        """The flows and the groups that a node's switch holds right now.

        Raises `KeyError` if it is not connected.
        """
        switch = self.sessions[node].switch
        return await switch.dump_flows(), await switch.dump_groups()
