"""Sluice's own programs: their command lines and their configuration files."""

import sys
from pathlib import Path

import msgspec
import yaml

from lab.commands import replace_file
from settings import Settings


def python(module: str, *arguments: str) -> list[str]:
    """The command line of one of our programs, in this interpreter.

    With -P, so that a folder which happens to be the current one is not taken for it.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def write_settings(path: Path, settings: Settings) -> None:
    """Write the configuration file of one process; what is unset keeps its default."""
    content = msgspec.to_builtins(settings, enc_hook=str)
    given = {name: section for name, section in content.items() if section is not None}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_file(path, yaml.safe_dump(given, sort_keys=False))
