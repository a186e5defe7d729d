"""A simulator of flow tables: many packets at once, as bits of one integer.

It reads what a switch dumps (`ovs-ofctl dump-flows`, or `bridge/dump-flows`), and knows nothing of
what the tables are for. Packet number N is bit N of a set of packets. A field is a column: for each
value that it has in some packet, the set of the packets that have it. A match is then a few
operations on integers for all packets, and so is an action.

Simulated are matches with masks, priorities, `set_field`, `load`, `move`, `resubmit` and
`goto_table`, on header fields and registers. `ct` continues at its table; the state that it finds
is a column that whoever makes the packets fills in. Meters let everything pass.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, reduce
from ipaddress import IPv4Address
from typing import Final, NamedTuple, TypeAlias

PacketSet: TypeAlias = int
"""Bit N: whether packet number N is in the set."""
Columns: TypeAlias = dict[str, dict[int, PacketSet]]
"""By field, by value: the packets that have it. A field that is not there is 0 in all packets."""


class Term(NamedTuple):
    """What one field must be: `value` in the bits of `mask`; `mask` None: exactly `value`."""

    field: str
    value: int
    mask: int | None


class SetBits(NamedTuple):
    """Writes the bits of `mask` of a field; None: all."""

    field: str
    value: int
    mask: int | None


class Copy(NamedTuple):
    """`move`: `width` bits of one field to another."""

    source: str
    source_shift: int
    target: str
    target_shift: int
    width: int


class Call(NamedTuple):
    """`resubmit`: processes a table, and returns."""

    table: int


class Jump(NamedTuple):
    """`goto_table`, or a `ct` that continues at a table."""

    table: int


class Send(NamedTuple):
    """`output`: to a port, to the port in a field (`field`), or back (`IN_PORT`)."""

    port: int | None
    field: str = ""


class Nothing(NamedTuple):
    """An action that changes nothing which is simulated, by its text."""

    text: str


Action: TypeAlias = SetBits | Copy | Call | Jump | Send | Nothing


@dataclass(frozen=True)
class Entry:
    """A flow as the switch has it."""

    table: int
    priority: int
    terms: tuple[Term, ...]
    actions: tuple[Action, ...]
    text: str


class AmbiguityError(AssertionError):
    """Two flows of one table, of equal priority and with different actions, match one packet."""


@dataclass
class Run:
    """What became of the packets of one run through a switch."""

    columns: Columns
    reached: dict[int, PacketSet] = field(default_factory=dict)
    """By table, the packets that got there."""
    sent: dict[int, PacketSet] = field(default_factory=dict)
    """By port, the packets that were sent out there."""


IN_PORT: Final = 0xFFF8


class Tables:
    """The flow tables of one switch."""

    def __init__(self, dump: Iterable[str]) -> None:
        """`dump` has one flow a line. Raises `ValueError` for what is not simulated."""
        self.entries: dict[int, list[Entry]] = {}
        for line in dump:
            if entry := parse(line):
                self.entries.setdefault(entry.table, []).append(entry)
        for entries in self.entries.values():
            entries.sort(key=lambda entry: -entry.priority)
        self._key_fields = {table: _key_field(found) for table, found in self.entries.items()}
        self._candidates: dict[tuple[int, frozenset[int]], list[Entry]] = {}

    def _may_match(self, table: int, columns: Columns, packets: PacketSet) -> list[Entry]:
        """The flows of a table that packets with the values of these may match, in their order."""
        entries = self.entries.get(table, [])
        name = self._key_fields.get(table, "")
        if name not in columns:
            return entries
        values = frozenset(value for value, holders in columns[name].items() if holders & packets)
        found = self._candidates.get((table, values))
        if found is None:
            found = [
                entry
                for entry in entries
                if all(
                    term.value in values
                    for term in entry.terms
                    if term.field == name and term.mask is None
                )
            ]
            self._candidates[table, values] = found
        return found

    def run(self, packets: PacketSet, columns: Columns, table: int = 0) -> Run:
        """Send these packets through the tables, from `table` on. `columns` stay as they are."""
        run = Run({name: dict(column) for name, column in columns.items()})
        self._process(run, table, packets, depth=0)
        return run

    def _process(self, run: Run, table: int, packets: PacketSet, depth: int) -> None:
        if depth > 64:
            raise RecursionError(f"table {table}: more than 64 resubmits deep")
        run.reached[table] = run.reached.get(table, 0) | packets
        hits: list[tuple[Entry, PacketSet]] = []
        rest, level, tied = packets, -1, 0
        for entry in self._may_match(table, run.columns, packets):
            if entry.priority != level:
                if not rest:
                    break
                level, tied = entry.priority, rest
            if hit := _matching(entry, run.columns, tied):
                if hit & ~rest:
                    _check_tie(entry, hit, hits)
                    hit &= rest
                hits.append((entry, hit))
                rest &= ~hit
        # All flows are chosen before an action changes a field.
        for entry, hit in hits:
            for action in entry.actions:
                self._act(run, action, hit, depth)

    def _act(self, run: Run, action: Action, packets: PacketSet, depth: int) -> None:
        match action:
            case SetBits(name, value, mask):
                _write(run.columns, name, packets, lambda old: _merged(old, value, mask))
            case Copy():
                _copy(run.columns, action, packets)
            case Call(table) | Jump(table):
                self._process(run, table, packets, depth + 1)
            case Send(None, name):
                for port, holders in run.columns.get(name, {0: packets}).items():
                    if found := holders & packets:
                        run.sent[port] = run.sent.get(port, 0) | found
            case Send(int(port)):
                run.sent[port] = run.sent.get(port, 0) | packets

    def addresses(self, tables: Iterable[int]) -> set[tuple[int, int]]:
        """(value, mask) of all matches of an address in these tables."""
        return {
            (term.value, 0xFFFF_FFFF if term.mask is None else term.mask)
            for table in tables
            for entry in self.entries.get(table, ())
            for term in entry.terms
            if term.field in {"nw_src", "nw_dst"}
        }

    def ports(self, tables: Iterable[int]) -> set[tuple[int, int, int]]:
        """(protocol, value, mask) of all matches of a destination port in these tables."""
        return {
            (protocol.value, term.value, 0xFFFF if term.mask is None else term.mask)
            for table in tables
            for entry in self.entries.get(table, ())
            for term in entry.terms
            if term.field == "tp_dst"
            for protocol in entry.terms
            if protocol.field == "nw_proto"
        }


def _key_field(entries: Iterable[Entry]) -> str:
    """The field that most flows of a table match whole, but for constants; it tells them apart."""
    found: dict[str, set[int]] = {}
    for entry in entries:
        for term in entry.terms:
            if term.mask is None:
                found.setdefault(term.field, set()).add(term.value)
    return max(found, key=lambda name: len(found[name]), default="")


def _check_tie(entry: Entry, hit: PacketSet, hits: Iterable[tuple[Entry, PacketSet]]) -> None:
    for other, taken in hits:
        if other.priority == entry.priority and taken & hit and other.actions != entry.actions:
            raise AmbiguityError(f"one packet matches both\n{other.text}\n{entry.text}")


def _matching(entry: Entry, columns: Columns, packets: PacketSet) -> PacketSet:
    for name, value, mask in entry.terms:
        column = columns.get(name)
        if column is None:
            found = packets if value == 0 else 0
        elif mask is None:
            found = column.get(value, 0)
        else:
            found = 0
            for each, holders in column.items():
                if each & mask == value:
                    found |= holders
        packets &= found
        if not packets:
            return 0
    return packets


def _merged(old: int, value: int, mask: int | None) -> int:
    return value if mask is None else (old & ~mask) | value


def _write(columns: Columns, name: str, packets: PacketSet, new_of: Callable[[int], int]) -> None:
    """Give a field of these packets new values, each a function of the old one."""
    if name not in columns:
        columns[name] = {0: ~0}  # in all packets, also those that are not there
    column = columns[name]
    moved: list[tuple[int, PacketSet]] = []
    for old, holders in column.items():
        if found := holders & packets:
            moved.append((new_of(old), found))
    for old in list(column):
        column[old] &= ~packets
        if not column[old]:
            del column[old]
    for new, found in moved:
        column[new] = column.get(new, 0) | found


def _copy(columns: Columns, action: Copy, packets: PacketSet) -> None:
    bits = (1 << action.width) - 1
    sources = list(columns.get(action.source, {0: ~0}).items())
    for value, holders in sources:
        if found := holders & packets:
            part = (value >> action.source_shift & bits) << action.target_shift
            mask = bits << action.target_shift
            _write(
                columns, action.target, found,
                lambda old, part=part, mask=mask: (old & ~mask) | part,  # type: ignore[misc]
            )  # fmt: skip


# --- the text of a switch ---

_ADDRESSES = {
    "nw_src",
    "nw_dst",
    "arp_spa",
    "arp_tpa",
    "tun_src",
    "tun_dst",
    "ct_nw_src",
    "ct_nw_dst",
}
_MACS = {"dl_src", "dl_dst", "arp_sha", "arp_tha"}
_ALIASES = {
    "eth_src": "dl_src", "eth_dst": "dl_dst", "eth_type": "dl_type", "ip_src": "nw_src",
    "ip_dst": "nw_dst", "ip_proto": "nw_proto",
    **{f"{p}_{way}": f"tp_{way}" for p in ("tcp", "udp", "sctp") for way in ("src", "dst")},
    # A switch keeps the type of an ICMP packet where others have the source port.
    "icmp_type": "tp_src", "icmp_code": "tp_dst", "icmpv6_type": "tp_src",
}  # fmt: skip
_PROTOCOLS: Final[Mapping[str, dict[str, int]]] = {
    "ip": {"dl_type": 0x0800},
    "arp": {"dl_type": 0x0806},
    "ipv6": {"dl_type": 0x86DD},
    "icmp": {"dl_type": 0x0800, "nw_proto": 1},
    "tcp": {"dl_type": 0x0800, "nw_proto": 6},
    "udp": {"dl_type": 0x0800, "nw_proto": 17},
    "sctp": {"dl_type": 0x0800, "nw_proto": 132},
    "icmp6": {"dl_type": 0x86DD, "nw_proto": 58},
}
_CT_STATES = ("new", "est", "rel", "rpl", "inv", "trk", "snat", "dnat")
FRAGMENTS: Final = {"no": 0, "first": 1, "later": 3}
"""The values of `nw_frag`: bit 0, a fragment; bit 1, not the first one."""
_FRAGMENT_MATCHES = {
    "yes": (1, 1),
    "not_later": (0, 2),
    "no": (0, 3),
    "first": (1, 3),
    "later": (3, 3),
}
_STATISTICS = (
    "cookie", "duration", "n_packets", "n_bytes", "n_offload", "idle_age", "hard_age",
    "send_flow_rem", "idle_timeout", "hard_timeout", "importance", "reset_counts",
)  # fmt: skip


def parse(line: str) -> Entry | None:
    """A line of a dump; None: it is no flow. Raises `ValueError` for what is not simulated."""
    return _parse(_COUNTERS.sub("", line))


_COUNTERS: Final = re.compile(r"\b(duration|n_packets|n_bytes|idle_age|hard_age)=[\d.]+s?, ?")


@lru_cache(maxsize=50_000)
def _parse(line: str) -> Entry | None:
    head, found, tail = line.strip().partition("actions=")
    if not found:
        return None
    table, priority = 0, 0x8000
    terms: list[Term] = []
    for word in head.replace(" ", ",").split(","):
        name, _, value = word.partition("=")
        if not name or name in _STATISTICS:
            continue
        if name in {"table", "table_id"}:
            table = int(value)
        elif name == "priority":
            priority = int(value)
        elif name in _PROTOCOLS and not value:
            terms += (Term(key, number, None) for key, number in _PROTOCOLS[name].items())
        else:
            terms += _terms(name, value)
    actions = tuple(action for text in _split(tail.strip()) for action in _actions(text))
    return Entry(table, priority, tuple(terms), actions, line.strip())


def _terms(name: str, text: str) -> Iterable[Term]:
    name = _ALIASES.get(name, name)
    if name == "ct_state":
        value = mask = 0
        for sign, flag in re.findall(r"([+-])([a-z]+)", text):
            bit = 1 << _CT_STATES.index(flag)
            mask |= bit
            value |= bit if sign == "+" else 0
        return [Term(name, value, mask)]
    if name == "nw_frag":
        return [Term(name, *_FRAGMENT_MATCHES[text])]
    value, mask = _number(name, text)
    return [Term(*part) for part in _parts(name, value, mask)]


def _number(name: str, text: str) -> tuple[int, int | None]:
    """`VALUE` or `VALUE/MASK`, as a field of this name has them."""
    given, _, mask = text.partition("/")
    if name in _ADDRESSES:
        value = int(IPv4Address(given))
        if not mask:
            return value, None
        if "." in mask:
            return value, int(IPv4Address(mask))
        return value, (1 << 32) - (1 << (32 - int(mask)))
    if name in _MACS:
        return int(given.replace(":", ""), 16), int(mask.replace(":", ""), 16) if mask else None
    return int(given, 0), int(mask, 0) if mask else None


def _parts(name: str, value: int, mask: int | None) -> Iterable[tuple[str, int, int | None]]:
    """A wide register as its 32-bit registers, the first of which has the high bits."""
    if not (found := re.fullmatch(r"(x{1,2})reg(\d+)", name)):
        yield name, value, mask
        return
    count = 2 if found[1] == "x" else 4
    for index in range(count):
        shift = 32 * (count - 1 - index)
        part = None if mask is None else mask >> shift & 0xFFFF_FFFF
        if part != 0:
            register = f"reg{count * int(found[2]) + index}"
            exact = part in {None, 0xFFFF_FFFF}
            yield register, value >> shift & 0xFFFF_FFFF, None if exact else part


def _split(text: str) -> list[str]:
    """At commas outside parentheses."""
    words, depth, start = [], 0, 0
    for index, character in enumerate(text):
        if character == "," and not depth:
            words.append(text[start:index])
            start = index + 1
        depth += {"(": 1, ")": -1}.get(character, 0)
    return [*words, text[start:]]


_IGNORED = ("meter:", "note:", "ct_clear", "learn(", "group:", "pop:", "push:", "controller")


def _actions(text: str) -> Iterable[Action]:  # noqa: C901, PLR0911 - one line per kind
    if text == "drop":
        return []
    if text == "IN_PORT":
        return [Send(IN_PORT)]
    if found := re.fullmatch(r"(?:goto_table:|resubmit\(,)(\d+)\)?", text):
        table = int(found[1])
        return [Jump(table) if text.startswith("goto") else Call(table)]
    if found := re.fullmatch(r"set_field:(.+)->(\w+)", text):
        name = _ALIASES.get(found[2], found[2])
        return [SetBits(*part) for part in _parts(name, *_number(name, found[1]))]
    if found := re.fullmatch(r"load:(\w+)->(\w+)\[(?:(\d+)\.\.(\d+)|(\d+))?\]", text):
        name, first, width = _subfield(*found.groups()[1:])
        mask = ((1 << width) - 1) << first
        return [SetBits(*part) for part in _parts(name, int(found[1], 0) << first, mask)]
    if text.startswith("move:"):
        return _moves(text)
    if found := re.fullmatch(r"output:(\d+)", text):
        return [Send(int(found[1]))]
    if found := re.fullmatch(r"output:(\w+)\[(?:(\d+)\.\.(\d+)|(\d+))?\]", text):
        return [Send(None, _subfield(*found.groups())[0])]
    if text.startswith("ct("):
        found = re.search(r"\btable=(\d+)", text)
        return [Jump(int(found[1]))] if found else [Nothing(text)]
    if text.startswith(_IGNORED):
        return [Nothing(text)]
    raise ValueError(f"the action {text} is not simulated")


_NXM_NAMES = {"IP_SRC": "nw_src", "IP_DST": "nw_dst", "ETH_SRC": "dl_src", "ETH_DST": "dl_dst"}


def _subfield(
    name: str, first: str | None, last: str | None, single: str | None
) -> tuple[str, int, int]:
    """`NXM_NX_REG1[0..3]` as field, first bit and width."""
    short = re.sub(r"^(NXM_NX|NXM_OF|OXM_OF)_", "", name)
    if found := re.fullmatch(r"PKT_REG(\d)", short):
        short = f"XREG{found[1]}"
    known = _NXM_NAMES.get(short, _ALIASES.get(short.lower(), short.lower()))
    if single is not None:
        return known, int(single), 1
    if first is not None and last is not None:
        return known, int(first), int(last) - int(first) + 1
    wide = {"x": 64, "xx": 128}
    prefix = re.match(r"x*", known)
    return known, 0, wide.get(prefix[0] if prefix else "", 48 if known in _MACS else 32)


def _moves(text: str) -> Iterable[Action]:
    """A move of any width, as moves within 32-bit registers."""
    pattern = r"(\w+)\[(?:(\d+)\.\.(\d+)|(\d+))?\]"
    found = re.fullmatch(f"move:{pattern}->{pattern}", text)
    if not found:
        raise ValueError(f"the action {text} is not simulated")
    source, from_bit, width = _subfield(*found.groups()[:4])
    target, to_bit, _ = _subfield(*found.groups()[4:])
    moved = 0
    while moved < width:
        one, shift, room = _register(source, from_bit + moved)
        two, to_shift, to_room = _register(target, to_bit + moved)
        count = min(room, to_room, width - moved)
        yield Copy(one, shift, two, to_shift, count)
        moved += count


def _register(name: str, bit: int) -> tuple[str, int, int]:
    """The 32-bit register that has this bit of a field, the bit in it, and how many are left."""
    if found := re.fullmatch(r"(x{1,2})reg(\d+)", name):
        count = 2 if found[1] == "x" else 4
        register = count * int(found[2]) + count - 1 - bit // 32
        return f"reg{register}", bit % 32, 32 - bit % 32
    return name, bit, 32


# --- packets ---


def product(fields: Iterable[Iterable[Mapping[str, int]]]) -> tuple[int, Columns]:
    """Every combination of one element of each group, as columns; and how many there are.

    The number of a packet counts like the digits of a number, the last group fastest.
    """
    groups = [list(group) for group in fields]
    count = reduce(lambda total, group: total * len(group), groups, 1)
    columns: Columns = {}
    inner = count
    for group in groups:
        inner //= len(group)
        block = (1 << inner) - 1
        # The same pattern again for each combination of the groups before.
        period = inner * len(group)
        repeat = ((1 << count) - 1) // ((1 << period) - 1) if count else 0
        for place, element in enumerate(group):
            packets = (block << (place * inner)) * repeat
            for name, value in element.items():
                column = columns.setdefault(name, {})
                column[value] = column.get(value, 0) | packets
    everything = (1 << count) - 1
    for column in columns.values():
        named = reduce(int.__or__, column.values())
        if unnamed := everything & ~named:
            column[0] = column.get(0, 0) | unnamed
    return count, columns


def numbers(packets: PacketSet) -> Iterable[int]:
    """The numbers of the packets of a set."""
    while packets:
        low = packets & -packets
        yield low.bit_length() - 1
        packets ^= low
