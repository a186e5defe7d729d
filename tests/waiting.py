"""For what other processes do: no test waits for a fixed time."""

import time
from collections.abc import Callable

from lab.patience import PATIENCE


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return once it is so; fail if it does not come about. How long it takes says nothing."""
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01 * PATIENCE)
