"""Random clusters: the second half of the seeds, so that two processes share the work."""

import pytest

from tests.policy.conftest import BATCH, examine
from tests.policy.switches import Switches


@pytest.mark.parametrize("seed", range(1_000, 2_000, BATCH))
def test_evaluator_and_switches_agree(switches: Switches, seed: int) -> None:
    examine(switches, seed)
