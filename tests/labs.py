"""Labs for tests: real ones, under names of this run's own, always taken down."""

import itertools
import os
from collections.abc import Iterator

import pytest

from lab import Lab

_numbers = itertools.count(1)


def unique_name() -> str:
    """A lab's name that no other run of the tests on this machine has."""
    return f"t{os.getpid()}-{next(_numbers)}"


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a lab that the test brings up itself."""
    name = unique_name()
    yield name
    Lab(name).down()


@pytest.fixture(scope="module")
def lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A running lab, one for a module: two nodes, unless its parameter (indirect) says otherwise.

    `@pytest.mark.parametrize("lab", [{"tunnel": "vxlan"}], indirect=True)`
    """
    options = {"nodes": 2} | getattr(request, "param", {})
    with Lab(unique_name()).running(**options) as running:
        yield running
