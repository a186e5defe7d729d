"""The audit of one switch: compare its agent's digests, and repair what differs."""

import asyncio
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import structlog

from controller import metrics
from controller.desired import batch_of
from controller.drift import Drift
from controller.session_state import State
from flows import names
from flows.diff import Delta, GroupChange
from flows.flow import Flow
from flows.refs import ObjectRef
from flows.text import flow_text
from openflow import digest
from openflow.batch import DeleteByCookie
from openflow.messages import InstalledFlow
from wire.documents import SwitchDigest, Verdict

if TYPE_CHECKING:
    from controller.session import Session

log = structlog.get_logger()

FULL_DUMP_FROM: Final = 16
"""With so many differing ranges, one dump of everything is cheaper than a dump of each."""
MAX_NAMED: Final = 20
"""Flows of each kind that the log names."""
REPAIR_BACKOFF: Final = 30.0
"""Seconds after a repair that did not fix drift."""


class Audit:
    """The state of one session's audit."""

    def __init__(self, session: "Session") -> None:
        self.foreign = 0
        """Flows and groups on the switch that Sluice does not manage, from the last digest."""
        self.datapath_flows = 0
        """Flows in the datapath's cache, from the last digest; 0: unknown."""
        self.found = 0
        """Flows, groups, seals and meters that differed so far, and were repaired."""
        self._session = session
        self._suspect: set[int] = set()
        """Ranges of cookies that differ. Empty despite drift: meters or groups differ."""
        self._odd_seals: SwitchDigest | None = None
        """The last digest, if its seals were not the seals of the programs."""
        self._repaired = Drift(), Delta()
        """What the last repair changed; empty after a digest that was right."""
        self._next_repair = 0.0
        """Time of the event loop before which no further repair begins."""

    def judge(self, given: SwitchDigest) -> Verdict:
        """Compare a digest with what the switch acknowledged."""
        session = self._session
        self.foreign, self.datapath_flows = given.foreign, given.datapath_flows
        digests = session.desired.digests(session.node)
        if session.state not in {State.IN_SYNC, State.STANDBY} or digests is None:
            return Verdict.SUPERSEDED
        shared, own = session.desired.shared, session.desired.program(session.node)
        if sorted(given.seals) != sorted((shared.seal.cookie, own.seal.cookie)):
            # Most likely this digest is older than the last change. But then it comes only once.
            if given == self._odd_seals and session.in_sync:
                self._count_drift("seal", 1)
                session.invalidate()
            self._odd_seals = given
            return Verdict.SUPERSEDED
        self._odd_seals = None
        expected = [
            digest.total(pair)
            for pair in zip(*(each.known_to(given.features) for each in digests), strict=True)
        ]
        differing = {
            number
            for number, (is_, should) in enumerate(zip(given.sums, expected, strict=True))
            if is_ != should
        }
        wrong_meters = given.meters != digest.of_meters(own.meters.values())
        wrong_groups = given.groups != digest.total(each.groups_total for each in digests)
        if not differing and not wrong_meters and not wrong_groups:
            self._repaired = Drift(), Delta()
            return Verdict.RIGHT
        if not session.in_sync:
            # Its leader judges it.
            return Verdict.SUPERSEDED
        if asyncio.get_running_loop().time() >= self._next_repair:
            if wrong_meters:
                self._count_drift("meters", 1)
            if wrong_groups:
                self._count_drift("groups", 1)
            self._suspect = differing
            session.drifted()
        return Verdict.DRIFT

    async def repair(self) -> None:
        """Restore in the suspect ranges, meters and groups what the switch acknowledged."""
        session = self._session
        suspect = self._suspect
        session.meters = dict(await session.switch.dump_meters())
        # Each call computes a part of the digests.
        while (digests := session.desired.digests(session.node)) is None:  # noqa: ASYNC110
            await asyncio.sleep(0)
        shared, own = digests
        known = {**shared.by_cookie, **own.by_cookie}
        wanted_digests = {**shared.groups, **own.groups}
        installed: list[InstalledFlow] = []
        if len(suspect) < FULL_DUMP_FROM:
            for number in suspect:
                installed += await session.switch.dump_flows(None, number, digest.RANGES - 1)
            known = {c: d for c, d in known.items() if c % digest.RANGES in suspect}
        else:
            installed += await session.switch.dump_flows()
        groups = await self._wrong_groups(wanted_digests)
        drift = Drift.of(installed, known)
        if not drift and not groups.groups_set and not groups.groups_delete:
            return
        desired = session.desired.of(session.node)
        for kind, cookies in drift.by_kind().items():
            self._count_drift(kind, len(cookies), _described(cookies, desired))
        if (drift, groups) == self._repaired:
            # Another program changes these flows too, or this Open vSwitch prints a flow or a group
            # in a form that we do not know. An operator has to look; do not repair for a while.
            log.error("repair did not fix drift", node=session.node)
            self._next_repair = asyncio.get_running_loop().time() + REPAIR_BACKOFF
        self._repaired = drift, groups
        program = session.desired.program(session.node)
        delta = replace(
            groups,
            adds=tuple(desired[c][0] for c in drift.missing | drift.altered if c in desired),
            # A switch that deletes a meter also deletes the flows that use it.
            meters_set=tuple(
                meter for meter in program.meters.values() if session.meters.get(meter.id) != meter
            ),
        )
        # Delete every flow with this cookie in any table; then add the right one.
        first = [DeleteByCookie(cookie) for cookie in (*drift.altered, *drift.stale)]
        # A program that changed meanwhile is not all there: `Session` sends the rest, and the seal.
        sealed = program.seal.cookie == session.seal
        batch = batch_of(delta, program.seal, sealed=sealed, meters=session.meters, first=first)
        await session.apply(batch)
        session.meters |= {meter.id: meter for meter in delta.meters_set}

    async def _wrong_groups(self, digests: dict[int, int]) -> Delta:
        """The changes that repair groups which another program changed, deleted or added."""
        session = self._session
        wanted = session.desired.shared.groups | session.desired.program(session.node).groups
        held = {
            group.id: digest.of_group_entry(group)
            for group in await session.switch.dump_groups()
            if group.id in names.GROUPS
        }
        return Delta(
            groups_set=tuple(
                GroupChange(group) for n, group in wanted.items() if held.get(n) != digests.get(n)
            ),
            groups_delete=tuple(sorted(held.keys() - wanted.keys())),
        )

    def _count_drift(self, kind: str, count: int, flows: Iterable[str] = ()) -> None:
        metrics.DRIFT.labels(kind).inc(count)
        self.found += count
        if count:
            node = self._session.node
            log.warning("drift", node=node, kind=kind, count=count, flows=list(flows))


def _described(
    cookies: set[int], desired: dict[int, tuple[Flow, tuple[ObjectRef, ...]]]
) -> Iterable[str]:
    for cookie in sorted(cookies)[:MAX_NAMED]:
        if cookie in desired:
            flow, owners = desired[cookie]
            yield f"{', '.join(map(str, owners))}: {flow_text(flow)}"
        else:
            yield f"cookie={cookie:#x}"
