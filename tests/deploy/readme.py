"""The section *On your own cluster* of the README, as programs that tests run."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

README = Path(__file__).parents[2] / "README.md"
HEADING = "On your own cluster"


@dataclass(frozen=True)
class Section:
    """Its commands, each a text for the shell without line breaks, and its values for the chart."""

    images: tuple[str, ...]
    before: tuple[str, ...]
    values: dict[str, Any]
    install: tuple[str, ...]
    remove: tuple[str, ...]


def read(text: str) -> Section:
    """Of the text of the README. Fails if the section has not the blocks that it should have."""
    sections = re.findall(rf"^## {HEADING}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    assert len(sections) == 1, f"README: one section {HEADING!r} is expected"
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", sections[0], re.MULTILINE | re.DOTALL)
    assert [language for language, _ in blocks] == ["sh", "sh", "yaml", "sh", "sh"]
    images, before, values, install, remove = (block for _, block in blocks)
    return Section(
        _commands(images),
        _commands(before),
        yaml.safe_load(values),
        _commands(install),
        _commands(remove),
    )


def _commands(block: str) -> tuple[str, ...]:
    return tuple(block.replace("\\\n", "").splitlines())


def merged(given: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Values as Helm merges them: `over` has precedence."""
    both = {
        key: merged(given[key], value)
        for key, value in over.items()
        if isinstance(value, dict) and isinstance(given.get(key), dict)
    }
    return given | over | both
