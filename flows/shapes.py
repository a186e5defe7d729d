"""Flows of which there are very many: made some times faster than by `Layout.flow`.

Flows of one shape differ only in the values of some fields, and maybe in their actions. A shape is
made from one flow of `Layout.flow`, which has checked it. So its other flows need no check, but for
their numbers; their actions come from `Pieces`, which checks each once. They are ordinary flows
with ordinary cookies.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from hashlib import blake2b
from typing import Any, Final, TypeAlias

from flows.fields import WIDTHS, value_bytes
from flows.flow import Action, Flow, FormError, SetField, match_field
from flows.pipeline import LAYOUT

Piece: TypeAlias = tuple[Action, bytes]
"""An action that was checked for its table, and its canonical bytes."""
Done: TypeAlias = tuple[tuple[Action, ...], bytes]
"""All actions of a flow, and their canonical bytes."""
_new: Final = object.__new__
_feature, _table, _priority, _match, _actions, _reason, _is_shared, _key, _cookie = (
    getattr(Flow, name).__set__
    for name in (
        "feature", "table", "priority", "match", "actions", "reason", "is_shared",
        "key", "cookie",
    )
)  # fmt: skip
_MOST_PIECES: Final = 4_096
"""Of each field: the actions that are kept, because other flows have them, too."""
_CODES: Final = {8: "B", 16: "H", 32: "I", 64: "Q"}


class Shape:
    """The flows that are like `sample`, with other values of the fields `varied`."""

    def __init__(self, sample: Flow, varied: Sequence[str]) -> None:
        """`varied` are fields of the sample's match, in its order; their masks do not vary.

        Raises `ValueError` if they are not, and `KeyError` for a field of another width.
        """
        self._sample = sample
        self._match = list(sample.match)
        self._varied: list[tuple[int, str, int | None]] = []
        constants = [sample.head()]
        layout = "!"
        for index, (name, value, mask) in enumerate(sample.match):
            if name in varied[len(self._varied) :][:1]:
                size = WIDTHS[name] // 8
                self._varied.append((index, name, mask))
                form = value_bytes(name, 0, mask)
                constants[-1] += form[:1]
                layout += f"{len(constants[-1])}s{_CODES[8 * size]}"
                constants.append(form[1 + size :])
            else:
                constants[-1] += value_bytes(name, value, mask)
        if len(self._varied) != len(varied):
            raise ValueError(f"{varied} are not fields of the match in this order")
        tail = b"".join([action.canonical() for action in sample.actions])
        self._actions: Done = sample.actions, tail
        layout += f"{len(constants[-1])}s"
        self._pack = struct.Struct(layout).pack
        # Constant, value, constant, ..., constant: as `pack` wants them.
        self._arguments: list[Any] = [0] * (2 * len(constants) - 1)
        self._arguments[::2] = constants

    def flow(self, values: Sequence[int], reason: str = "", actions: Done | None = None) -> Flow:
        """The flow with these values of the varied fields; by default as the sample is.

        Raises `FormError` for a value that does not fit.
        """
        sample = self._sample
        match = self._match.copy()
        for (index, name, mask), value in zip(self._varied, values, strict=True):
            match[index] = match_field(name, value, mask)
        arguments = self._arguments.copy()
        arguments[1::2] = values
        try:
            key = self._pack(*arguments)
        except struct.error as error:
            raise FormError(f"flow for {reason or sample.reason!r}: {error!r}") from None
        made_actions, tail = self._actions if actions is None else actions
        form = key + tail
        digest = int.from_bytes(blake2b(form, digest_size=7).digest(), "big")
        made = _new(Flow)
        # As its `__init__` would do it, and `key` and `cookie` at their first use.
        _feature(made, sample.feature)
        _table(made, sample.table)
        _priority(made, sample.priority)
        _match(made, tuple(match))
        _actions(made, made_actions)
        _reason(made, reason or sample.reason)
        _is_shared(made, False)
        _key(made, key)
        _cookie(made, sample.feature << 56 | digest)
        return made


def done(pieces: Iterable[Piece]) -> Done:
    """These actions as all of a flow."""
    pieces = list(pieces)
    return tuple([piece[0] for piece in pieces]), b"".join([piece[1] for piece in pieces])


class Pieces:
    """Actions of one table, each checked and encoded once: many flows share them."""

    def __init__(self, table: str) -> None:
        self._table = table
        self._loads: dict[str, Callable[[int], Piece]] = {}
        self._kept: dict[Action, Piece] = {}

    def load(self, field: str, value: int) -> Piece:
        """Write a register field. Raises `PipelineError` if the value does not fit."""
        make = self._loads.get(field)
        if make is None:
            self.action(LAYOUT.load(field, 0))  # which checks the field
            make = _loader(field)
            if field != "PolicyRule":  # few walks have the same rule
                make = lru_cache(_MOST_PIECES)(make)
            self._loads[field] = make
        return make(value)

    def action(self, action: Action) -> Piece:
        """Any action, of few. Raises `PipelineError` if the table does not declare it."""
        found = self._kept.get(action)
        if found is None:
            LAYOUT.check(self._table, action)
            found = self._kept[action] = action, action.canonical()
        return found


def _loader(field: str) -> Callable[[int], Piece]:
    """Makes the action of `LAYOUT.load` for a value of this field."""
    sample = LAYOUT.load(field, 0)
    register, mask = sample.field, sample.mask
    shift, bits = LAYOUT.registers[field].bits[0], LAYOUT.registers[field].mask
    form = sample.canonical()
    size = WIDTHS[register] // 8
    head, tail = form[:2], form[2 + size :]

    def load(value: int) -> Piece:
        placed = value << shift
        if placed & ~bits:
            LAYOUT.load(field, value)  # which says what is wrong
        return SetField(register, placed, mask), head + placed.to_bytes(size, "big") + tail

    return load
