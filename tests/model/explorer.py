"""Explores all states of a model, breadth first.

A model is an initial state and a function that returns the steps possible in a state. States are
hashable. The first state found that breaks the property has the shortest path.
"""

import gc
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from typing import Generic, NamedTuple, TypeVar

S = TypeVar("S", bound=Hashable)


class Step(NamedTuple, Generic[S]):
    """One step of a model."""

    name: str
    """A sentence for people."""
    after: S
    is_fault: bool = False
    """Faults may stop to happen."""


class TooManyStatesError(Exception):
    """The bound on states was reached before all of them were explored."""


class Explored(Generic[S]):
    """The states that can be reached, and how."""

    def __init__(
        self,
        start: S,
        steps: Callable[[S], Iterable[Step[S]]],
        is_broken: Callable[[S], bool],
        most_states: int,
    ) -> None:
        """Explore until a state is broken, or all are known. Raises `TooManyStatesError`."""
        self.states = [start]
        self.broken: S | None = None
        """The first state that breaks the property; None: no state does."""
        self._numbers = {start: 0}
        self._came: list[tuple[int, str]] = [(0, "")]
        """By state, the state before it and the step between them."""
        self._before: list[list[int]] = [[]]
        """By state, the states from which one step leads to it that is no fault."""
        was_enabled = gc.isenabled()
        # States refer to no states, so there are no cycles to look for.
        gc.disable()
        try:
            self._explore(steps, is_broken, most_states)
        finally:
            if was_enabled:
                gc.enable()

    def _explore(
        self,
        steps: Callable[[S], Iterable[Step[S]]],
        is_broken: Callable[[S], bool],
        most_states: int,
    ) -> None:
        waiting = deque([0])
        while waiting and self.broken is None:
            number = waiting.popleft()
            for step in steps(self.states[number]):
                after = self._numbers.get(step.after)
                if after is None:
                    after = self._add(step, number)
                    waiting.append(after)
                    if is_broken(step.after):
                        self.broken = step.after
                        break
                if not step.is_fault:
                    self._before[after].append(number)
            if len(self.states) > most_states:
                raise TooManyStatesError(f"more than {most_states} states")

    def _add(self, step: Step[S], before: int) -> int:
        number = self._numbers[step.after] = len(self.states)
        self.states.append(step.after)
        self._came.append((before, step.name))
        self._before.append([])
        return number

    def path(self, state: S) -> list[str]:
        """The names of the steps of the shortest path to a state."""
        number, names = self._numbers[state], []
        while number:
            number, name = self._came[number]
            names.append(name)
        return names[::-1]

    def trapped(self, is_good: Callable[[S], bool]) -> list[S]:
        """The states from which no path without a fault leads to a good state."""
        good = deque(number for number, state in enumerate(self.states) if is_good(state))
        free = set(good)
        while good:
            for number in self._before[good.popleft()]:
                if number not in free:
                    free.add(number)
                    good.append(number)
        return [state for number, state in enumerate(self.states) if number not in free]
