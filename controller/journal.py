"""The last changes of one node's program, for the one switch that follows it.

So an update of the switch costs what changed, and not the whole program. A switch that has no whole
journal is compared with the program instead.
"""

from collections import deque
from collections.abc import Iterable
from typing import Final

from flows.diff import Delta, GroupChange
from flows.flow import Flow, Meter
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
        self._held: list[Delta] | None = None
        """Parts of a change that is not complete; None: there is no such change."""
        self._cost_held = 0

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
        if not self.is_whole:
            return
        if self._held is not None:
            self._held.append(delta)
            self._cost_held += cost(delta)
            if self._cost_held > MAX_COST:
                self.lose()
                self.hold()
            return
        self._steps.append(delta)
        self._cost += cost(delta)
        if self._cost > MAX_COST:
            self.lose()

    def hold(self) -> None:
        """The changes from now on, until `release`, are parts of one change."""
        self._held, self._cost_held = [], 0

    def release(self) -> None:
        """The change is complete."""
        held, self._held = self._held, None
        if held:
            self.add(_joined(held))

    def take(self) -> list[Delta]:
        """The changes, in their order, and with as few steps as possible. Empties the journal.

        Each step must be applied as a whole before the next one: two steps of policy that are mixed
        could allow what neither allows. Steps that fit into one bundle together are one step.
        """
        taken: list[Delta] = []
        for step in self._steps:
            if taken and cost(taken[-1]) + cost(step) < BUNDLE_SIZE:
                taken[-1] = _joined((taken[-1], step))
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


def _joined(steps: Iterable[Delta]) -> Delta:
    """All of these changes as one."""
    added: dict[int, Flow] = {}
    deleted: dict[int, None] = {}
    meters: dict[int, Meter] = {}
    groups: dict[int, GroupChange] = {}
    meters_gone: dict[int, None] = {}
    groups_gone: dict[int, None] = {}
    for step in steps:
        for cookie in step.deletes:
            # A flow that came and went: the switch never gets it.
            if added.pop(cookie, None) is None:
                deleted[cookie] = None
        for flow in step.adds:
            # A flow that went and came back is added nevertheless: the switch may hold another one
            # with its match.
            deleted.pop(flow.cookie, None)
            added[flow.cookie] = flow
        for meter in step.meters_set:
            meters_gone.pop(meter.id, None)
            meters[meter.id] = meter
        for number in step.meters_delete:
            meters.pop(number, None)
            meters_gone[number] = None
        for change in step.groups_set:
            groups_gone.pop(change.new.id, None)
            earlier = groups.get(change.new.id)
            groups[change.new.id] = GroupChange(change.new, earlier.old if earlier else change.old)
        for number in step.groups_delete:
            groups.pop(number, None)
            groups_gone[number] = None
    return Delta(
        tuple(added.values()),
        tuple(deleted),
        tuple(meters.values()),
        tuple(meters_gone),
        tuple(groups.values()),
        tuple(groups_gone),
    )
