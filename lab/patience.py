"""Timeouts of the lab and its tests."""

import os
from typing import Final

VARIABLE: Final = "SLUICE_PATIENCE"
PATIENCE: Final = float(os.environ.get(VARIABLE) or 1)
"""Factor for all timeouts of the lab and its tests, and for the pauses between two checks. It is
above 1 on an emulated machine, as in `make kernel-test`."""
PROGRAM_TIMEOUT: Final = 120 * PATIENCE
"""Seconds after which a program that should end soon is stopped."""
BUILD_TIMEOUT: Final = 3600 * PATIENCE
"""The same for a program that builds or installs other programs."""
