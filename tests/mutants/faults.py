"""All planted faults."""

from typing import Final

from tests.mutants.fault import Fault

FAULTS: Final[tuple[Fault, ...]] = ()
