"""How much longer everything may take than on the machines that the lab's waits are meant for."""

import os
from typing import Final

VARIABLE: Final = "SLUICE_PATIENCE"
PATIENCE: Final = float(os.environ.get(VARIABLE) or 1)
"""What the lab, and the tests on it, multiply the seconds by after which they give up, and those
between two looks. More than 1 for a machine that is itself a program, as in `make kernel-test`."""
