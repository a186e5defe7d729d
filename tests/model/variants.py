"""What is explored: rules, faults, and what should be found."""

import sys
from typing import Final, NamedTuple

from tests.model.explorer import Explored
from tests.model.model import Model
from tests.model.world import Confirmed, Faults, Rules, World, is_stale, start

MOST_STATES: Final = 500_000
"""One state takes some 2 kB and 40 µs."""


class Variant(NamedTuple):
    """A set of rules under some faults."""

    rules: Rules
    faults: Faults
    newest: int | None = None
    """The generation that the switch knows from before."""
    is_connected: bool = True
    """Whether the switch is connected to both replicas from the beginning."""

    def explore(self) -> Explored[World]:
        """All its states, or those until a stale write."""
        first = start(self.faults, newest=self.newest, is_connected=self.is_connected)
        return Explored(first, Model(self.rules).steps, is_stale, MOST_STATES)


SHIPPED: Final = Rules()
_RESTART: Final = Faults(takeovers=1, restarts=1)

HOLDS: Final = {
    "a switch restarts": Variant(SHIPPED, _RESTART),
    "a connection breaks": Variant(SHIPPED, Faults(takeovers=1, breaks=1)),
    "a PUT is late, or its answer is lost": Variant(SHIPPED, Faults(takeovers=1, timeouts=1)),
    "a replica is killed": Variant(SHIPPED, Faults(kills=1)),
    "a living leader is taken for dead": Variant(SHIPPED, Faults(suspicions=1)),
    "the Lease is deleted": Variant(SHIPPED, Faults(deletions=1)),
    "the Lease has an old number": Variant(SHIPPED, Faults(), newest=5),
    "only the renewal after the reply": Variant(
        Rules(compared=False, restored=False, in_term=False), _RESTART
    ),
}
"""No stale write is accepted."""
MORE: Final = {
    "two takeovers": Variant(SHIPPED, Faults(takeovers=2)),
    "a switch that connects only now restarts": Variant(SHIPPED, _RESTART, is_connected=False),
}
"""The same, for which tests have no time."""
FAILS: Final = {
    "no rule for a restarted switch": Variant(
        Rules(confirmed=Confirmed.NOTHING, compared=False, restored=False), _RESTART
    ),
    "no renewal after the reply": Variant(Rules(confirmed=Confirmed.NOTHING), _RESTART),
    "a renewal after the connection only, and the Lease is deleted": Variant(
        Rules(confirmed=Confirmed.CONNECTION), Faults(deletions=1)
    ),
    "writes before the reply to MASTER": Variant(Rules(replied=False), Faults(takeovers=1)),
}
"""A stale write is accepted."""
TRAPPED: Final = {
    "the Lease has an old number, and nobody raises it": Variant(
        Rules(raised=False), Faults(), newest=5
    ),
}
"""None is accepted, but from some states no replica ever becomes able to write."""


def report(name: str, variant: Variant) -> str:
    """What an exploration finds, for people."""
    found = variant.explore()
    if found.broken is None:
        trapped = len(found.trapped(Model(variant.rules).can_write))
        return f"{name}: {len(found.states):,} states, no stale write, {trapped} trapped"
    path = found.path(found.broken)
    steps = "".join(f"\n  {number:2}. {step}" for number, step in enumerate(path, 1))
    return f"{name}: a stale write after {len(path)} steps{steps}"


def main() -> None:
    """Print what is found, of all variants or of those whose names contain a word."""
    word = sys.argv[1] if len(sys.argv) > 1 else ""
    for name, variant in (HOLDS | MORE | FAILS | TRAPPED).items():
        if word in name:
            print(report(name, variant), flush=True)


if __name__ == "__main__":
    main()
