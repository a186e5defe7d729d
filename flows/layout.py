"""What a pipeline is made of, tables and register fields, and the checks that keep it sound."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

from flows.family import FIELD_OF_IPV4
from flows.fields import FIELDS, PORT_FIELDS, WIDTHS
from flows.flow import (
    Action,
    Bucket,
    Ct,
    Flow,
    Goto,
    Learn,
    MatchValue,
    Move,
    MoveBits,
    Pop,
    Resubmit,
    SetField,
    match,
)


class PipelineError(ValueError):
    """The layout, or a flow, breaks the rules that this module declares."""


class Feature(IntEnum):
    """The writer of a flow: the first byte of its cookie. Numbers are never reused.

    No feature has the number 0, because `ovs-ofctl add-flow` uses the cookie 0 by default.
    """

    MISS = 1
    CLASSIFY = 2
    ARP = 3
    CONNTRACK = 4
    FORWARDING = 5
    OUTPUT = 6
    SERVICES = 7
    POLICY = 8
    STATE = 9
    LEARNED = 10
    DIRECT = 11
    GENERATION = 12
    EGRESS = 13


class Priority(IntEnum):
    """Bands of priority, the same in all tables. Equal matches within one band are an error."""

    MISS = 0
    DEFAULT = 100
    """A whole class of traffic, or the outside."""
    RANGE = 150
    """A whole range of the cluster: addresses in it that no node or Service has."""
    SHARED = 200
    """One for each peer node, Service or other object; the same flows on all nodes."""
    OWN_RANGE = 250
    """The node's own pod range. It goes before the shared flow that forwards to it as to a peer."""
    OVERRIDE = 300
    """Exceptions to all bands above."""
    LOCAL = 400
    """One for each attachment, or for an address of the node."""
    GUARD = 500
    """Drops that no other flow overrides."""
    PREFIX = 1_000
    """Plus the length of a prefix of addresses: the longest prefix decides."""
    POD_RANGE = 1_200
    """The whole pod range as members of a set."""
    OUTSIDERS = 1_210
    """Addresses of the pod range that no pod has."""
    MEMBER = 1_220
    """An address that is a member of a set by name."""


@dataclass(frozen=True)
class RegisterField:
    """A named field of a packet register.

    `bits` is (first, last), inclusive, of the 32-bit register; a field of 64 bits has a pair of
    registers (`xreg4` is `reg8` and `reg9`) as a whole. A field is live from the first table that
    writes it to the last table that reads it; two live fields must not share a bit.
    """

    name: str
    register: str
    bits: tuple[int, int]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    doc: str

    @property
    def mask(self) -> int:
        """The field's bits in place."""
        first, last = self.bits
        return (1 << (last + 1)) - (1 << first)

    def value(self, number: int) -> tuple[int, int]:
        """`number` in this field as (value, mask) of the whole register."""
        placed = number << self.bits[0]
        if placed & ~self.mask:
            raise PipelineError(f"{number:#x} does not fit {self.name} (bits {self.bits})")
        return placed, self.mask

    @property
    def words(self) -> tuple[tuple[str, int], ...]:
        """Its registers of 32 bits, the high one first, and how far each is shifted."""
        if not self.register.startswith("x"):
            return ((self.register, 0),)
        first = 2 * int(self.register.removeprefix("xreg"))
        return (f"reg{first}", 32), (f"reg{first + 1}", 0)

    def placed(self, given: MatchValue) -> Iterable[tuple[str, int, int]]:
        """A value of this field, or (value, mask), as (register, value, mask) of 32 bits each."""
        value, bits = given if isinstance(given, tuple) else (given, self.mask >> self.bits[0])
        value, mask = self.value(value)[0], self.value(bits)[0]
        for register, shift in self.words:
            if part := mask >> shift & 0xFFFF_FFFF:
                yield register, value >> shift & 0xFFFF_FFFF, part


