"""The slowest files first: a pytest plugin.

`make test` gives whole files to three processes. A long file that begins last would run alone at
the end.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SLOWEST_FIRST = (
    "tests/lab/test_faults.py",
    "tests/bench/test_bench.py",
    "tests/bench/test_kubelets.py",
    "tests/node_agent/test_node.py",
    "tests/deploy/test_cluster.py",
    "tests/lab/cluster/test_workloads.py",
    "tests/lab/test_service_connections.py",
    "tests/lab/test_lifecycle.py",
    "tests/policy/test_clusters_first.py",
    "tests/policy/test_clusters_second.py",
    "tests/policy/test_planted_faults.py",
    "tests/node_agent/test_agent.py",
    "tests/lab/test_conformance.py",
    "tests/lab/test_services.py",
    "tests/lab/test_enrolment.py",
)
_RANKS = {ROOT / name: rank for rank, name in enumerate(SLOWEST_FIRST)}


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _RANKS.get(item.path, len(_RANKS)))
