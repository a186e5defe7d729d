"""How long a datapath takes to follow the flows that its switch has acknowledged."""

from typing import Final

SETTLE: Final = 0.1
"""Seconds in which a datapath with few flows in its cache follows the flows that its switch has
acknowledged."""
SETTLE_OF_FLOW: Final = 25e-6
"""Seconds for each flow in the datapath's cache. Open vSwitch translates each one anew, in some
10 µs, and it does so twice if it had just begun when the change came. It has no message that says
when it is done."""
SETTLE_OF_ACKNOWLEDGEMENT: Final = 4
"""Times what the acknowledgement took: a busy machine delays the threads that translate flows, too,
and those begin after it."""
REVALIDATED: Final = 0.6
"""Seconds after which Open vSwitch has translated every flow of its cache again: it does so each
500 ms (`other_config:max-revalidator`). A packet that is translated by the old tables just when
they change makes a flow that the round for this change may miss. It stays until the next round."""
LONGEST_DELAY: Final = 1.0
"""The most seconds because of a slow acknowledgement."""
UNKNOWN_FLOWS: Final = 8_192
"""Flows in the cache of a datapath whose agent has not told their number yet."""


def follow_time(datapath_flows: int, acknowledged_in: float) -> float:
    """Seconds in which nearly the whole datapath follows.

    `datapath_flows`: in its cache; 0: unknown. `acknowledged_in`: seconds that the switch took.
    """
    translating = (datapath_flows or UNKNOWN_FLOWS) * SETTLE_OF_FLOW
    delayed = min(acknowledged_in * SETTLE_OF_ACKNOWLEDGEMENT, LONGEST_DELAY)
    return max(SETTLE, translating, delayed)
