"""The benchmark of kubelets, in a file of its own: it takes as long as the others together."""

from bench import kubelets
from tests.bench.test_bench import names


def test_kubelets_start_pods_on_both_networks():
    figures = kubelets.measure(rounds=1, single=1, pods=3)
    assert names(figures) == {"pod_start_vs_ptp"}
    samples = {figure.name: len(figure.samples) for figure in figures}
    assert samples["kubelet_add_ms"] == samples["kubelet_add_ms.ptp"] == 1
    assert samples["kubelet_add_at_once_ms"] == samples["kubelet_add_at_once_ms.ptp"] == 3
