"""The list of planted faults fits the code: an entry that does not would test nothing."""

import ast
from collections import Counter

import pytest

from tests.mutants.fault import ROOT, Fault
from tests.mutants.faults import FAULTS
from tests.mutants.survivors import SURVIVORS


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_planted_fault_is_up_to_date(fault: Fault) -> None:
    text = (ROOT / fault.file).read_text()
    assert text.count(fault.old) == 1, f"{fault.file}: the old text is not there exactly once"
    ast.parse(text.replace(fault.old, fault.new))
    assert fault.new != fault.old
    for test in fault.tests:
        path, _, name = test.partition("::")
        assert f"def {name.split('[')[0]}(" in (ROOT / path).read_text() if name else True, test
        assert (ROOT / path).exists(), test


def test_names_are_unique() -> None:
    assert max(Counter(fault.name for fault in FAULTS).values()) == 1


def test_survivors_are_of_the_list() -> None:
    assert SURVIVORS.keys() <= {fault.name for fault in FAULTS}
