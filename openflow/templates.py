"""Messages of a known shape, made by filling in numbers: some hundred times faster than os-ken.

A *shape* is everything of a flow that decides which bytes are where: names and masks of its match,
kinds of its actions. What is left are *values*: cookie, table, addresses, ports. On first sight
of a shape os-ken encodes it with each value in turn changed to another; the bytes that differ are
that value's place. Nothing here knows how an action is laid out.
"""

import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from flows.flow import (
    FIELDS,
    Action,
    ApplyMeter,
    Ct,
    Flow,
    Goto,
    Move,
    Nat,
    Note,
    Output,
    OutputReg,
    SetField,
)
from openflow import codec

_XID_AT: Final = 4
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Template:
    """Constant bytes with gaps of fixed width."""

    def __init__(self, encode: Callable[[Sequence[int]], bytes], widths: Sequence[int]) -> None:
        """Find the gaps in what `encode` makes of values that are `widths` bytes wide.

        The first gap of every message is its xid, which is not among the values of `encode`.
        Raises `ValueError` where a value has not exactly one place, or they are out of order.
        """
        # Two numbers of which no byte is equal, and none is 0, which may mean "not there".
        first = [int.from_bytes(b"\x55" * width, "big") for width in widths]
        constant = encode(first)
        pieces: list[bytes] = [constant[:_XID_AT]]
        layout = f"!{_XID_AT}sI"
        end = _XID_AT + 4
        for index, width in enumerate(widths):
            second = int.from_bytes(b"\xaa" * width, "big")
            varied = encode([*first[:index], second, *first[index + 1 :]])
            start = next((at for at, b in enumerate(varied) if b != constant[at]), 0)
            before, after = constant[:start], constant[start + width :]
            if (
                start < end
                or constant != before + b"\x55" * width + after
                or varied != before + b"\xaa" * width + after
            ):
                raise ValueError(f"value {index} ({width} bytes) has no place of its own")
            layout += f"{start - end}s" + _CODES.get(width, f"{width}s")
            pieces.append(constant[end:start])
            end = start + width
        layout += f"{len(constant) - end}s"
        pieces.append(constant[end:])
        self._pack = struct.Struct(layout).pack
        # Constant, gap, constant, gap, ..., constant: as `pack` wants them.
        self._arguments: list[Any] = [0] * (2 * len(pieces) - 1)
        self._arguments[::2] = pieces
        # Widths that `struct` has no number for (MACs, labels) go in as bytes.
        self._as_bytes = [
            (2 * index + 3, width) for index, width in enumerate(widths) if width not in _CODES
        ]

    def fill(self, values: Sequence[int], xid: int) -> bytes:
        """The message with these values. Raises `struct.error` or `OverflowError`."""
        arguments = self._arguments.copy()
        arguments[1] = xid
        arguments[3::2] = values
        for at, width in self._as_bytes:
            arguments[at] = arguments[at].to_bytes(width, "big")
        return self._pack(*arguments)


class FlowEncoder:
    """Makes OFPT_FLOW_MOD messages; remembers one template for each shape seen twice."""

    def __init__(self) -> None:
        self._templates: dict[tuple[Any, ...], Template | None] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def add(self, flow: Flow, xid: int = 0) -> bytes:
        """The message that adds this flow. Raises `codec.CodecError`."""
        shape, values = split(flow)
        try:
            template = self._templates[shape]
        except KeyError:
            # Making a template costs os-ken what ten flows cost it, and many shapes have one flow.
            if shape not in self._seen:
                self._seen.add(shape)
                return numbered(codec.flow_add(flow), xid)
            template = self._templates[shape] = _template(flow, values)
        if template is None:
            return numbered(codec.flow_add(flow), xid)
        try:
            return template.fill(values, xid)
        except (struct.error, OverflowError):
            return numbered(codec.flow_add(flow), xid)  # which names the field


