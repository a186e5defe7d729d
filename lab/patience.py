"""How long the lab and its tests wait before they give up."""

import os
from typing import Final

VARIABLE: Final = "SLUICE_PATIENCE"
PATIENCE: Final = float(os.environ.get(VARIABLE) or 1)
"""By this the lab and its tests multiply every limit in seconds, and the pauses between two checks.
More than 1 for an emulated machine, as in `make kernel-test`."""
PROGRAM_TIMEOUT: Final = 120 * PATIENCE
"""Seconds after which a program that takes a moment is given up."""
BUILD_TIMEOUT: Final = 3600 * PATIENCE
"""The same for one that builds or installs others."""
