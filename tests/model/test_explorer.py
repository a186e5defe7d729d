import pytest

from tests.model.explorer import Explored, Step, TooManyStatesError


def steps(number):
    """Count up to 9, or jump back from an even number; 7 leads nowhere but by a fault."""
    if number < 9:
        yield Step("one more", number + 1, is_fault=number == 7)
    if number % 2 == 0:
        yield Step("double", number * 2) if number < 5 else Step("back", 0)


def test_the_shortest_path_is_found():
    found = Explored(1, steps, lambda number: number == 8, 100)
    assert found.broken == 8
    assert found.path(8) == ["one more", "double", "double"]


def test_all_states_are_found_if_none_is_broken():
    assert sorted(Explored(0, steps, lambda _: False, 100).states) == list(range(10))


def test_a_bound_on_states_is_kept():
    with pytest.raises(TooManyStatesError):
        Explored(0, lambda number: [Step("on", number + 1)], lambda _: False, 50)


def test_a_state_is_trapped_if_only_a_fault_leads_on():
    found = Explored(0, steps, lambda _: False, 100)
    assert sorted(found.trapped(lambda number: number == 0)) == [7, 9]
