"""Examines one random cluster after the other, and makes a counterexample small."""

import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Final

from tests.policy.controlled import Controlled
from tests.policy.evaluator import Cluster
from tests.policy.generator import NODES, as_yaml, generate, shrink
from tests.policy.proof import Proof
from tests.policy.switches import Contents, Switches

FROM_NOTHING: Final = 10
"""Each cluster of so many is compiled from nothing as well, and must give the same flows."""
KEPT: Final = 500
"""Clusters before a counterexample that are kept to repeat it."""


class CounterexampleError(AssertionError):
    """A cluster for which evaluator and switches differ; the text has all that repeats it."""


@dataclass
class Examined:
    """How much was examined."""

    clusters: int = 0
    pairs: int = 0
    """Packets that the simulator sent."""
    traces: int = 0
    """Packets that the switch itself traced as well."""


class Fuzz:
    """Examines clusters. One controller lives through all of them: each is a change of the last."""

    def __init__(self, switches: Switches, *, traces: int = 0, small: bool = True) -> None:
        """`traces` is how many packets of each cluster the switches trace, too.

        `small`: whether a counterexample is made small, which takes some seconds.
        """
        self.examined = Examined()
        self._switches = switches
        self._traces = traces
        self._small = small
        self._controlled = Controlled()
        self._before: deque[Cluster] = deque(maxlen=KEPT)

    def until(self, deadline: float, first_seed: int) -> None:
        """Examine the clusters of all seeds from this one on, until this moment (monotonic)."""
        for seed in count(first_seed):
            if time.monotonic() >= deadline:
                break
            self.examine(seed)

    def examine_all(self, seeds: Iterable[int]) -> None:
        """Examine the clusters of these seeds."""
        for seed in seeds:
            self.examine(seed)

    def examine(self, seed: int) -> None:
        """Examine the cluster of a seed. Raises `CounterexampleError`."""
        cluster = generate(seed)
        found = self._difference(self._controlled, cluster, seed)
        if found:
            explained = self._explained(seed, cluster, found) if self._small else found
            raise CounterexampleError(explained)
        self._before.append(cluster)

    def _difference(self, controlled: Controlled, cluster: Cluster, seed: int) -> str:
        """The first difference, as text; empty: there is none."""
        try:
            controlled.become(cluster)
            contents = controlled.contents(self._switches.nodes)
            if seed % FROM_NOTHING == FROM_NOTHING - 1 and _from_nothing(cluster) != contents:
                return "history: from nothing the controller compiles other flows"
            proof = Proof(cluster, contents, self._switches)
            for each in proof.differences():
                return str(each)
            for packet, allowed, arrives in proof.traced(Random(seed), self._traces):  # noqa: S311
                if allowed != arrives:
                    return f"ofproto/trace: {packet}: allowed {allowed}, arrives {arrives}"
        except Exception as error:  # noqa: BLE001 - whatever goes wrong is a counterexample
            return f"{type(error).__name__}: {error}\n{traceback.format_exc(limit=-4)}"
        self.examined.clusters += 1
        self.examined.pairs += proof.pairs
        self.examined.traces += self._traces
        return ""

    def _explained(self, seed: int, cluster: Cluster, found: str) -> str:
        """What repeats it, as small as can be found: clusters, of which the last one fails."""
        kind = _kind(found)

        def after(earlier: Sequence[Cluster], candidate: Cluster) -> str:
            controlled = Controlled()
            for each in earlier:
                controlled.become(each)
            return self._difference(controlled, candidate, seed)

        def fails(earlier: Sequence[Cluster], candidate: Cluster) -> bool:
            return _kind(after(earlier, candidate)) == kind

        earlier = self._needed([*self._before], lambda these: fails(these, cluster))
        if earlier is None:
            return f"seed {seed}, after more clusters than are kept: {found}\n{as_yaml(cluster)}"
        small = shrink(cluster, lambda each: fails(earlier, each))
        for index, each in enumerate(earlier):
            earlier[index] = shrink(
                each,
                lambda less, at=index: fails(  # type: ignore[misc]
                    [*earlier[:at], less, *earlier[at + 1 :]], small
                ),
                tries=300,
            )
        texts = [f"\n# before\n{as_yaml(each)}" for each in earlier]
        return f"seed {seed}: {after(earlier, small)}\n{''.join(texts)}\n# now\n{as_yaml(small)}"

    @staticmethod
    def _needed(
        before: list[Cluster], fails: Callable[[Sequence[Cluster]], bool]
    ) -> list[Cluster] | None:
        """Those of the clusters before that are needed for a failure; None: all are too few."""
        size = 0
        while not fails(before[len(before) - size :]):
            if size == len(before):
                return None
            size = min(max(1, 2 * size), len(before))
        needed = before[len(before) - size :]
        for each in list(needed):
            fewer = [other for other in needed if other is not each]
            if fails(fewer):
                needed = fewer
        return needed


def _from_nothing(cluster: Cluster) -> dict[str, Contents]:
    """What a controller compiles that has known no other cluster."""
    controlled = Controlled()
    controlled.become(cluster)
    return controlled.contents(node for node in cluster.nodes if node in NODES[:2])


def _kind(found: str) -> str:
    """What went wrong, without the packet: a smaller cluster must show the same."""
    return found.partition(":")[0]
