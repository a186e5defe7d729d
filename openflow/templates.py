"""Encodes messages by filling numbers into templates: some hundred times faster than os-ken.

The *shape* of a flow decides the layout of its bytes: the fields and masks of its match, and the
kinds of its actions. The rest are *values*: cookie, table, addresses, ports. For the template
of a shape, os-ken encodes a flow once, and again for each value with that value changed. The bytes
that differ are the position of the value. So this module needs no knowledge of action layouts.
"""

import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final, Generic, TypeAlias, TypeVar

from flows.fields import FIELDS, WIDTHS
from flows.flow import (
    MOST_BUCKETS,
    Action,
    ApplyMeter,
    Bucket,
    Ct,
    CtClear,
    Flow,
    FormError,
    Goto,
    Group,
    Learn,
    Move,
    MoveBits,
    Note,
    Output,
    OutputReg,
    Pop,
    Push,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
)
from openflow import codec

_Subject = TypeVar("_Subject")
_XID_AT: Final = 4
_CODES: Final = {1: "B", 2: "H", 4: "I", 8: "Q"}


class Template:
    """Constant bytes with gaps of fixed width."""

    def __init__(self, encode: Callable[[Sequence[int]], bytes], widths: Sequence[int]) -> None:
        """Find the gaps in what `encode` makes of values that are `widths` bytes wide.

        The first gap of every message is its xid, which is not among the values of `encode`.
        Raises `ValueError` if a value has no single position, or the positions are out of order.
        """
        # Two numbers that differ in every byte. No byte is 0, because 0 may mean "absent".
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
        # `struct` has no integers of some widths (MACs, labels); these are packed as bytes.
        self._as_bytes = [
            (2 * index + 3, width) for index, width in enumerate(widths) if width not in _CODES
        ]

    def fill(self, values: Sequence[int], xid: int) -> bytes:
        """The message with these values. Raises `struct.error` or `OverflowError`."""
        arguments = self._arguments.copy()
        arguments[1] = xid
        arguments[3::2] = values
        if self._as_bytes:
            for at, width in self._as_bytes:
                arguments[at] = arguments[at].to_bytes(width, "big")
        return self._pack(*arguments)


class _ByShape(Generic[_Subject]):
    """Encodes subjects of many shapes; remembers one template for each that is seen twice."""

    def __init__(
        self,
        split: Callable[[_Subject], tuple[tuple[Any, ...], list[int]]],
        alone: Callable[[_Subject], bytes],
        template: Callable[[_Subject, list[int]], Template | None],
    ) -> None:
        """How to get a subject's shape and values, os-ken's bytes, and a template of its shape."""
        self._split = split
        self._alone = alone
        self._template = template
        self._templates: dict[tuple[Any, ...], Template | None] = {}
        self._seen: set[tuple[Any, ...]] = set()

    def encoded(self, subject: _Subject, xid: int) -> bytes:
        """The message. Raises `codec.CodecError`."""
        try:
            shape, values = self._split(subject)
        except FormError:
            return numbered(self._alone(subject), xid)  # which names the field
        try:
            template = self._templates[shape]
        except KeyError:
            # A template costs os-ken as much as ten flows, and many shapes have one flow.
            if shape not in self._seen:
                self._seen.add(shape)
                return numbered(self._alone(subject), xid)
            template = self._templates[shape] = self._template(subject, values)
        if template is None:
            return numbered(self._alone(subject), xid)
        try:
            return template.fill(values, xid)
        except (struct.error, OverflowError):
            return numbered(self._alone(subject), xid)  # which names the field


class FlowEncoder:
    """Makes OFPT_FLOW_MOD messages, by templates."""

    def __init__(self) -> None:
        self._flows = _ByShape(split, codec.flow_add, _template)
        self._actions = _ByShape(_split_action, _action_alone, _action_template)
        # Pods with the same policies share their actions, and come one after the other.
        self._latest: tuple[tuple[Action, ...], int | None, bytes] = (), None, b""

    def add(self, flow: Flow, xid: int = 0) -> bytes:
        """The message that adds this flow. Raises `codec.CodecError`.

        A flow that several programs share is encoded once; the bytes are kept with it.
        """
        if not flow.is_shared:
            return self._encoded(flow, xid)
        try:
            kept = flow.encoded
        except AttributeError:
            kept = self._encoded(flow, 0)
            flow.keep("encoded", kept)
        return numbered(kept, xid)

    def _encoded(self, flow: Flow, xid: int) -> bytes:
        if len(flow.actions) > MOST_ACTIONS:
            return self._long(flow, xid)
        return self._flows.encoded(flow, xid)

    def _long(self, flow: Flow, xid: int) -> bytes:
        """The message from its parts: the flow without actions, and each action by a template."""
        try:
            cookie = flow.cookie
        except FormError:
            return numbered(codec.flow_add(flow), xid)  # which names the field
        first, tail = flow.actions, b""
        if isinstance(first[-1], Goto):
            tail = codec.flow_add(_only(first[-1:]), (0, None))[_INSTRUCTIONS_AT:]
            first = first[:-1]
        protocol = codec.protocol_of(flow)
        bare = replace(flow, actions=())
        bare.keep("cookie", cookie)
        head = self._flows.encoded(bare, xid)
        kept, of, actions = self._latest
        if kept is not flow.actions or of != protocol:
            encoded = [self._actions.encoded((each, protocol), 0) for each in first]
            actions = b"".join([each[_ACTIONS_AT:] for each in encoded])
            self._latest = flow.actions, protocol, actions
        length = len(head) + _INSTRUCTION.size + len(actions) + len(tail)
        try:
            instruction = _INSTRUCTION.pack(_APPLY, _INSTRUCTION.size + len(actions))
            size = struct.pack("!H", length)
        except struct.error:
            text = f"{codec.described(flow)}: {length} bytes are too long for a message"
            raise codec.CodecError(text) from None
        return b"".join([head[:2], size, head[4:], instruction, actions, tail])


