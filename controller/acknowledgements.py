"""When a switch acknowledged which state of its programs."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

MOST: Final = 4
"""States of one switch that are remembered. There may be thousands of switches."""


class Acknowledged(NamedTuple):
    """The moment from which on a switch is known to hold a state."""

    at: float
    """Seconds since 1970."""
    is_exact: bool
    """False: it held the state at that time, perhaps also before."""


class Acknowledgements:
    """The last states that a switch acknowledged, as versions of the shared and its own program."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: deque[tuple[int, int, float]] = deque(maxlen=MOST)

    def note(self, shared: int, own: int) -> None:
        """The switch has acknowledged this state now."""
        if not self._last or self._last[-1][:2] != (shared, own):
            self._last.append((shared, own, self._clock()))

    def clear(self) -> None:
        """What the switch holds is not known any more."""
        self._last.clear()

    def of(self, shared: int, own: int) -> Acknowledged | None:
        """Since when it holds these versions, or later ones; None: it does not."""
        is_exact = False
        for shared_then, own_then, at in self._last:
            if shared_then >= shared and own_then >= own:
                return Acknowledged(at, is_exact)
            # It lacked them then, and had them the next time.
            is_exact = True
        return None
