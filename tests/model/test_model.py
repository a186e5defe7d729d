"""The model of the election, explored. `python -m tests.model.variants` prints what is found."""

import pytest

from tests.model.model import Model
from tests.model.variants import FAILS, HOLDS, TRAPPED, report


@pytest.mark.parametrize("name", HOLDS)
def test_no_switch_accepts_a_stale_write_and_nobody_is_kept_from_writing_for_ever(name):
    found = HOLDS[name].explore()
    print(f"{name}: {len(found.states):,} states")
    assert found.broken is None, report(name, HOLDS[name])
    assert len(found.states) > 1_000
    trapped = found.trapped(Model(HOLDS[name].rules).can_write)
    assert not trapped, found.path(trapped[0])


@pytest.mark.parametrize("name", FAILS)
def test_without_a_rule_a_stale_write_is_accepted(name):
    found = FAILS[name].explore()
    assert found.broken is not None
    path = found.path(found.broken)
    print(report(name, FAILS[name]))
    writes = [step for step in path if step.startswith("the switch accepts a write")]
    assert len(writes) == 2
    assert path[-1] == writes[-1]
    assert writes[-1].endswith("from A")


@pytest.mark.parametrize("name", TRAPPED)
def test_without_a_rule_nobody_ever_writes(name):
    found = TRAPPED[name].explore()
    assert found.broken is None
    assert found.trapped(Model(TRAPPED[name].rules).can_write)


def test_the_switch_must_restart_for_the_rules_of_a_restarted_switch():
    variant = FAILS["no rule for a restarted switch"]
    found = variant.explore()
    assert "the switch restarts" in found.path(found.broken)
    never = variant._replace(faults=variant.faults._replace(restarts=0))
    assert never.explore().broken is None