@dataclass(frozen=True)
class Table:
    """One table. `match`, `reads` and `writes` name fields, `next` the tables that may come next.

    `reads` has the register fields that actions copy.

    `miss` is the next table of a packet that no flow matches, or "drop". The miss is a flow
    (priority 0), so it has a counter and a reason.
    """

    number: int
    name: str
    doc: str
    writers: tuple[Feature, ...]
    match: tuple[str, ...]
    writes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    miss: str = "drop"
    miss_doc: str = ""
    max_flows: int | None = None
    """The most flows that the table holds. One more evicts a flow with a timeout, from the largest
    set of flows that have one value of `evict_by`."""
    evict_by: str = ""
    """The register field that divides the flows into sets for eviction."""
    reads: tuple[str, ...] = ()
    is_subroutine: bool = False
    """Packets come here only by resubmit, from any table that names it as next, and return."""


@dataclass(frozen=True)
class Bits:
    """Some bits of ct_mark or ct_label, by name."""

    name: str
    bits: tuple[int, int]
    doc: str

    @property
    def mask(self) -> int:
        """The bits in place."""
        first, last = self.bits
        return (1 << (last + 1)) - (1 << first)

    def value(self, number: int) -> tuple[int, int]:
        """The low bits of `number`, as many as fit, as (value, mask) of the whole field."""
        return (number << self.bits[0]) & self.mask, self.mask


