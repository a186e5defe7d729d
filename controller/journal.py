"""The last changes of one node's program, for the one switch that follows it.

So an update of the switch costs what changed, and not the whole program. A switch that has no whole
journal is compared with the program instead.
"""

from collections import deque
from collections.abc import Collection
from typing import Final

from flows.diff import Delta, GroupChange
from openflow.batch import BUNDLE_SIZE

MAX_COST: Final = 50_000
"""Messages and buckets in one journal; a switch further behind is compared."""


class Journal:
    """The changes since the switch was last compared, or sent what a journal held."""

    def __init__(self) -> None:
        self.is_whole = False
        """Whether these are all changes since `restart`."""
        self._steps: deque[Delta] = deque()
        self._cost = 0

    def restart(self) -> None:
        """From now on, record every change."""
        self._clear()
        self.is_whole = True

    def lose(self) -> None:
        """What the switch holds is unknown: record nothing."""
        self._clear()
        self.is_whole = False

    def add(self, delta: Delta) -> None:
        """The program changed."""
        if self.is_whole:
            self._steps.append(delta)
            self._cost += cost(delta)
            if self._cost > MAX_COST:
                self.lose()

    def take(self) -> list[Delta]:
        """The changes, in their order, and with as few steps as possible. Empties the journal.

        Each step must be applied as a whole before the next one: two steps of policy that are mixed
        could allow what neither allows. Steps that fit into one bundle together are one step.
        """
        taken: list[Delta] = []
        for step in self._steps:
            if taken and cost(taken[-1]) + cost(step) < BUNDLE_SIZE:
                taken[-1] = _joined(taken[-1], step)
            else:
                taken.append(step)
        self._clear()
        return [step for step in taken if step]

    def _clear(self) -> None:
        self._steps.clear()
        self._cost = 0


def cost(delta: Delta) -> int:
    """Messages and buckets: roughly what it costs a switch, and in memory."""
    buckets = sum(len(change.new.buckets) for change in delta.groups_set)
    return (
        len(delta.adds)
        + len(delta.deletes)
        + len(delta.meters_set)
        + len(delta.meters_delete)
        + len(delta.groups_set)
        + len(delta.groups_delete)
        + buckets
    )


def _joined(first: Delta, then: Delta) -> Delta:
    """Both changes as one."""
    added = {flow.cookie: flow for flow in first.adds}
    deleted = dict.fromkeys(first.deletes)
    for cookie in then.deletes:
        # A flow that came and went: the switch never gets it. One that was replaced by a flow with
        # the same match before it came is gone at the end, too.
        if added.pop(cookie, None) is None:
            deleted[cookie] = None
    for flow in then.adds:
        # A flow that went and came back stays. It is added nevertheless: a flow with its match may
        # be what the switch holds.
        deleted.pop(flow.cookie, None)
        added[flow.cookie] = flow
    meters = {meter.id: meter for meter in (*first.meters_set, *then.meters_set)}
    groups: dict[int, GroupChange] = {}
    for change in (*first.groups_set, *then.groups_set):
        earlier = groups.get(change.new.id)
        groups[change.new.id] = GroupChange(change.new, earlier.old if earlier else change.old)
    for number in then.meters_delete:
        meters.pop(number, None)
    for number in then.groups_delete:
        groups.pop(number, None)
    return Delta(
        adds=tuple(added.values()),
        deletes=tuple(deleted),
        meters_set=tuple(meters.values()),
        meters_delete=_gone(first.meters_delete, then.meters_delete, meters),
        groups_set=tuple(groups.values()),
        groups_delete=_gone(first.groups_delete, then.groups_delete, groups),
    )


def _gone(first: tuple[int, ...], then: tuple[int, ...], kept: Collection[int]) -> tuple[int, ...]:
    return tuple(number for number in dict.fromkeys((*first, *then)) if number not in kept)
