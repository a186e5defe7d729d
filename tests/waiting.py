"""Waiting for other processes: until a condition holds, never for a fixed time."""

import time
from collections.abc import Callable

from lab.patience import PATIENCE


def wait_until(condition: Callable[[], object], seconds: float = 60.0) -> None:
    """Return when the condition holds; fail after `seconds`."""
    end = time.monotonic() + seconds * PATIENCE
    while not condition():
        assert time.monotonic() < end, f"it did not become true in {seconds:.0f} s"
        time.sleep(0.01 * PATIENCE)
