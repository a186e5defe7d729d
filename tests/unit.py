"""Marks the tests for `make unit`: pure and asyncio tests, without root, switch, lab or API server.

A pytest plugin. What is marked is known from the folder and the fixtures of a test, so nobody has
to mark a new test by hand.
"""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FOLDERS = {
    "bgp",
    "cli",
    "cni",
    "controller",
    "flows",
    "hostile",
    "model",
    "node_agent",
    "openflow",
    "settings",
    "wire",
}
REAL_PARTS = {"lab", "name", "one", "ovs", "scratch", "switch", "three"}
"""Fixtures that start programs: a switch, a node or a whole lab."""
SLOW = {
    "tests/bgp/test_speaker.py": "starts ExaBGP",
    "tests/controller/test_load.py": "compiles a cluster of thousands of nodes",
    "tests/controller/test_properties.py": "tries hundreds of histories",
    "tests/controller/test_main.py": "starts controllers as processes",
    "tests/model/test_grants.py": "explores hundreds of thousands of states",
    "tests/model/test_model.py": "explores hundreds of thousands of states",
    "tests/node_agent/test_probe.py": "starts programs",
}
"""Files that take long for another reason."""


def is_unit(item: pytest.Item) -> bool:
    """Whether a test belongs to `make unit`."""
    path = item.path.relative_to(ROOT)
    return (
        path.parts[1] in FOLDERS
        and str(path) not in SLOW
        and not REAL_PARTS & set(getattr(item, "fixturenames", ()))
        and not any(
            mark.kwargs.get("reason") == "makes network namespaces"
            for mark in item.iter_markers("skipif")
        )
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if ROOT in item.path.parents and is_unit(item):
            item.add_marker("unit")