@dataclass(frozen=True)
class Layout:
    """Tables and register fields by name, checked against each other.

    Raises `PipelineError` for a number or name that is used twice, a table whose next table has a
    lower number or does not exist, a register field that table and field do not both declare, and
    two live register fields that share a bit.
    """

    tables: Mapping[str, Table]
    registers: Mapping[str, RegisterField]

    @classmethod
    def of(cls, tables: Iterable[Table], registers: Iterable[RegisterField]) -> "Layout":
        """Check and index."""
        tables, registers = tuple(tables), tuple(registers)
        layout = cls({t.name: t for t in tables}, {r.name: r for r in registers})
        for taken, kind in (
            (Counter(table.number for table in tables), "table number"),
            (Counter(table.name for table in tables), "table name"),
            (Counter(register.name for register in registers), "register field"),
        ):
            for value, times in taken.items():
                if times > 1:
                    raise PipelineError(f"{kind} {value} is used twice")
        for table in tables:
            layout._check_table(table)
        for index, register in enumerate(registers):
            layout._check_register(register)
            for other in registers[index + 1 :]:
                layout._check_apart(register, other)
        return layout

    @cached_property
    def by_number(self) -> Mapping[int, Table]:
        """The tables by number."""
        return {table.number: table for table in self.tables.values()}

    def live(self, register: RegisterField) -> tuple[int, int]:
        """The numbers of the first and the last table in which the field is live.

        A subroutine counts as the tables that packets come from.
        """
        numbers = [
            number
            for name in (*register.writers, *register.readers)
            for number in self._places[name]
        ]
        return min(numbers), max(numbers)

    def is_live(self, register: RegisterField, table: int) -> bool:
        """Whether the field is live in a table. A subroutine has the fields that it declares."""
        if table not in self.by_number:
            return False
        found = self.by_number[table]
        if found.is_subroutine:
            return register.name in (*found.match, *found.reads, *found.writes)
        first, last = self.live(register)
        return first <= table <= last

    @cached_property
    def _places(self) -> Mapping[str, frozenset[int]]:
        """By table, its number; for a subroutine, the numbers of the tables that come to it."""
        places = {
            name: frozenset() if table.is_subroutine else frozenset([table.number])
            for name, table in self.tables.items()
        }
        # A subroutine has a higher number than all that come to it, but for itself.
        for table in sorted(self.tables.values(), key=lambda table: table.number):
            for name in table.next:
                if self.tables[name].is_subroutine:
                    places[name] |= places[table.name]
        return places

    def _check_table(self, table: Table) -> None:
        for name in (*table.next, *(() if table.miss == "drop" else (table.miss,))):
            if name not in self.tables:
                raise PipelineError(f"{table.name} goes on to {name}, which is no table")
            itself = table.is_subroutine and name == table.name
            if self.tables[name].number <= table.number and not itself:
                raise PipelineError(f"{table.name} goes backward to {name}")
            if table.is_subroutine and not self.tables[name].is_subroutine:
                raise PipelineError(f"{table.name} is a subroutine, and does not return but {name}")
        reads = (*table.match, *table.reads)
        for names, role in ((reads, "readers"), (table.writes, "writers")):
            for name in names:
                if name in FIELDS or name in PORT_FIELDS:
                    continue
                if name not in self.registers:
                    raise PipelineError(f"{table.name} names {name}, which is no field")
                if table.name not in getattr(self.registers[name], role):
                    raise PipelineError(f"{name} does not have {table.name} among its {role}")

    def _check_register(self, register: RegisterField) -> None:
        for name in (*register.writers, *register.readers):
            if name not in self.tables:
                raise PipelineError(f"{register.name} is used by {name}, which is no table")
        for name in register.writers:
            if register.name not in self.tables[name].writes:
                raise PipelineError(f"{name} does not have {register.name} in its writes")
        for name in register.readers:
            if register.name not in (*self.tables[name].match, *self.tables[name].reads):
                raise PipelineError(f"{name} does not have {register.name} in its match")

    def _check_apart(self, one: RegisterField, two: RegisterField) -> None:
        (first, last), (other_first, other_last) = self.live(one), self.live(two)
        shared = {
            word
            for word, _, mask in one.placed(one.mask >> one.bits[0])
            for other, _, bits in two.placed(two.mask >> two.bits[0])
            if word == other and mask & bits
        }
        if not shared:
            return
        if first <= other_last and other_first <= last:
            raise PipelineError(f"{one.name} and {two.name} share live bits of {one.register}")

    def flow(
        self,
        feature: Feature,
        table: str,
        priority: int,
        fields: Mapping[str, MatchValue],
        actions: Iterable[Action],
        reason: str,
    ) -> Flow:
        """A flow, checked against the declaration of its table. Raises `PipelineError`."""
        stage = self.tables[table]
        kind = (int(feature), table, *fields)
        if kind not in self._sound:
            if feature not in stage.writers:
                raise PipelineError(f"{feature.name} is no declared writer of {table}")
            for name in fields:
                if not _declared(name, stage.match):
                    raise PipelineError(f"{table} does not declare a match on {name}")
            self._sound.add(kind)
        actions = tuple(actions)
        for action in actions:
            self._check_action(stage, action)
        number = _NUMBERS.get(int(priority), int(priority))
        matched = match(self._resolve(fields))
        return Flow(int(feature), stage.number, number, matched, actions, reason)

    def bucket(self, table: str, number: int, weight: int, actions: Iterable[Action]) -> Bucket:
        """A bucket of a group that flows of `table` use. Raises `PipelineError`."""
        actions = tuple(actions)
        for action in actions:
            self._check_action(self.tables[table], action)
        return Bucket(number, weight, actions)

    def learn(
        self, table: str, priority: int, cookie: int, idle_timeout: int,
        match: Iterable[str], load: Iterable[str],
    ) -> Learn:  # fmt: skip
        """The action that learns a flow of `table` from a packet; see `flows.flow.Learn`.

        Raises `PipelineError` for fields that the table does not declare.
        """
        stage = self.tables[table]
        match, load = tuple(match), tuple(load)
        for names, declared in ((match, stage.match), (load, stage.writes)):
            if not all(_declared(name, declared) for name in names):
                raise PipelineError(f"{table} does not declare all of {', '.join(names)}")
        registers = [
            tuple(self.registers[n].register if n in self.registers else n for n in names)
            for names in (match, load)
        ]
        return Learn(stage.number, int(priority), cookie, idle_timeout, *registers)

    def load(self, name: str, value: int) -> SetField:
        """The action that writes a register field."""
        register = self.registers[name]
        placed, mask = register.value(value)
        whole = mask == (1 << WIDTHS[register.register]) - 1
        return SetField(register.register, placed, None if whole else mask)

    def loads(self, **values: int) -> list[SetField]:
        """The actions that write register fields: one for each register of 32 bits."""
        registers: dict[str, tuple[int, int]] = {}
        for name, number in values.items():
            field = self.registers[name]
            value, mask = field.value(number)
            old, old_mask = registers.get(field.register, (0, 0))
            registers[field.register] = (old | value, old_mask | mask)
        return [
            SetField(name, value, None if mask == (1 << WIDTHS[name]) - 1 else mask)
            for name, (value, mask) in registers.items()
        ]

    def move(self, source: str, destination: str | Bits) -> MoveBits:
        """The action that copies a register field to another, or to bits of ct_label."""
        field = self.registers[source]
        first, last = field.bits
        if isinstance(destination, Bits):
            to, at = "ct_label", destination.bits[0]
        else:
            target = self.registers[destination]
            to, at = target.register, target.bits[0]
        return MoveBits(field.register, first, to, at, last + 1 - first)

    def resubmit(self, name: str) -> Resubmit:
        """The action that looks the packet up in a table and returns."""
        return Resubmit(self.tables[name].number)

    def goto(self, name: str) -> Goto:
        """The action that continues at a table."""
        return self._gotos[name]

    @cached_property
    def _gotos(self) -> Mapping[str, Goto]:
        # Many flows share one object.
        return {name: Goto(table.number) for name, table in self.tables.items()}

    def misses(self) -> Iterable[Flow]:
        """The miss of every table."""
        for table in self.tables.values():
            actions = () if table.miss == "drop" else (self.goto(table.miss),)
            reason = table.miss_doc or "no packet comes here"
            yield Flow(int(Feature.MISS), table.number, int(Priority.MISS), (), actions, reason)

    def _resolve(self, fields: Mapping[str, MatchValue]) -> dict[str, MatchValue]:
        resolved: dict[str, MatchValue] = {}
        for name, given in fields.items():
            if name in FIELDS:
                resolved[name] = given
                continue
            for register, value, mask in self.registers[name].placed(given):
                other = resolved.get(register, (0, 0))
                if isinstance(other, tuple):
                    resolved[register] = (value | other[0], mask | other[1])
        return resolved

    def check(self, table: str, action: Action) -> None:
        """Raises `PipelineError` if a table does not declare what this action needs."""
        self._check_action(self.tables[table], action)

    @cached_property
    def _sound(self) -> set[object]:
        """The kinds of matches and actions that were found to be declared. There are few."""
        return set()

    def _check_action(self, stage: Table, action: Action) -> None:
        kind: object = None
        if isinstance(action, SetField):
            kind = stage.number, action.field, action.mask
        elif isinstance(action, Goto | Resubmit):
            kind = stage.number, type(action), action.table
        if kind is None or kind not in self._sound:
            self._check_declared(stage, action)
            if kind is not None:
                self._sound.add(kind)

    def _check_declared(self, stage: Table, action: Action) -> None:
        match action:
            case Goto(table) | Resubmit(table) | Ct(table=int(table)) if not any(
                self.tables[name].number == table for name in stage.next
            ):
                raise PipelineError(f"{stage.name} does not declare table {table} as next")
            case SetField(name, _, mask) if name.startswith(("reg", "xreg")):
                self._check_written(stage, name, (1 << WIDTHS[name]) - 1 if mask is None else mask)
            case MoveBits(_, _, name, first, bits) if name.startswith("reg"):
                self._check_written(stage, name, (1 << bits) - 1 << first)
            case SetField(name) | Move(_, name) | MoveBits(destination=name) | Pop(name) if (
                not _declared(name, stage.writes)
            ):
                raise PipelineError(f"{stage.name} does not declare that it writes {name}")
            case Ct(exec=fields):
                for field in fields:
                    self._check_action(stage, field)

    def _check_written(self, stage: Table, name: str, mask: int) -> None:
        written = 0
        for register in map(self.registers.get, stage.writes):
            if register is not None and register.register == name:
                written |= register.mask
        if mask & ~written:
            raise PipelineError(f"{stage.name} does not declare all it writes of {name}")


_NUMBERS: Final = {int(priority): int(priority) for priority in Priority}
"""The priorities as plain numbers: one object each, for millions of flows."""


def _declared(name: str, fields: Collection[str]) -> bool:
    """Whether a table declares a field. The IPv4 name of a field stands for all families."""
    return name in fields or FIELD_OF_IPV4.get(name) in fields
