"""Labs for tests: real ones, under names of this run's own, always taken down.

A pytest plugin: it has the fixtures `lab` and `name`. After a test that failed nobody knows what
state its lab is in, so the next test of the file gets a new one.
"""

import contextlib
import itertools
import os
import re
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from lab import Lab, LabError
from lab.layout import LABS

_numbers = itertools.count(1)
_NAME = re.compile(r"t(\d+)-\d+")
MAX_REBUILDS = 3
"""New labs for one file, at most: where each test fails, a new lab for each takes too long."""
_failed = pytest.StashKey[bool]()
_rebuilds = pytest.StashKey[int]()


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Remember a failure, and show the logs of daemons that have ended."""
    report = yield
    if report.failed and "lab" in getattr(item, "fixturenames", ()):
        item.stash[_failed] = True
        lab = getattr(item, "funcargs", {}).get("lab")
        if isinstance(lab, Lab):
            with contextlib.suppress(LabError):  # it is not up
                report.sections += [("daemon has ended", text) for text in lab.ended_daemons()]
    return report


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """After a failure take down all fixtures of the file: the next test makes them again."""
    module = item.getparent(pytest.Module)
    if module is None or not item.stash.get(_failed, False):
        return
    rebuilds = module.stash.get(_rebuilds, 0)
    if rebuilds < MAX_REBUILDS:
        module.stash[_rebuilds] = rebuilds + 1
        # As if the next test were of another file, of the same folder.
        item.session._setupstate.teardown_exact(module.parent)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Take down the labs of test processes that have ended without doing so."""
    if hasattr(session.config, "workerinput") or os.geteuid() != 0:
        return
    for directory in LABS.glob("t*"):
        found = _NAME.fullmatch(directory.name)
        if found and not Path("/proc", found[1]).exists():
            with contextlib.suppress(LabError):
                Lab(directory.name).down()
