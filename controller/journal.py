"""The last changes of one node's program, for the one switch that follows it.

So an update of the switch costs what changed, and not the whole program. A switch that has no whole
journal is compared with the program instead.

While another controller writes to the switch, the journal remembers the last changes and which
content of the program each of them began with. Whoever takes over knows by the switch's seal which
of them the switch lacks.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from flows.compile import Content
from flows.diff import Delta, GroupChange
from flows.flow import Flow, Group, Meter
from openflow.batch import BUNDLE_SIZE

MAX_COST: Final = 50_000
"""Messages and buckets in one journal; a switch further behind is compared."""
MAX_REMEMBERED: Final = 1_000
"""The same while another controller writes: it is behind for a moment at most."""


class Step(NamedTuple):
    """A change that the switch may lack."""

    before: Content
    """Of the program."""
    delta: Delta


class Journal:
    """The changes since the switch was last compared, or sent what a journal held."""

    def __init__(self) -> None:
        self.is_whole = False
        """Whether these are all changes since `restart`, or since what `resume` found."""
        self.remembers = False
        """Whether these are the last changes, and all after the first of them."""
        self._steps: deque[Step] = deque()
        self._cost = 0
        self._held: list[Delta] | None = None
        """Parts of a change that is not complete; None: there is no such change."""
        self._before_held: Content = (0, 0)
        self._cost_held = 0

    def restart(self) -> None:
        """From now on, record every change."""
        self._clear()
        self.is_whole, self.remembers = True, False

    def lose(self) -> None:
        """What the switch holds is unknown: record nothing."""
        self._clear()
        self.is_whole = self.remembers = False

    def remember(self) -> None:
        """Another controller changes the switch: keep the last changes."""
        self._clear()
        self.is_whole, self.remembers = False, True

    def resume(self, holds: Callable[[Content], bool]) -> list[Delta] | None:
        """Be whole again from where the switch is: at the first content of which `holds` is true.

        Returns the changes since then, in their order; None: the switch is at none of them.
        """
        steps = list(self._steps)
        found = next((at for at, step in enumerate(steps) if holds(step.before)), None)
        if found is None or not self.remembers:
            return None
        for step in steps[:found]:
            self._cost -= cost(step.delta)
            self._steps.popleft()
        self.is_whole, self.remembers = True, False
        return [step.delta for step in self._steps]

    def add(self, delta: Delta, before: Content) -> None:
        """The program changed. `before`: its content until now."""
        if not self.is_whole and not self.remembers:
            return
        if self._held is not None:
            self._held.append(delta)
            self._cost_held += cost(delta)
            if self._cost_held > MAX_COST:
                remembers = self.remembers
                self.lose()
                self.remembers = remembers
                self.hold(self._before_held)
            return
        self._steps.append(Step(before, delta))
        self._cost += cost(delta)
        if self.remembers:
            while self._steps and self._cost > MAX_REMEMBERED:
                self._cost -= cost(self._steps.popleft().delta)
        elif self._cost > MAX_COST:
            self.lose()

    def hold(self, before: Content) -> None:
        """The changes from now on, until `release`, are parts of one change."""
        self._held, self._cost_held, self._before_held = [], 0, before

    def release(self) -> None:
        """The change is complete."""
        held, self._held = self._held, None
        if held:
            self.add(_joined(held), self._before_held)

    def take(self) -> list[Delta]:
        """The changes, in their order, and with as few steps as possible. Empties the journal.

        Each step must be applied as a whole before the next one: two steps of policy that are mixed
        could allow what neither allows. Steps that fit into one bundle together are one step.
        """
        taken: list[Delta] = []
        for _, step in self._steps:
            if taken and cost(taken[-1]) + cost(step) < BUNDLE_SIZE:
                taken[-1] = _joined((taken[-1], step))
            else:
                taken.append(step)
        self._clear()
        return [step for step in taken if step]

    def _clear(self) -> None:
        self._steps.clear()
        self._cost = 0


def take_in(
    delta: Delta, cookies: set[int], groups: dict[int, Group | None], meters: dict[int, Meter]
) -> None:
    """Make what a switch held before an acknowledged change into what it holds after it."""
    cookies.difference_update(delta.deletes)
    cookies.update(flow.cookie for flow in delta.adds)
    for change in delta.groups_set:
        groups[change.new.id] = change.new
    for number in delta.groups_delete:
        groups.pop(number, None)
    for meter in delta.meters_set:
        meters[meter.id] = meter
    for meter_id in delta.meters_delete:
        meters.pop(meter_id, None)


def undo(delta: Delta, cookies: set[int], groups: dict[int, Group | None]) -> None:
    """Make what a switch holds after a change what it held before it."""
    cookies.difference_update(flow.cookie for flow in delta.adds)
    cookies.update(delta.deletes)
    for change in delta.groups_set:
        if change.old is None:
            groups.pop(change.new.id, None)
        else:
            groups[change.new.id] = change.old
    groups.update(dict.fromkeys(delta.groups_delete))


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
