"""How many random clusters the tests examine, in two halves."""

from typing import Final, Literal

CLUSTERS: Final = 2_000
PAIRS: Final = 1_000_000
"""At least."""
TRACES: Final = 3
"""Of each cluster."""


def seeds(half: Literal["first", "second"]) -> range:
    """The seeds of one half."""
    middle = CLUSTERS // 2
    return range(middle) if half == "first" else range(middle, CLUSTERS)