class GroupEncoder:
    """Makes OFPT_GROUP_MOD messages, with templates for buckets: many buckets have few shapes."""

    def __init__(self) -> None:
        self._buckets = _ByShape(_split_bucket, _alone, _bucket_template)
        self._heads: dict[tuple[Any, ...], Template] = {}

    def set(self, group: Group, xid: int = 0) -> bytes:
        """The message of `codec.group_set`. Raises `codec.CodecError`."""
        shape = (group.method, group.fields)
        head = self._heads.get(shape)
        if head is None:
            empty = replace(group, buckets=())
            codec.group_set(empty)  # which names the group where a field does not exist
            head = Template(lambda values: codec.group_set(replace(empty, id=values[0])), [4])
            self._heads[shape] = head
        if len(group.buckets) > MOST_BUCKETS:
            codec.group_set(group)  # which says so
        return self._around(head, group.id, group.buckets, xid)

    def insert(self, group: int, buckets: Sequence[Bucket], xid: int = 0) -> bytes:
        """The message of `codec.buckets_insert`. Raises `codec.CodecError`."""
        return self._around(_INSERT, group, buckets, xid)

    def _around(self, head: Template, group: int, buckets: Sequence[Bucket], xid: int) -> bytes:
        try:
            empty = head.fill([group], xid)
        except struct.error as error:
            raise codec.CodecError(f"group {group:#x}: a number does not fit: {error}") from None
        array = b"".join(self._buckets.encoded(each, 0)[_BUCKETS_AT:] for each in buckets)
        message = bytearray(empty)
        message[_BUCKETS_AT:_BUCKETS_AT] = array
        try:
            struct.pack_into("!H", message, _LENGTH_AT, len(message))
            struct.pack_into("!H", message, _ARRAY_LENGTH_AT, len(array))
        except struct.error as error:
            raise codec.CodecError(f"group {group:#x}: too long for a message: {error}") from None
        return bytes(message)


MOST_ACTIONS: Final = 6
"""A flow with more actions than this gets no template of its own: each action would make os-ken
encode them all again, and flows with many actions have many shapes."""
# Of struct ofp_flow_mod with an empty match, and struct ofp_instruction_actions (OpenFlow 1.5.1,
# 7.3.4.2 and 7.2.5).
_INSTRUCTIONS_AT: Final = 56
_INSTRUCTION: Final = struct.Struct("!HH4x")
_ACTIONS_AT: Final = _INSTRUCTIONS_AT + _INSTRUCTION.size
_APPLY: Final = 4

_ActionOf: TypeAlias = tuple[Action, int | None]
"""An action, and the protocol that its flow matches."""


def _only(actions: Iterable[Action]) -> Flow:
    return Flow(0, 0, 0, (), tuple(actions), "")


def _split_action(given: _ActionOf) -> tuple[tuple[Any, ...], list[int]]:
    action, protocol = given
    constants, values, _ = _parts(action)
    return (type(action), protocol, *constants), values


def _action_alone(given: _ActionOf) -> bytes:
    """A message that holds nothing but one action, at `_ACTIONS_AT`."""
    action, protocol = given
    return codec.flow_add(_only([action]), (0, protocol))


def _action_template(given: _ActionOf, values: list[int]) -> Template | None:
    """An action's shape as a template; None if os-ken's bytes cannot be had that way."""
    action, protocol = given

    def encode(values: Sequence[int]) -> bytes:
        return _action_alone((_refilled(action, iter(values)), protocol))

    try:
        template = Template(encode, _parts(action)[2])
    except ValueError:
        return None
    return template if template.fill(values, 0) == _action_alone(given) else None


