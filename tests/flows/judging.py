"""The tables of policy in a few lines of Python: what they make of one packet.

It knows the actions of these tables and no others. `test_policy_trace` compares it with a switch.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from flows.flow import Flow, Goto, MoveBits, Resubmit, SetField
from flows.pipeline import LAYOUT

Packet = dict[str, int]
"""The fields of a packet, by the names of a match; what is absent is 0."""


class Tables:
    """Flows by table, the highest priority first."""

    def __init__(self, flows: Iterable[Flow]) -> None:
        self._tables: dict[int, list[Flow]] = {}
        for flow in sorted(flows, key=lambda flow: -flow.priority):
            self._tables.setdefault(flow.table, []).append(flow)

    def judged(self, packet: Packet, entry: str) -> "Judgement":
        """The course of a packet from this table up to the first table without flows of policy."""
        found = Judgement(dict(packet))
        table: int | None = LAYOUT.tables[entry].number
        while table in self._tables:
            table = self._enter(table, found)
        found.onward = LAYOUT.by_number[table].name if table is not None else ""
        return found

    def _enter(self, table: int, found: "Judgement") -> int | None:
        """Do what the flow that matches does; the table it goes to, if any."""
        found.path.append(LAYOUT.by_number[table].name)
        flow = next((f for f in self._tables.get(table, ()) if matches(f, found.packet)), None)
        if flow is None:
            miss = LAYOUT.by_number[table].miss
            return None if miss == "drop" else LAYOUT.tables[miss].number
        found.flows.append(flow)
        for action in flow.actions:
            match action:
                case Goto(next_table):
                    return next_table
                case Resubmit(to):
                    found.resubmits += 1
                    self._enter(to, found)
                case SetField(name, value, mask):
                    found.set(name, value, mask)
                case MoveBits(source, first, name, at, bits):
                    mask = (1 << bits) - 1
                    value = found.packet.get(source, 0) >> first & mask
                    found.set(name, value << at, mask << at)
                case _:
                    raise NotImplementedError(action)
        return None


@dataclass
class Judgement:
    """What became of a packet."""

    packet: Packet
    path: list[str] = field(default_factory=list)
    flows: list[Flow] = field(default_factory=list)
    resubmits: int = 0
    onward: str = ""
    """The table behind the judgement; empty: dropped."""

    def set(self, name: str, value: int, mask: int | None) -> None:
        if name.startswith("xreg"):
            number = 2 * int(name.removeprefix("xreg"))
            self.set(f"reg{number}", value >> 32, None)
            self.set(f"reg{number + 1}", value & 0xFFFF_FFFF, None)
        elif mask is None:
            self.packet[name] = value
        else:
            self.packet[name] = self.packet.get(name, 0) & ~mask | value

    def register(self, name: str) -> int:
        """A register field."""
        found = LAYOUT.registers[name]
        return (self.packet.get(found.register, 0) & found.mask) >> found.bits[0]


def matches(flow: Flow, packet: Packet) -> bool:
    """Whether a flow matches a packet."""
    return all(
        packet.get(name, 0) == value if mask is None else packet.get(name, 0) & mask == value
        for name, value, mask in flow.match
    )
