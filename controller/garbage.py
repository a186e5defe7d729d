"""Settings of Python's garbage collector.

The controller holds millions of small values without cycles, which reference counts free. With its
defaults the collector walks through all of them each time their number has grown by a quarter. That
took more than half of the time of compiling 1,000 Services, and stalls the event loop the longer
the larger the cluster is. What connections leave behind must therefore have no cycles either:
`openflow.listener`.
"""

import gc

_ALLOCATIONS = 50_000
"""Allocations minus deallocations before new objects are examined. Python's default: 700."""
_ROUNDS = 2
"""Such rounds before their survivors are examined together: 40 ms with 100,000 objects."""
_ALL = 1_000
"""Times of that before all objects are examined."""


def collect_rarely() -> None:
    """Examine new objects now and then, and all objects very rarely."""
    gc.set_threshold(_ALLOCATIONS, _ROUNDS, _ALL)


def spare_what_is_there() -> None:
    """Never examine the objects that exist now again. Reference counts still free them."""
    gc.freeze()
