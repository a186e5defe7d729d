"""What several test folders use."""

from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, settings

from tests.hostile import table
from tests.hostile.harness import Row
from tests.labs import lab, name  # noqa: F401  fixtures
from tests.ovs import Ovs, running

# How long an example takes depends on what else the machine does; a failure must be seen again.
settings.register_profile(
    "sluice", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sluice")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the golden files anew")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture
def ovs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    """A switch of the test's own, with the bridge `br0`."""
    with running(tmp_path_factory.mktemp("ovs")) as switch:
        yield switch


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print what attacks cost their victims, if any were measured, and write it down."""
    rows = [
        msgspec.convert(value, Row)
        for reports in terminalreporter.stats.values()
        for report in reports
        for kind, value in getattr(report, "user_properties", ())
        if kind == table.PROPERTY and report.when == "call"
    ]
    if rows:
        terminalreporter.section("attacks: before → during (ratio) → after")
        terminalreporter.write(table.text(rows))
        table.write(rows)
