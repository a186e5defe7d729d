"""Labs for tests: real ones, under names of this run's own, always taken down."""

import itertools
import os

import pytest

from lab import Lab

_numbers = itertools.count(1)


@pytest.fixture(scope="session", autouse=True)
def _root():
    if os.geteuid() != 0:
        pytest.exit("tests/lab makes network namespaces, and only root may do that", returncode=1)


def unique_name() -> str:
    """A lab's name that no other run of the tests on this machine has."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def name():
    """The name of a lab that the test brings up itself."""
    name = unique_name()
    yield name
    Lab(name).down()


@pytest.fixture(scope="module")
def lab(request):
    """A running lab, one for a module: two nodes, unless its parameter (indirect) says otherwise.

    `@pytest.mark.parametrize("lab", [{"tunnel": "vxlan"}], indirect=True)`
    """
    options = {"nodes": 2} | getattr(request, "param", {})
    with Lab(unique_name()).running(**options) as running:
        yield running
