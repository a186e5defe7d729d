"""Who has an address, explored. `python -m tests.model.grants` prints what is found."""

import pytest

from tests.model.grants import FAILS, HOLDS, report


@pytest.mark.parametrize("name", HOLDS)
def test_no_two_nodes_have_an_address_at_one_moment(name: str) -> None:
    found = HOLDS[name].explore()
    print(f"{name}: {len(found.states):,} states")
    assert found.broken is None, report(name, HOLDS[name])
    assert len(found.states) > 1_000


@pytest.mark.parametrize("name", FAILS)
def test_without_a_rule_two_nodes_have_it(name: str) -> None:
    found = FAILS[name].explore()
    assert found.broken is not None
    print(report(name, FAILS[name]))
    assert found.path(found.broken)[-1].startswith("the answer arrives")
