"""Texts that stand for something: names of walks and sets, and problems."""

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

LONGEST_NAME: Final = 256
"""Characters of a canonical text that stands for itself; a longer one is kept as a digest."""
MOST_PROBLEMS: Final = 5
"""Problems of one policy that are reported."""


def short_name(text: str) -> str:
    """The text, or a digest of it that nobody can find a second text for."""
    if len(text) <= LONGEST_NAME:
        return text
    return f"sha256 {sha256(text.encode()).hexdigest()}"


def sentence(problems: Iterable[str]) -> str:
    """The problems of one object as one text; empty: it has none."""
    found = list(dict.fromkeys(problems))
    more = len(found) - MOST_PROBLEMS
    return "; ".join(found[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))
