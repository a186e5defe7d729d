"""What all reports have in common: their version, and how they become JSON."""

from collections.abc import Generator
from functools import cache
from typing import Any, Final

import msgspec

VERSION: Final = 1
"""Of all reports. Grows when a field of a report is removed or means something else.

A new field does not change it: readers ignore fields that they do not know."""
LARGE: Final = 64
"""Elements of a list from which on it is encoded element by element."""


class Report(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """A report."""

    version: int = VERSION
    """Of all reports; grows when a field is removed or means something else."""


def encoded(report: msgspec.Struct) -> Generator[None, None, bytes]:
    """A report as JSON. Yields while it is made: a large one takes long."""
    parts = yield from _parts(report)
    return msgspec.json.encode(parts)


def _parts(value: object) -> Generator[None, None, Any]:
    """The same value with encoded parts where it is large."""
    yield
    if isinstance(value, msgspec.Struct):
        made: dict[str, Any] = {}
        for name, key in _names(type(value)):
            field = getattr(value, name)
            if _is_large(field):
                field = yield from _parts(field)
            made[key] = field
        return made
    if isinstance(value, dict):
        found = {}
        for key, each in value.items():
            part = yield from _encoded_part(each)
            found[key] = part
        return found
    if isinstance(value, tuple | list):
        rows = []
        for each in value:
            part = yield from _encoded_part(each)
            rows.append(part)
        return rows
    return value


def _encoded_part(value: object) -> Generator[None, None, msgspec.Raw]:
    if isinstance(value, msgspec.Raw):
        return value
    part = (yield from _parts(value)) if _is_large(value) else value
    yield
    return msgspec.Raw(msgspec.json.encode(part))


def _is_large(value: object) -> bool:
    """Whether there is a list somewhere in it that is long."""
    if isinstance(value, dict | tuple | list):
        if len(value) >= LARGE:
            return True
        elements = value.values() if isinstance(value, dict) else value
        return any(map(_is_large, elements))
    if isinstance(value, msgspec.Struct):
        return any(_is_large(getattr(value, name)) for name, _ in _names(type(value)))
    return False


@cache
def _names(kind: type[msgspec.Struct]) -> tuple[tuple[str, str], ...]:
    """Of each field, its name and its name in JSON."""
    return tuple((each.name, each.encode_name) for each in msgspec.structs.fields(kind))