# Of struct ofp_group_mod (OpenFlow 1.5.1, 7.3.4.3).
_LENGTH_AT: Final = 2
_ARRAY_LENGTH_AT: Final = 16
_BUCKETS_AT: Final = 24
_INSERT: Final = Template(lambda values: codec.buckets_insert(values[0], ()), [4])


def _alone(bucket: Bucket) -> bytes:
    """A message that holds nothing but one bucket, at `_BUCKETS_AT`."""
    return codec.buckets_insert(0, [bucket])


def _split_bucket(bucket: Bucket) -> tuple[tuple[Any, ...], list[int]]:
    shape: tuple[Any, ...] = ()
    values = [bucket.id, bucket.weight]
    for action in bucket.actions:
        constants, numbers, _ = _parts(action)
        shape += (type(action), *constants)
        values += numbers
    # On the wire a bucket's weight, a property, stands behind its actions.
    values.append(values.pop(1))
    return shape, values


def _bucket_template(bucket: Bucket, values: list[int]) -> Template | None:
    """A bucket's shape as a template; None if os-ken's bytes cannot be had that way."""
    expected = _alone(bucket)

    def encode(values: Sequence[int]) -> bytes:
        number, *rest, weight = values
        left = iter(rest)
        return _alone(Bucket(number, weight, tuple(_refilled(a, left) for a in bucket.actions)))

    widths = [4, *(width for action in bucket.actions for width in _parts(action)[2]), 2]
    try:
        template = Template(encode, widths)
    except ValueError:
        return None
    return template if template.fill(values, 0) == expected else None


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
    if not flow.actions:
        return shape, values
    # This loop is what encoding costs. Most frequent first; `isinstance` is slow with unions.
    kinds: list[Any] = []
    for action in flow.actions:
        if isinstance(action, SetField):
            kinds += (SetField, action.field, action.mask)
            values.append(action.value)
        elif isinstance(action, Output):
            kinds.append(Output)
            values.append(action.port)
        elif isinstance(action, Goto):
            kinds.append(Goto)
            values.append(action.table)
        else:
            constants, numbers, _ = _parts(action)
            kinds += (type(action), *constants)
            values += numbers
    return (*shape, *kinds), values


def _parts(action: Action) -> tuple[tuple[Any, ...], list[int], list[int]]:  # noqa: C901, PLR0911, PLR0912 - one case per kind
    """An action's share of the shape, its values, and their widths in bytes."""
    match action:
        case SetField(field, value, mask):
            # A field that there is not is named by os-ken's way, which comes first.
            return (field, mask), [value], [WIDTHS.get(field, 0) // 8]
        case Goto(table):
            return (), [table], [1]
        case Output(port):
            return (), [port], [4]
        case OutputReg(register):
            return (register,), [], []
        case Move(source, destination):
            return (source, destination), [], []
        case MoveBits() | ToController():
            return (action,), [], []
        case Push(field) | Pop(field):
            return (field,), [], []
        case CtClear():
            return (), [], []
        case ApplyMeter(meter):
            return (), [meter], [4]
        case Note(b""):
            return (0,), [], []
        case Note(data):
            return (len(data),), [int.from_bytes(data, "big")], [len(data)]
        case ToGroup(number) | Resubmit(number):
            return (), [number], [4 if isinstance(action, ToGroup) else 1]
        case Learn():
            values = [action.idle_timeout, action.priority, action.cookie, action.table]
            return (action.match, action.load), values, [2, 2, 8, 1]
        case Ct(zone, table, commit, translation, exec_):
            values, widths = [zone, 0xFF if table is None else table], [2, 1]
            constants: tuple[Any, ...] = (commit,)
            if translation is None:
                constants += (None,)
            elif translation.destination is not None:
                constants += ("destination", translation.source, translation.ports)
                values += translation.destination
                widths += [4, 2]
            elif translation.source:
                # Few ranges of ports are in use; one of a single port is laid out otherwise.
                constants += ("source", translation.ports)
                values.append(translation.source)
                widths.append(4)
            else:
                constants += (translation.source, translation.ports)
            for inside in exec_:
                inner = _parts(inside)
                constants += inner[0]
                values += inner[1]
                widths += inner[2]
            return constants, values, widths


def _refilled(action: Action, values: Iterator[int]) -> Action:  # noqa: C901, PLR0911 - one case per kind
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
        case ToGroup():
            return ToGroup(next(values))
        case Resubmit():
            return Resubmit(next(values))
        case Learn(match=match, load=load):
            idle_timeout, priority, cookie, table = (next(values) for _ in range(4))
            return Learn(table, priority, cookie, idle_timeout, match, load)
        case Ct(_, _, commit, translation, exec_):
            zone, table = next(values), next(values)
            if translation is not None and translation.destination is not None:
                translation = replace(translation, destination=(next(values), next(values)))
            elif translation is not None and translation.source:
                translation = replace(translation, source=next(values))
            # Only fields that are set and bits that are moved stand inside.
            fields: Any = tuple(_refilled(field, values) for field in exec_)
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
