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
_NEVER = 1_000_000_000


def collect_rarely() -> None:
    """Examine new objects now and then, each of them once: what is still there then stays."""
    # To look at the survivors of many rounds together stops the event loop for 0.4 s (measured with
    # a million objects).
    gc.set_threshold(_ALLOCATIONS, _NEVER, _NEVER)


def spare_what_is_there() -> None:
    """Never examine the objects that exist now again. Reference counts still free them."""
    gc.freeze()