def split(flow: Flow) -> tuple[tuple[Any, ...], list[int]]:
    """A flow's shape, and its values in the order of their places."""
    shape: tuple[Any, ...]
    values: list[int]
    if flow.match:
        names, matched, masks = zip(*flow.match, strict=True)
        # Layer 4 ports are different fields for different protocols.
        protocol = matched[names.index("nw_proto")] if "nw_proto" in names else None
        shape = (names, masks, protocol)
        values = [flow.cookie, flow.table, flow.priority, *matched]
    else:
        shape = ()
        values = [flow.cookie, flow.table, flow.priority]
    # By exact type and most frequent first: this loop is what encoding costs.
    for action in flow.actions:
        kind = type(action)
        if isinstance(action, SetField):
            shape += (kind, action.field, action.mask)
            values.append(action.value)
        elif isinstance(action, Goto | Output):
            shape += (kind,)
            values.append(action.table if isinstance(action, Goto) else action.port)
        else:
            constants, numbers, _ = _parts(action)
            shape += (kind, *constants)
            values += numbers
    return shape, values


def _parts(action: Action) -> tuple[tuple[Any, ...], list[int], list[int]]:  # noqa: C901, PLR0911 - one case per kind
    """An action's share of the shape, its values, and their widths in bytes."""
    match action:
        case SetField(field, value, mask):
            return (field, mask), [value], [FIELDS[field] // 8]
        case Goto(table):
            return (), [table], [1]
        case Output(port):
            return (), [port], [4]
        case OutputReg(register):
            return (register,), [], []
        case Move(source, destination):
            return (source, destination), [], []
        case ApplyMeter(meter):
            return (), [meter], [4]
        case Note(b""):
            return (0,), [], []
        case Note(data):
            return (len(data),), [int.from_bytes(data, "big")], [len(data)]
        case Ct(zone, table, commit, translation, exec_):
            values, widths = [zone, 0xFF if table is None else table], [2, 1]
            nat_source = translation.source if translation is not None else None
            constants: tuple[Any, ...] = (
                commit,
                translation is None,
                nat_source is None,
                nat_source == 0,
            )
            if nat_source:
                values.append(nat_source)
                widths.append(4)
            for set_field in exec_:
                inner = _parts(set_field)
                constants += inner[0]
                values += inner[1]
                widths += inner[2]
            return constants, values, widths


def _refilled(action: Action, values: Iterator[int]) -> Action:  # noqa: PLR0911 - one case per kind
    """The same action with the next values: the inverse of `_parts`."""
    match action:
        case SetField():
            return replace(action, value=next(values))
        case Goto():
            return Goto(next(values))
        case Output():
            return Output(next(values))
        case ApplyMeter():
            return ApplyMeter(next(values))
        case Note(data) if data:
            return Note(next(values).to_bytes(len(data), "big"))
        case Ct(_, _, commit, translation, exec_):
            zone, table = next(values), next(values)
            if translation is not None and translation.source:
                translation = Nat(next(values))
            fields = tuple(replace(field, value=next(values)) for field in exec_)
            return Ct(zone, table, commit, translation, fields)
    return action


def _template(flow: Flow, values: list[int]) -> Template | None:
    """A flow's shape as a template; None if os-ken's bytes cannot be had that way.

    Raises `codec.CodecError` for a flow that cannot be written at all.
    """
    expected = codec.flow_add(flow)
    protocol = codec.protocol_of(flow)

    def encode(values: Sequence[int]) -> bytes:
        cookie, table, priority, *rest = values
        left = iter(rest)
        match = tuple((name, next(left), mask) for name, _, mask in flow.match)
        actions = tuple(_refilled(action, left) for action in flow.actions)
        varied = replace(flow, table=table, priority=priority, match=match, actions=actions)
        return codec.flow_add(varied, stand_in=(cookie, protocol))

    widths = [8, 1, 2, *(FIELDS[name] // 8 for name, _, _ in flow.match)]
    for action in flow.actions:
        widths += _parts(action)[2]
    try:
        template = Template(encode, widths)
    except ValueError:
        return None
    return template if template.fill(values, 0) == expected else None


def numbered(message: bytes, xid: int) -> bytes:
    """A message with this xid."""
    return message[:_XID_AT] + xid.to_bytes(4, "big") + message[_XID_AT + 4 :]
