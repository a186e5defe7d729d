"""Fixtures and settings for all test folders."""

from collections.abc import Iterator

import pytest
import structlog
from hypothesis import HealthCheck, settings

from tests.ovs import Ovs, running

pytest_plugins = (
    "tests.watchdog",
    "tests.labs",
    "tests.hostile.table",
    "tests.unit",
    "tests.order",
)

# The time of an example depends on the machine's load; a failure must be reproducible.
settings.register_profile(
    "sluice", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("sluice")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-goldens", action="store_true", help="write the golden files again")


@pytest.fixture
def update_goldens(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-goldens"))


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """A command that a test runs in its own process may turn logging off."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture
def ovs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    """A switch of the test's own, with the bridge `br0`."""
    with running(tmp_path_factory.mktemp("ovs")) as switch:
        yield switch
