"""Planted faults that no test notices, by name, and why that is so."""

from typing import Final

SURVIVORS: Final[dict[str, str]] = {
    "a comparison that is asked for during another one is lost": (
        "The running round still sends what the programs hold at its end, and seals it. The"
        " comparison after it finds the seals and stops, so its absence shows nowhere."
    ),
}
