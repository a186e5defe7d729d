"""The lab with victims for every file of attacks, and what becomes of the figures."""

from collections.abc import Callable, Iterator

import pytest

from lab import Lab
from tests.hostile.harness import Hostile, Row, to_json, victims
from tests.hostile.table import PROPERTY


@pytest.fixture(scope="module")
def _victims(lab: Lab) -> Iterator[Hostile]:
    with victims(lab, lambda _: None) as hostile:
        yield hostile


@pytest.fixture
def hostile(_victims: Hostile, record_property: Callable[[str, object], None]) -> Iterator[Hostile]:
    """The lab with its victims; what it measures is in the table at the end of the run."""

    def record(row: Row) -> None:
        record_property(PROPERTY, to_json(row))

    _victims.record = record
    return _victims
