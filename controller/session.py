"""One connected switch: what it has acknowledged, and how it gets its flows.

Start, change, reconnect and repair are one path: compare the switch if its content is unknown, send
what is missing, and record as held what it acknowledged. `controller.session_state` has the states.

Both programs have a seal: a flow that proves, by its content, that a switch holds the whole
program. The seal is the last message of the bundle that completes the program. A node's seal also
proves that no stale flow is left on the switch, so a comparison deletes that seal first.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Coroutine
from dataclasses import replace
from itertools import count
from typing import Any, Final

import structlog

from controller import metrics, seal_history
from controller.acknowledgements import Acknowledgements
from controller.audit import Audit
from controller.desired import Desired, batch_of
from controller.flush_queue import FlushQueue
from controller.journal import take_in, undo
from controller.leadership import Leadership
from controller.left_out import left_out_of
from controller.mastery import Mastery
from controller.policy_order import around
from controller.problems import Reporter, ReporterKind
from controller.session_state import PENDING, TRANSITIONS, Event, State
from controller.settling import REVALIDATED, follow_time
from flows import names
from flows.compile import Program
from flows.diff import Delta, GroupChange, diff, is_ours
from flows.features import policy, state
from flows.flow import Flow, Group, Meter
from flows.refs import ObjectRef
from openflow.batch import Batch, DeleteStrict
from openflow.errors import ConnectionLost
from openflow.switch import Rejected, Switch

log = structlog.get_logger()

LONGEST_APPLY: Final = 60.0
"""Seconds that a switch may take to acknowledge a batch."""
RETRY_REJECTED: Final = 60.0
"""Seconds until objects that a switch rejected are tried again: its table may have been full."""

_SERIAL = count(1)


class Session:
    """One connected switch of a node."""

    def __init__(  # noqa: PLR0915 - one line for each attribute
        self,
        node: str,
        switch: Switch,
        desired: Desired,
        on_acknowledged: Callable[[str], None] = lambda _: None,
        leadership: Leadership | None = None,
    ) -> None:
        """Call `on_acknowledged` with the node when `held_version` has changed.

        `leadership`: None for a controller that is the only one.
        """
        self.node = node
        self.reporter = Reporter(ReporterKind.SWITCH, node, next(_SERIAL))
        """Of the problems with what this switch rejects: they end with the session."""
        self.switch = switch
        self.desired = desired
        self.leadership = leadership or Leadership()
        self.state = State.UNKNOWN if self.leadership.holds() else State.STANDBY
        self.dirty = asyncio.Event()
        """Set while there is something to do (`session_state.PENDING`), or a role to be told."""
        self.dirty.set()
        self.turn = asyncio.Event()
        """Set while `dirty` is, except while a shared change waits for its place (`FanOut`)."""
        self.turn.set()
        self._waits = False
        """Whether all there is to do is a shared change that waits for its place."""
        self.mastery = Mastery(switch, self.leadership)
        self.was_synced = False
        """It held everything at least once, except what it rejected: pods have a network."""
        self.shared_version = 0
        """The version of the shared program that it holds."""
        self.left_out: set[int] = set()
        """Cookies of the flows that the switch rejected, and of all others of the same object."""
        self.meters: dict[int, Meter] = {}
        """The meters that the switch holds, by id."""
        self.audit = Audit(self)
        self.held_version = -1
        """The version of the node's own program that the switch acknowledged last; -1: none."""
        self.acknowledged = Acknowledgements()
        self.acknowledged_in = 0.0
        """Seconds that the switch took to acknowledge the last change of the node's own program."""
        self._late_since = time.monotonic()
        self._on_acknowledged = on_acknowledged
        self._journal = desired.follow(node)
        if self.state is State.STANDBY:
            self._journal.remember()
        self.flushes = FlushQueue(node, self._apply_chosen, self._caught_up)
        self._rounds_begun = 0
        """How many rounds of `sync` have begun."""
        self._rounds_ended = 0
        self._round_ended = asyncio.Event()
        self._cookies: set[int] = set()
        """Cookies of the flows of Sluice that the switch holds outside the shared program."""
        self._groups: dict[int, Group | None] = {}
        """The groups that belong to `_cookies`, by id. None: the group's content is unknown."""
        self._seal = 0
        """The cookie of the node's seal that the switch holds; 0: none."""
        self._members: set[int] = set()
        """Cookies of members of peer sets that a comparison found and the program never had."""
        self.kept_members = False
        """Whether the switch has members that may be pods of nodes that have not connected yet.

        Without the seal: the switch has more than its program."""
        self._retry: asyncio.TimerHandle | None = None

    # What happens to it.

    @property
    def in_sync(self) -> bool:
        """Whether the switch holds everything that it should."""
        return self.state is State.IN_SYNC

    @property
    def lag(self) -> float:
        """Seconds since the switch last held everything that it should; 0: it does now."""
        return 0.0 if self.in_sync else time.monotonic() - self._late_since

    @property
    def seal(self) -> int:
        """The cookie of the node's seal on the switch; 0 for none."""
        return self._seal

    @property
    def settle_time(self) -> float:
        """Seconds after which no packet meets flows that the switch has replaced."""
        return max(REVALIDATED, self.follow_time)

    @property
    def follow_time(self) -> float:
        """Seconds in which nearly the whole datapath follows what the switch has acknowledged."""
        return follow_time(self.audit.datapath_flows, self.acknowledged_in)

    @property
    def needs_comparison(self) -> bool:
        """Whether the next round begins with a comparison, which is expensive."""
        return self.state in {State.UNKNOWN, State.RETRY}

    def changed(self) -> None:
        """The node's own program changed."""
        self._waits = False
        self._take(Event.CHANGED)

    def shared_changed(self) -> bool:
        """The shared program changed. Returns whether `wake` has to follow, to send the change."""
        if self.state in {State.IN_SYNC, State.INCOMPLETE}:
            self._waits = True
        self._take(Event.CHANGED)
        return self._waits

    def wake(self) -> bool:
        """Send the shared changes that wait; False: none waits any more."""
        if not self._waits:
            return False
        self.look_again()
        return True

    def look_again(self) -> None:
        """Have `sync` called, even if there is nothing to do."""
        self._waits = False
        self.dirty.set()
        self.turn.set()

    def invalidate(self) -> None:
        """What the switch holds may differ from what is recorded: compare it."""
        self._take(Event.INVALIDATED)

    def retry(self) -> None:
        """Try once more what the switch rejected."""
        self._take(Event.RETRIED)

    def drifted(self) -> None:
        """An audit found that the switch does not hold what it acknowledged."""
        self._take(Event.DRIFTED)

    def pause(self) -> None:
        """Called instead of `sync` while it is unknown what the switch should hold."""
        self._take(Event.NODE_LOST)
        self._forget_held()
        self._rounds_begun += 1
        self._end_round()

    def lead(self) -> None:
        """Begin to write to the switch."""
        if self.state is State.STANDBY:
            self._take(Event.LEAD)

    def follow(self) -> None:
        """Stop writing to the switch: another controller may."""
        self.mastery.lose()
        self._take(Event.FOLLOW)
        self._forget_held()
        self._journal.remember()
        # What was rejected is tried again when this controller leads again.
        self.left_out.clear()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        self.flushes.clear()
        self._rounds_begun += 1
        self._end_round()

    async def stand_by(self) -> None:
        """Tell the switch that this controller does not write. Raises `ConnectionLost`."""
        if not self.mastery.is_told:
            await self.mastery.follow()
        self._note_work()

    def stand_by_again(self) -> None:
        """Tell the switch, once more, that this controller does not write."""
        self.mastery.is_told = False
        self._note_work()

    def end(self) -> None:
        """The connection is over."""
        if self._retry is not None:
            self._retry.cancel()
        self._journal.lose()

    def _take(self, event: Event) -> None:
        was_in_sync = self.in_sync
        self.state = TRANSITIONS[self.state, event]
        if was_in_sync and not self.in_sync:
            self._late_since = time.monotonic()
        self._note_work()

    def _note_work(self) -> None:
        if self.state in PENDING or (self.state is State.STANDBY and not self.mastery.is_told):
            self.dirty.set()
        else:
            self.dirty.clear()
        self._waits &= self.state is State.BEHIND
        if self.dirty.is_set() and not self._waits:
            self.turn.set()
        else:
            self.turn.clear()

    # How it gets its flows.

    async def sync(self) -> None:
        """Make the switch hold what it should, and return when it acknowledged that.

        Raises `ConnectionLost`, `NotWriter`, and `Rejected`: then what it holds has to be compared.
        """
        while self.state in PENDING:
            self._begin_round()
            try:
                if self.state is State.COMPARING:
                    await self._compare()
                    self._take(Event.FOUND)
                elif self.state is State.REPAIRING:
                    # What differs of the node's own groups and meters is found by a comparison.
                    self._journal.lose()
                    self.acknowledged.clear()
                    await self.audit.repair()
                    self._take(Event.FOUND)
                await self._catch_up()
                await self._sync_own()
            except Rejected:
                self._take(Event.FAILED)
                raise
            finally:
                # Also after a rejection: conntrack flushes must not wait until it is resolved.
                self._end_round()
            is_whole = self._may_seal and not self.kept_members
            self._take(Event.SENT if is_whole else Event.SENT_PARTLY)
            self.was_synced = True
            if self.needs_comparison or not self.desired.has_program(self.node):
                return
        metrics.SYNCS.inc()

    @property
    def _may_seal(self) -> bool:
        return self.desired.source_complete and not self.left_out

    def _forget_held(self) -> None:
        """Nothing that was acknowledged before counts any more."""
        self.held_version = -1
        self.acknowledged.clear()

    def _begin_round(self) -> None:
        self._waits = False
        if self.state is State.RETRY:
            self.left_out.clear()
        self._take(Event.STARTED)
        self._rounds_begun += 1

    def _end_round(self) -> None:
        self._rounds_ended = self._rounds_begun
        self._round_ended.set()
        self._round_ended = asyncio.Event()

    async def _compare(self) -> None:
        """Read what the switch holds, and correct its shared flows."""
        self._forget_held()
        if await self._is_known(await self.mastery.take_over()):
            return
        self._journal.lose()
        dump = await self.switch.dump_flows()
        installed = {flow.cookie for flow in dump if not state.is_seal(flow.table, flow.cookie)}
        self._members = {
            flow.cookie for flow in dump if policy.is_member(flow.table, flow.priority)
        }
        self.meters = dict(await self.switch.dump_meters())
        ids = {group.id for group in await self.switch.dump_groups() if group.id in names.GROUPS}
        desired = self.desired
        version = desired.shared.version
        shared = desired.shared.cookies
        held = shared.keys() & installed
        shared_groups = desired.shared.groups
        held_groups = desired.shared.groups_held(ids, installed)
        own_groups = desired.program(self.node).groups_held(ids, installed)
        self._groups = {number: own_groups.get(number) for number in ids - shared_groups.keys()}
        if held or self.left_out:
            known = held | self.left_out
            missing = tuple(flow for cookie, (flow, _) in shared.items() if cookie not in known)
            batch = batch_of(
                Delta(
                    adds=missing,
                    groups_set=tuple(
                        GroupChange(group)
                        for number, group in shared_groups.items()
                        if number not in held_groups
                        and desired.shared.companions[number] not in self.left_out
                    ),
                ),
                desired.shared.seal,
                sealed=self._may_seal,
                first=[DeleteStrict(desired.program(self.node).seal)],
            )
        else:
            batch = desired.everything_shared()
        # `_sync_own` deletes what belongs to neither program, after all additions.
        self._cookies = {cookie for cookie in installed - held if is_ours(cookie)}
        self._seal = 0
        metrics.COMPARISONS.inc()
        log.info(
            "compared", node=self.node, installed=len(installed), missing=len(shared) - len(held)
        )
        await self.apply(batch)
        self.shared_version = version

    async def _is_known(self, held: Collection[int]) -> bool:
        """Whether seals among these cookies say what the switch holds; then it is taken as held."""
        if self.left_out or not self._may_seal:
            return False  # flows are missing, even if old seals are still there
        known = await seal_history.find(self.desired, self.node, self._journal, held)
        if known is None:
            return False
        own = self.desired.program(self.node)
        self.shared_version, self._seal = known.shared_version, known.seal
        self._cookies, self.meters = set(own.cookies), dict(own.meters)
        self._groups = dict(own.groups)
        for step in reversed(known.steps):
            undo(step, self._cookies, self._groups)
        if known.steps:
            self.meters = dict(await self.switch.dump_meters())
        metrics.SEALED.inc()
        log.info("found sealed", node=self.node)
        return True

    async def _catch_up(self) -> None:
        """Send the batches of shared changes that the switch does not have yet."""
        while self.shared_version != self.desired.shared.version:
            lacking = self.desired.changes_since(self.shared_version)
            if lacking is None:
                self.invalidate()
                return
            for change in lacking:
                await self.apply(change.batch)
                self.shared_version = change.version
                self.acknowledged.note(self.shared_version, self.held_version)
                for triggered in change.triggers:
                    metrics.PROGRAMMING.observe(max(0.0, time.time() - triggered))

    async def _sync_own(self) -> None:
        """Send what the node's own flows, groups and meters lack."""
        if not self.desired.has_program(self.node):
            return
        while self.desired.is_held(self.node):  # noqa: ASYNC110 - for a few turns
            await asyncio.sleep(0)
        program = self.desired.program(self.node)
        began = time.monotonic()
        version = program.version
        sealed, seal = self._may_seal, program.seal
        if sealed and self._journal.is_whole and not self.kept_members:
            steps = self._journal.take()
            for number, step in enumerate(steps, 1):
                is_last = number == len(steps)
                # A flow that was deleted may be part of the shared program now.
                shared = self.desired.shared
                change = step.keeping(shared.cookies, shared.groups)
                await self._apply_own(change, seal, sealed=is_last, known=True)
        else:
            self._journal.restart()
            delta = self._lacking(program)
            sealed = sealed and not self.kept_members
            if delta or (seal.cookie if sealed else 0) != self._seal:
                await self._apply_own(delta, seal, sealed=sealed, known=False)
        self.held_version = version
        self.acknowledged.note(self.shared_version, version)
        self.acknowledged_in = time.monotonic() - began
        self._on_acknowledged(self.node)

    def _lacking(self, program: Program) -> Delta:
        """The difference between what the switch holds and the node's program."""
        wanted = {
            cookie: flow
            for cookie, (flow, _) in program.cookies.items()
            if cookie not in self.left_out
        }
        groups = {
            number: group
            for number, group in program.groups.items()
            if program.companions[number] not in self.left_out
        }
        delta = diff(self._cookies, self.meters, self._groups, wanted, program.meters, groups)
        delta = delta.keeping(self.desired.shared.cookies, self.desired.shared.groups)
        if not self.desired.source_complete:
            delta = replace(delta, deletes=(), meters_delete=(), groups_delete=())
        # Of a member that the program had, it is known why it is gone.
        self._members.difference_update(wanted)
        kept = set() if self.desired.members_known else self._members.intersection(delta.deletes)
        self.kept_members = bool(kept)
        if kept:
            delta = replace(delta, deletes=tuple(c for c in delta.deletes if c not in kept))
        return delta

    async def _apply_own(self, delta: Delta, seal: Flow, *, sealed: bool, known: bool) -> None:
        """Send a change of the node's own flows. `known`: the switch holds exactly what was before.

        Raises what `apply` raises.
        """
        flows = self.desired.program(self.node).cookies
        surrounded = around(delta, flows, known=known, empty=not self._cookies)
        await self.apply(
            batch_of(delta, seal, sealed=sealed, meters=self.meters, surrounded=surrounded)
        )
        self._seal = seal.cookie if sealed else 0
        take_in(delta, self._cookies, self._groups, self.meters)

    async def _caught_up(self) -> None:
        """Return when the switch has applied, or rejected, every change made before this call."""
        needed = self._rounds_begun + self.dirty.is_set()
        while self._rounds_ended < needed:
            await self._round_ended.wait()
        await asyncio.sleep(self.follow_time)

    async def apply(self, batch: Batch) -> None:
        """As `Switch.apply`; a switch that does not acknowledge in time is cut off."""
        await self._in_time(self.switch.apply(batch))

    async def _apply_chosen(self, choose: Callable[[], Batch | None]) -> None:
        await self._in_time(self.switch.apply_chosen(choose))

    async def _in_time(self, applied: Coroutine[Any, Any, None]) -> None:
        try:
            async with asyncio.timeout(LONGEST_APPLY):
                await applied
        except TimeoutError:
            raise ConnectionLost(f"a batch was not acknowledged in {LONGEST_APPLY:g} s") from None

    def leave_out(
        self, rejected: Rejected, on_retry: Callable[["Session"], None]
    ) -> dict[ObjectRef, str]:
        """Go on without the objects whose flows were rejected; why, for each of them.

        They are tried again later, after `on_retry` was called, unless the session has ended.
        """
        causes: dict[ObjectRef, str] = {}
        for program in (self.desired.shared, self.desired.program(self.node)):
            cookies, why = left_out_of(program, rejected)
            self.left_out |= cookies
            causes |= why
        if causes and self._retry is None:
            self._retry = asyncio.get_running_loop().call_later(
                RETRY_REJECTED, self._try_again, on_retry
            )
        return causes

    def _try_again(self, on_retry: Callable[["Session"], None]) -> None:
        self._retry = None
        on_retry(self)
        self.retry()
