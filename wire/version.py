"""Sluice's own version, which agents tell the controller. `pyproject.toml` has the same."""

from typing import Final

VERSION: Final = "0.1.0"
