"""No test holds the run: a pytest plugin for what a test's own time limit does not end.

pytest-timeout raises an exception in the test when its time is over, once. Whatever waits without a
bound after that, in a `finally` or in the teardown of a fixture, would wait for ever. So, some time
later, this plugin

1. kills all processes that the test process has started: whoever waits for one goes on;
2. prints where every thread is and ends the test process. xdist reports the test as failed and
   goes on with another process.

Each step comes `watchdog_grace` seconds (of pytest's ini file) after the one before.
"""

import contextlib
import faulthandler
import os
import signal
import sys
import threading
from collections import defaultdict
from collections.abc import Generator
from pathlib import Path

import pytest

from lab.patience import PATIENCE

EXIT_CODE = 70
"""Of a process that was ended (sysexits.h, EX_SOFTWARE)."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addini(
        "watchdog_grace", "seconds between a time limit and what enforces it", default="60"
    )


def pytest_configure(config: pytest.Config) -> None:
    grace = float(config.getini("watchdog_grace")) * PATIENCE
    config.pluginmanager.register(Watchdog(config, grace))


class Watchdog:
    """Watches over one test after the other in a thread of its own."""

    def __init__(self, config: pytest.Config, grace: float) -> None:
        self._capture = config.pluginmanager.getplugin("capturemanager")
        self._grace = grace

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        limit = time_limit(item)
        over = threading.Event()
        if limit:
            arguments = (item.nodeid, over, limit + self._grace)
            threading.Thread(target=self._watch, args=arguments, daemon=True).start()
        try:
            return (yield)
        finally:
            over.set()

    def _watch(self, test: str, over: threading.Event, wait: float) -> None:
        """Take one step after the other until the test is over; the first after `wait` s."""
        for step in (kill_children, end_process):
            if over.wait(wait):
                return
            if self._capture:  # else nobody sees what is written
                self._capture.suspend_global_capture()
            sys.stderr.write(f"\n{test} is far beyond its time limit: {step.__doc__}\n")
            step()
            wait = self._grace


def time_limit(item: pytest.Item) -> float:
    """The seconds that pytest-timeout gives a test; 0 for no limit."""
    marker = item.get_closest_marker("timeout")
    if marker:
        return float(marker.args[0] if marker.args else marker.kwargs["timeout"])
    option = item.config.getoption("timeout", None)
    return float(option or item.config.getini("timeout") or 0)


def kill_children() -> None:
    """Kill all processes that it has started."""
    for pid in descendants(os.getpid()):
        with contextlib.suppress(OSError):  # it has ended
            os.kill(pid, signal.SIGKILL)


def end_process() -> None:
    """End the test process. This is where its threads are."""
    faulthandler.dump_traceback(sys.stderr, all_threads=True)
    sys.stderr.flush()
    os._exit(EXIT_CODE)


def descendants(ancestor: int) -> list[int]:
    """All processes that descend from one, by /proc."""
    children: dict[int, list[int]] = defaultdict(list)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            after_name = stat.read_text().rpartition(")")[2].split()
            children[int(after_name[1])].append(int(stat.parent.name))
    found, unseen = [], [ancestor]
    while unseen:
        for child in children[unseen.pop()]:
            found.append(child)
            unseen.append(child)
    return found
