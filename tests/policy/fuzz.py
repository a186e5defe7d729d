"""Examines one random cluster after the other, and makes a counterexample small."""

import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import count
from random import Random

from tests.policy.controlled import Controlled
from tests.policy.evaluator import Cluster
from tests.policy.generator import as_yaml, generate, shrink
from tests.policy.proof import Proof
from tests.policy.switches import Switches


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
        self._before: tuple[int, Cluster] | None = None

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
        self._before = seed, cluster

    def _difference(self, controlled: Controlled, cluster: Cluster, seed: int) -> str:
        """The first difference, as text; empty: there is none."""
        try:
            proof = Proof(cluster, controlled, self._switches)
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
        kind = _kind(found)

        def fails(candidate: Cluster) -> bool:
            return _kind(self._difference(Controlled(), candidate, seed)) == kind

        if fails(cluster):
            small = shrink(cluster, fails)
            found = self._difference(Controlled(), small, seed)
            return f"seed {seed}: {found}\n{as_yaml(small)}"
        # A fault of the change itself: the cluster before it is needed as well.
        assert self._before is not None
        before_seed, before = self._before

        def after(earlier: Cluster, candidate: Cluster) -> str:
            controlled = Controlled()
            controlled.become(earlier)
            return self._difference(controlled, candidate, seed)

        def fails_after(earlier: Cluster, candidate: Cluster) -> bool:
            return _kind(after(earlier, candidate)) == kind

        if not fails_after(before, cluster):
            return f"seed {seed}, after all since the first seed: {found}\n{as_yaml(cluster)}"
        small = shrink(cluster, lambda each: fails_after(before, each), tries=300)
        earlier = shrink(before, lambda each: fails_after(each, small), tries=300)
        found = after(earlier, small)
        return (
            f"seed {seed} after seed {before_seed}: {found}\n# before\n{as_yaml(earlier)}"
            f"\n# after\n{as_yaml(small)}"
        )


def _kind(found: str) -> str:
    """What went wrong, without the packet: a smaller cluster must show the same."""
    return found.partition(":")[0]
