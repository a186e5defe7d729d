"""Names for the numbers in flows: register fields, ofports and Service ports."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from flows import names
from flows.pipeline import LAYOUT, RegisterField, Source
from flows.view import ClusterView

EVERY_BRIDGE: Final[Mapping[int, str]] = {
    names.TUNNEL_OFPORT: names.TUNNEL_PORT,
    names.GATEWAY_OFPORT: names.GATEWAY_PORT,
}
"""The ofports that all bridges have."""

_SOURCES: Final = {int(source): source.name for source in Source}


@dataclass(frozen=True, slots=True)
class Labels:
    """The names for one node's switch."""

    ofports: Mapping[int, str] = field(default_factory=lambda: EVERY_BRIDGE)
    groups: Mapping[int, str] = field(default_factory=dict)
    """By group id, the Service port that the group is for."""

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
        match register.name:
            case "Source":
                return _SOURCES.get(value, str(value))
            case "OutputPort":
                return self.ofport(value)
            case "Service":
                return self._named(f"{value:#x}", self.groups.get(value))
            case "EndpointAddress":
                return str(IPv4Address(value))
            case "TopologyZone" | "AttachmentTag":
                return f"{value:#x}"
            case _:
                return str(value)

    def fields(self, name: str, value: int, mask: int | None, table: int) -> Iterator[list[str]]:
        """The value of a register in a flow of a table: [name, value] for each register field.

        Bits outside all live fields come last, with the name of the register.
        """
        left = 0xFFFF_FFFF if mask is None else mask
        for found in LAYOUT.registers.values():
            first, last = LAYOUT.live(found)
            if found.register != name or found.mask & ~left or not first <= table <= last:
                continue
            left &= ~found.mask
            yield [found.name, self.value(found, (value & found.mask) >> found.bits[0])]
        if left:
            yield [name, f"{value & left:#x}/{left:#x}"]


def register_field(name: str, table: int) -> str:
    """The register field that is live in a table; the name of the register if there is none."""
    for found in LAYOUT.registers.values():
        first, last = LAYOUT.live(found)
        if found.register == name and first <= table <= last:
            return found.name
    return name
