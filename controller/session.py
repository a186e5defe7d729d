"""One connected switch: what it has acknowledged, and how it becomes what it should be.

Start, change, reconnect and repair are this one path: look if what it holds is unknown, send what
it lacks, and count as held what it acknowledged.

Both programs have a seal, a flow that says by content that a switch holds all of the program. It
travels last in the bundle that makes it so. A node's seal also vouches that nothing else of ours
is left on the switch, so whatever compares a switch takes that one away first.
"""

import asyncio
import time
from collections.abc import Collection, Iterable
from dataclasses import replace
from itertools import count

import structlog

from controller import metrics
from controller.audit import Drift
from controller.desired import Desired, batch_of
from controller.problems import Owner, Reporter
from flows import names
from flows.compile import Program
from flows.diff import Delta, GroupChange, diff, is_ours
from flows.features import state
from flows.flow import Flow, Group, Meter
from flows.refs import ObjectRef
from flows.text import flow_text
from openflow import digest
from openflow.batch import (
    Batch,
    BucketRemove,
    BucketsInsert,
    FlowDelete,
    FlowRemove,
    Message,
    message_text,
)
from openflow.messages import InstalledFlow
from openflow.switch import ConnectionLost, Rejected, Switch
from wire.documents import SwitchDigest, Verdict

log = structlog.get_logger()

LONGEST_APPLY = 60.0
"""Seconds that a switch may take to acknowledge a batch."""
UNTIL_FOLLOWED = 0.05
"""Seconds in which a switch's datapath has followed the flows that it has acknowledged."""
WHOLE_FROM = 16
"""From so many differing ranges on, one dump of everything is cheaper than one of each."""
MOST_NAMED = 20
"""Flows of each kind that are named in the log when a switch has drifted."""
PAUSE_BETWEEN_VAIN_REPAIRS = 30.0
"""Seconds."""


_SERIAL = count(1)


