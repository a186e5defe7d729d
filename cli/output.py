"""How commands print: JSON for scripts, aligned columns for people."""

import logging
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


def say_nothing_by_itself() -> None:
    """Keep the controller's code from logging: the answer is all that a command says."""
    import structlog  # noqa: PLC0415  it takes long to load

    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
