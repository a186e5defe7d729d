"""Random clusters: the first half of the seeds, so that two processes share the work."""

from tests.policy.fuzz import Fuzz
from tests.policy.halves import CLUSTERS, PAIRS, TRACES, seeds
from tests.policy.switches import Switches


def test_evaluator_and_switches_agree(switches: Switches) -> None:
    fuzz = Fuzz(switches, traces=TRACES)
    fuzz.examine_all(seeds("first"))
    assert fuzz.examined.clusters == CLUSTERS // 2
    assert fuzz.examined.pairs >= PAIRS // 2
    assert fuzz.examined.traces >= 2_500
