"""When each node's switch was last proven to hold what it should.

The proof is a digest: the agent hashes everything that its switch holds, and the controller finds
it equal to what the switch should hold (`controller.audit`).
"""

import time
from collections.abc import Callable, Collection, Generator


class Proofs:
    """The time of each node's last proof."""

    def __init__(self, nodes: Collection[str], clock: Callable[[], float] = time.monotonic) -> None:
        """`nodes` are those that take part now; the collection changes with them."""
        self._nodes = nodes
        self._clock = clock
        self._at: dict[str, float] = {}

    def proven(self, node: str) -> None:
        """The node's switch holds what it should."""
        self._at[node] = self._clock()

    def forget(self, node: str) -> None:
        """The Node is gone."""
        self._at.pop(node, None)

    def age(self, node: str) -> float:
        """Seconds since the last proof. If there was none: since the first call for this node."""
        now = self._clock()
        return now - self._at.setdefault(node, now)

    @property
    def oldest(self) -> float:
        """The age of the oldest one, in seconds; 0 without nodes."""
        return max(map(self.age, self._nodes), default=0.0)

    def ages(self) -> Generator[None, None, dict[str, float]]:
        """The age for each node, in steps; see `work_budget.in_turns`."""
        found = {}
        for node in list(self._nodes):
            if node in self._nodes:
                found[node] = self.age(node)
            yield
        return found
