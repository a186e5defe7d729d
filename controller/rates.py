"""How often something may happen: a burst, and after that so many times a second."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

MAX_NAMES: Final = 10_000
"""Names that `Rates` remembers."""


class Rate:
    """One rate limit. Without a clock it must be made and used on the event loop."""

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] | None = None
    ) -> None:
        """`clock` counts seconds and never jumps; None: the event loop's."""
        self._per_second = per_second
        self._burst = burst
        self._clock = clock or asyncio.get_running_loop().time
        self._tokens = float(burst)
        self._at = self._clock()

    @property
    def is_used_up(self) -> bool:
        """Whether it may not happen once more, now."""
        self._refill()
        return self._tokens < 1

    def allows(self, count: int = 1) -> bool:
        """Whether it may happen so many times more, now; if so, they count."""
        self._refill()
        if self._tokens < count:
            return False
        self._tokens -= count
        return True

    async def wait(self) -> None:
        """Return when it may happen once more."""
        self._refill()
        self._tokens -= 1
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._per_second)

    def _refill(self) -> None:
        now = self._clock()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_second)
        self._at = now


class Rates:
    """One rate limit by name. The names that were not used for the longest time are forgotten."""

    def __init__(
        self, per_second: float, burst: int, clock: Callable[[], float] | None = None
    ) -> None:
        """As `Rate` has them."""
        self._per_second = per_second
        self._burst = burst
        self._clock = clock
        self._rates: OrderedDict[str, Rate] = OrderedDict()

    def allows(self, name: str, count: int = 1) -> bool:
        """As `Rate.allows`."""
        rate = self._rates.get(name)
        if rate is None:
            rate = self._rates[name] = Rate(self._per_second, self._burst, self._clock)
            if len(self._rates) > MAX_NAMES:
                self._rates.popitem(last=False)
        self._rates.move_to_end(name)
        return rate.allows(count)