class Session:
    """One connected switch of a node."""

    def __init__(self, node: str, switch: Switch, desired: Desired) -> None:
        self.node = node
        self.owner = Owner(Reporter.SWITCH, node, next(_SERIAL))
        """Of the problems with what this switch refuses: they end with the session."""
        self.switch = switch
        self.dirty = asyncio.Event()
        """Set when something is to be done; see `wake`."""
        self.in_sync = False
        self.was_synced = False
        """It has held everything at least once, but for what it refused: pods have a network."""
        self.compare = True
        """What it holds is unknown: look at it before anything else is sent."""
        self.shared_version = 0
        """The version of the shared program that it holds."""
        self.left_out: set[int] = set()
        """Cookies of what the switch refused, and of all that belongs to the same object."""
        self.foreign = 0
        """Flows and groups on it that nobody of ours has made, as the last digest says."""
        self.to_forget: asyncio.Queue[Batch] = asyncio.Queue()
        """Connections that the switch is to forget when it has the flows, and time."""
        self._again = False
        self._rounds_begun = 0
        """How often `sync` has looked at what is to be done."""
        self._rounds_ended = 0
        self._round_ended = asyncio.Event()
        self._desired = desired
        self._cookies: set[int] = set()
        """Flows of ours that it holds and that are not in the shared program."""
        self._meters: dict[int, Meter] = {}
        self._groups: dict[int, Group | None] = {}
        """Groups of ours by their ids, as `_cookies`; None: it holds one, and nobody knows what."""
        self._seal = 0
        """The cookie of the node's seal on it; 0 for none."""
        self._suspect: set[int] | None = None
        """Ranges of cookies in which it holds something else than it acknowledged; with none, but
        not None, that is its meters or groups."""
        self._odd_seals: SwitchDigest | None = None
        """The last digest, where it had other seals than it should have."""
        self._unmended = Drift(), Delta()
        """What the last repair was about, unless it was found right since."""
        self._next_repair = 0.0
        """Time of the event loop before which none is tried."""

    def wake(self, *, compare: bool = False) -> None:
        """Something is to be done: `sync` comes next."""
        self.compare |= compare
        self.in_sync = False
        self.dirty.set()

    async def sync(self) -> None:
        """Make the switch hold what it should, and return when it said so.

        Raises `ConnectionLost`, and `Rejected`: then what it holds has to be looked at.
        """
        while True:
            self._begin_round()
            try:
                if self.compare:
                    await self._compare()
                elif self._suspect is not None:
                    await self._repair()
                await self._catch_up()
                await self._sync_own()
            finally:
                # Also of what is refused: connections are not to be remembered until it is not.
                self._end_round()
            if not self.dirty.is_set():
                break
        self.in_sync = self._desired.whole and not self.left_out
        self.was_synced = True
        metrics.SYNCS.inc()

    def leave_as_it_is(self) -> None:
        """In the place of `sync`, where nobody knows what the switch should hold."""
        self._begin_round()
        self._end_round()

    def try_again(self) -> None:
        """Send once more what was left out."""
        # Not in the middle of a round, whose batches would seal what lacks something.
        self._again = True
        self.wake(compare=True)

    def _begin_round(self) -> None:
        self.dirty.clear()
        if self._again:
            self._again = False
            self.left_out.clear()
        self._rounds_begun += 1

    def _end_round(self) -> None:
        self._rounds_ended = self._rounds_begun
        self._round_ended.set()
        self._round_ended = asyncio.Event()

    async def _compare(self) -> None:
        """Find out what the switch holds, and make its shared flows right."""
        # Cleared first: what asks for a comparison while this one runs gets another.
        self.compare = False
        self._suspect = None
        if await self._is_sealed():
            return
        installed = {
            flow.cookie
            for flow in await self.switch.dump_flows()
            if not state.is_seal(flow.table, flow.cookie)
        }
        self._meters = dict(await self.switch.dump_meters())
        ids = {group.id for group in await self.switch.dump_groups() if group.id in names.GROUPS}
        desired = self._desired
        version = desired.shared.version
        shared = desired.shared.cookies
        held = shared.keys() & installed
        shared_groups = desired.shared.groups
        held_groups = _held(desired.shared, ids, installed)
        own_groups = _held(desired.program(self.node), ids, installed)
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
                sealed=desired.whole and not self.left_out,
                first=[FlowRemove(desired.program(self.node).seal)],
            )
        else:
            batch = desired.everything_shared()
        # What is neither shared nor the node's own goes in `_sync_own`, after all additions.
        self._cookies = {cookie for cookie in installed - held if is_ours(cookie)}
        self._seal = 0
        metrics.COMPARISONS.inc()
        log.info(
            "compared", node=self.node, installed=len(installed), missing=len(shared) - len(held)
        )
        await self._apply(batch)
        self.shared_version = version

    async def _is_sealed(self) -> bool:
        """Whether both seals on the switch are what they should be now; then it is in sync."""
        if self.left_out:
            return False  # then it lacks something, whatever its seals still say
        held = {flow.cookie for flow in await self.switch.dump_flows(state.TABLE)}
        shared, own = self._desired.shared, self._desired.program(self.node)
        if not held >= {shared.seal.cookie, own.seal.cookie}:
            return False
        self.shared_version = shared.version
        self._cookies, self._meters = set(own.cookies), dict(own.meters)
        self._groups = dict(own.groups)
        self._seal = own.seal.cookie
        metrics.SEALED.inc()
        log.info("found sealed", node=self.node)
        return True

    async def _catch_up(self) -> None:
        """Send the batches of shared changes that the switch has not had."""
        while self.shared_version != self._desired.shared.version:
            lacking = self._desired.changes_since(self.shared_version)
            if lacking is None:
                await self._compare()
                continue
            for change in lacking:
                await self._apply(change.batch)
                self.shared_version = change.version
                for triggered in change.triggers:
                    metrics.PROGRAMMING.observe(max(0.0, time.time() - triggered))

    async def _sync_own(self) -> None:
        """Make the node's own flows and meters right."""
        program = self._desired.program(self.node)
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
        delta = diff(self._cookies, self._meters, self._groups, wanted, program.meters, groups)
        # What is left over from before may have become a shared one again meanwhile.
        shared = self._desired.shared
        delta = replace(
            delta,
            deletes=tuple(c for c in delta.deletes if c not in shared.cookies),
            groups_delete=tuple(n for n in delta.groups_delete if n not in shared.groups),
        )
        if not self._desired.whole:
            delta = replace(delta, deletes=(), meters_delete=(), groups_delete=())
        sealed = self._desired.whole and not self.left_out
        seal = program.seal.cookie if sealed else 0
        if not delta and seal == self._seal:
            return
        await self._apply(batch_of(delta, program.seal, sealed=sealed, meters=self._meters))
        self._seal = seal
        self._cookies = self._cookies - set(delta.deletes) | {f.cookie for f in delta.adds}
        for change in delta.groups_set:
            self._groups[change.new.id] = change.new
        for number in delta.groups_delete:
            del self._groups[number]
        for meter in delta.meters_set:
            self._meters[meter.id] = meter
        for meter_id in delta.meters_delete:
            self._meters.pop(meter_id, None)

    async def forget_for_ever(self) -> None:
        """Send what `to_forget` gets. Raises `ConnectionLost`."""
        while True:
            batches = [await self.to_forget.get()]
            while not self.to_forget.empty():
                batches.append(self.to_forget.get_nowait())
            await self._caught_up()
            for batch in batches:
                try:
                    await self._apply(batch)
                except Rejected as refused:
                    log.warning("connections are left", node=self.node, reason=str(refused))

    async def _caught_up(self) -> None:
        """Return when the switch does all that it should have done by now, or has refused it.

        A datagram that still met the flows from before would be remembered as they say.
        """
        needed = self._rounds_begun + self.dirty.is_set()
        while self._rounds_ended < needed:
            await self._round_ended.wait()
        await asyncio.sleep(UNTIL_FOLLOWED)

    async def _apply(self, batch: Batch) -> None:
        """As `Switch.apply`; a switch that does not acknowledge in time is cut off.

        One that answers echoes, but no commit, would otherwise be out of sync for ever.
        """
        try:
            async with asyncio.timeout(LONGEST_APPLY):
                await self.switch.apply(batch)
        except TimeoutError:
            raise ConnectionLost(f"a batch was not acknowledged in {LONGEST_APPLY:g} s") from None

    def leave_out(self, refused: Rejected) -> dict[ObjectRef, str]:
        """Go on without the objects whose flows were refused; what each is refused for.

        All flows of such an object are left out: half of them might open what the others close.
        """
        causes: dict[ObjectRef, str] = {}
        for message, error in refused.refusals:
            for program in (self._desired.shared, self._desired.program(self.node)):
                if (cookie := _cookie_of(message, program)) and (
                    found := program.cookies.get(cookie)
                ):
                    owners = found[1].owners
                    self.left_out |= {
                        of_it
                        for of_it, (_, fragment) in program.cookies.items()
                        if fragment.owners == owners
                    }
                    why = f"the switch refused {message_text(message)}: {error}"
                    causes |= dict.fromkeys(found[1].owners, why)
        return causes

    # Audit

    def take_digest(self, given: SwitchDigest) -> Verdict:
        """Hold the agent's digest of this switch against what the switch acknowledged."""
        self.foreign = given.foreign
        if not self.in_sync:
            return Verdict.SUPERSEDED
        shared, own = self._desired.shared, self._desired.program(self.node)
        if sorted(given.seals) != sorted((shared.seal.cookie, own.seal.cookie)):
            # Told from before the last change, most likely; but that is not told twice.
            if given == self._odd_seals:
                self._found_drift("seal", 1)
                self.wake(compare=True)
            self._odd_seals = given
            return Verdict.SUPERSEDED
        self._odd_seals = None
        digests = self._desired.digests(self.node)
        sums = (each.sums for each in digests)
        expected = [digest.total(pair) for pair in zip(*sums, strict=True)]
        differing = {
            number
            for number, (is_, should) in enumerate(zip(given.sums, expected, strict=False))
            if is_ != should
        }
        wrong_meters = given.meters != digest.of_meters(own.meters.values())
        wrong_groups = given.groups != digest.total(each.groups_total for each in digests)
        if not differing and not wrong_meters and not wrong_groups:
            self._unmended = Drift(), Delta()
            return Verdict.RIGHT
        if asyncio.get_running_loop().time() >= self._next_repair:
            if wrong_meters:
                self._found_drift("meters", 1)
            if wrong_groups:
                self._found_drift("groups", 1)
            self._suspect = differing
            self.wake()
        return Verdict.DRIFT

    async def _repair(self) -> None:
        """Put right what the switch holds otherwise than it acknowledged, where it is suspect."""
        suspect, self._suspect = self._suspect or set(), None
        self._meters = dict(await self.switch.dump_meters())
        shared, own = self._desired.digests(self.node)
        known = {**shared.by_cookie, **own.by_cookie}
        installed: list[InstalledFlow] = []
        if len(suspect) < WHOLE_FROM:
            for number in suspect:
                installed += await self.switch.dump_flows(None, number, digest.RANGES - 1)
            known = {c: d for c, d in known.items() if c % digest.RANGES in suspect}
        else:
            installed += await self.switch.dump_flows()
        groups = await self._wrong_groups()
        drift = Drift.of(installed, known)
        if not drift and not groups.groups_set and not groups.groups_delete:
            return
        desired = self._desired.of(self.node)
        for kind, cookies in drift.by_kind().items():
            self._found_drift(kind, len(cookies), self._described(cookies, desired))
        if (drift, groups) == self._unmended:
            # Somebody works against us, or this Open vSwitch shows a flow or a group in a form that
            # we do not know. Either is for people to find out; the switch is to have its peace.
            log.error("drift is not mended by a repair", node=self.node)
            self._next_repair = asyncio.get_running_loop().time() + PAUSE_BETWEEN_VAIN_REPAIRS
        self._unmended = drift, groups
        mended = drift.missing | drift.altered
        delta = replace(
            groups,
            adds=tuple(desired[c][0] for c in mended if c in desired),
            # A meter that was deleted took the flows with it that use it: they need it again.
            meters_set=tuple(
                meter
                for meter in self._desired.program(self.node).meters.values()
                if self._meters.get(meter.id) != meter
            ),
        )
        # All that have the cookie, wherever they are; then the right one.
        first = [FlowDelete(cookie) for cookie in (*drift.altered, *drift.stale)]
        seal = self._desired.program(self.node).seal
        await self._apply(batch_of(delta, seal, sealed=True, meters=self._meters, first=first))
        self._meters |= {meter.id: meter for meter in delta.meters_set}

    async def _wrong_groups(self) -> Delta:
        """What puts right the groups that somebody changed, took away or brought."""
        wanted = self._desired.shared.groups | self._desired.program(self.node).groups
        digests = {
            n: d for each in self._desired.digests(self.node) for n, d in each.groups.items()
        }
        held = {
            group.id: digest.of_group_entry(group)
            for group in await self.switch.dump_groups()
            if group.id in names.GROUPS
        }
        return Delta(
            groups_set=tuple(
                GroupChange(group) for n, group in wanted.items() if held.get(n) != digests[n]
            ),
            groups_delete=tuple(sorted(held.keys() - wanted.keys())),
        )

    def _found_drift(self, kind: str, count: int, flows: Iterable[str] = ()) -> None:
        metrics.DRIFT.labels(kind).inc(count)
        if count:
            log.warning("drift", node=self.node, kind=kind, count=count, flows=list(flows))

    @staticmethod
    def _described(
        cookies: set[int], desired: dict[int, tuple[Flow, tuple[ObjectRef, ...]]]
    ) -> Iterable[str]:
        for cookie in sorted(cookies)[:MOST_NAMED]:
            if cookie in desired:
                flow, owners = desired[cookie]
                yield f"{', '.join(map(str, owners))}: {flow_text(flow)}"
            else:
                yield f"cookie={cookie:#x}"


def _held(program: Program, ids: Collection[int], cookies: Collection[int]) -> dict[int, Group]:
    """The program's groups that a switch with these ids and cookies holds as they are."""
    return {
        number: group
        for number, group in program.groups.items()
        if number in ids and program.companions[number] in cookies
    }


def _cookie_of(message: Message, program: Program) -> int:
    """The cookie of a flow that belongs to the object which a refused message is about, or 0."""
    match message:
        case Flow():
            return message.cookie
        case Group(id=number) | BucketsInsert(group=number) | BucketRemove(group=number):
            return program.companions.get(number, 0)
    return 0
