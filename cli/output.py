"""How commands print: JSON for scripts, aligned columns for people."""

from collections.abc import Iterable
from typing import Any

import click
import msgspec


def print_json(content: Any) -> None:
    """Everything, as one object."""
    click.echo(msgspec.json.format(msgspec.json.encode(content)).decode())


def print_columns(indent: str, lines: Iterable[tuple[str, ...]]) -> None:
    """Lines of equally many cells. Nothing is cut: what is cut cannot be copied or searched."""
    given = list(lines)
    widths = [max(map(len, column)) for column in zip(*given, strict=True)]
    for line in given:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo(f"{indent}{'  '.join(cells)}".rstrip())
