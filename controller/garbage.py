"""Python's garbage collector, told what kind of process this is.

What the controller knows of a cluster is millions of small values without cycles, which their
counts of references free. By its defaults the collector walks through all of them each time that
there is a quarter more, which took more than half of the time in which 1,000 Services became flows,
and stalls the event loop the longer the larger the cluster is.
"""

import gc

_ALLOCATIONS = 50_000
"""New objects are looked through when there are so many more than went. Python's default: 700."""


def collect_rarely() -> None:
    """Look for cycles among new objects now and then; among all objects hardly ever."""
    gc.set_threshold(_ALLOCATIONS, 20, 100)


def spare_what_is_there() -> None:
    """Never look again at what is there now and is to stay. Counts of references still free it."""
    gc.freeze()
