"""Names for the numbers in flows: register fields, ofports and Service ports."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from flows import names
from flows.fields import WIDTHS
from flows.pipeline import CT_LABEL, LAYOUT, Pass, RegisterField, Source, Verdict
from flows.policy import PolicyWalk
from flows.view import ClusterView

EVERY_BRIDGE: Final[Mapping[int, str]] = {
    names.TUNNEL_OFPORT: names.TUNNEL_PORT,
    names.GATEWAY_OFPORT: names.GATEWAY_PORT,
}
"""The ofports that all bridges have."""

_VALUES: Final = {
    name: {int(value): value.name for value in values}
    for name, values in (
        ("Source", Source), ("Verdict", Verdict), ("StepAction", Verdict), ("Pass", Pass),
    )
}  # fmt: skip
_HEXADECIMAL: Final = frozenset(
    (
        "TopologyZone", "AttachmentTag", "PeerSet", "PortSet", "PolicyRule", "DecidedRule",
        "RuleFromPod",
    )
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Labels:
    """The names for one node's switch."""

    ofports: Mapping[int, str] = field(default_factory=lambda: EVERY_BRIDGE)
    groups: Mapping[int, str] = field(default_factory=dict)
    """By group id, the Service port that the group is for."""
    walks: Mapping[str, PolicyWalk] = field(default_factory=dict)
    """By id, as 16 hexadecimal digits."""
    egress: Mapping[int, str] = field(default_factory=dict)
    """By number, the egress address."""

    @classmethod
    def of(cls, view: ClusterView, node: str) -> "Labels":
        """The names for a node's switch."""
        attachments = view.attachments.get(node, {}).values()
        return cls(
            {**EVERY_BRIDGE, **{each.ofport: each.pod or each.port for each in attachments}},
            {
                number: f"{key}:{port.name}" if port.name else key
                for key, service in view.services.items()
                for port in service.ports
                for number in port.groups.values()
            },
            view.walks,
            {each.number: str(each.address) for each in view.egress_addresses.values()},
        )

    def ofport(self, number: int) -> str:
        """`16 (default/a1)`, or only the number if it has no name."""
        return self._named(str(number), self.ofports.get(number))

    def group(self, number: int) -> str:
        """`268435456 (default/web:http)`."""
        return self._named(str(number), self.groups.get(number))

    @staticmethod
    def _named(number: str, name: str | None) -> str:
        return f"{number} ({name})" if name else number

    def value(self, register: RegisterField, value: int) -> str:
        """The value of a register field, for people."""
        if register.name in _VALUES:
            return _VALUES[register.name].get(value, str(value))
        match register.name:
            case "OutputPort":
                return self.ofport(value)
            case "EndpointAddress":
                return str(IPv4Address(value))
            case "Service" | "EgressAddress":
                named = self.groups if register.name == "Service" else self.egress
                return self._named(f"{value:#x}", named.get(value))
            case "Walk":
                walk = self.walks.get(f"{value:016x}")
                title = f"{walk.policy} {walk.direction.value}" if walk else None
                return self._named(f"{value:#x}", title)
        return f"{value:#x}" if register.name in _HEXADECIMAL else str(value)

    def fields(self, name: str, value: int, mask: int | None, table: int) -> Iterator[list[str]]:
        """The value of a register in a flow of a table: [name, value] for each register field.

        Bits outside all live fields come last, with the name of the register.
        """
        left = (1 << WIDTHS[name]) - 1 if mask is None else mask
        for found in LAYOUT.registers.values():
            if found.register != name or found.mask & ~left or not LAYOUT.is_live(found, table):
                continue
            left &= ~found.mask
            yield [found.name, self.value(found, (value & found.mask) >> found.bits[0])]
        if left:
            yield [name, f"{value & left:#x}/{left:#x}"]

    def wide(self, name: str, given: Mapping[str, int], table: int) -> list[list[str]] | None:
        """A field of a pair of registers in a match that has the values `given`.

        The high register of the pair shows the field, and the low one nothing. None: the register
        belongs to no such field here.
        """
        for found in LAYOUT.registers.values():
            words = [register for register, _ in found.words]
            if len(words) == 2 and name in words and LAYOUT.is_live(found, table):
                if name != words[0]:
                    return []
                value = given[words[0]] << 32 | given.get(words[1], 0)
                return [[found.name, self.value(found, value)]]
        return None


def register_field(name: str, table: int) -> str:
    """The register field that is live in a table; the name of the register if there is none."""
    for found in LAYOUT.registers.values():
        if found.register == name and LAYOUT.is_live(found, table):
            return found.name
    return name


def bits_name(field: str, first: int, bits: int, table: int) -> str:
    """The register field, or the part of ct_label, that has these bits; else the bits."""
    last = first + bits - 1
    for found in LAYOUT.registers.values():
        if (found.register, found.bits) == (field, (first, last)) and LAYOUT.is_live(found, table):
            return found.name
    for part in CT_LABEL if field == "ct_label" else ():
        if part.bits == (first, last):
            return f"ct_label.{part.name}"
    return f"{field}[{first}..{last}]"
