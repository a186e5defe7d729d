"""What numbers in flows stand for: names of register fields, ofports and Service ports."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final

from flows import names
from flows.pipeline import LAYOUT, Register, Source
from flows.view import ClusterView

EVERY_BRIDGE: Final[Mapping[int, str]] = {
    names.TUNNEL_OFPORT: names.TUNNEL_PORT,
    names.GATEWAY_OFPORT: names.GATEWAY_PORT,
}
"""The ofports that all bridges have."""

_SOURCES: Final = {int(source): source.name for source in Source}


@dataclass(frozen=True, slots=True)
class Labels:
    """Names for what one node's switch holds."""

    ofports: Mapping[int, str] = field(default_factory=lambda: EVERY_BRIDGE)
    groups: Mapping[int, str] = field(default_factory=dict)
    """By group id, the Service port that the group is for."""

    @classmethod
    def of(cls, view: ClusterView, node: str) -> "Labels":
        """Of a node's switch."""
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
        """`16 (default/a1)`; the number alone where there is no name for it."""
        return self._named(str(number), self.ofports.get(number))

    def group(self, number: int) -> str:
        """`268435456 (default/web:http)`."""
        return self._named(str(number), self.groups.get(number))

    @staticmethod
    def _named(number: str, name: str | None) -> str:
        return f"{number} ({name})" if name else number

    def value(self, register: Register, value: int) -> str:
        """The value of a register field, as people call it."""
        match register.name:
            case "Source":
                return _SOURCES.get(value, str(value))
            case "OutputPort":
                return self.ofport(value)
            case "Service":
                return self._named(f"{value:#x}", self.groups.get(value))
            case "EndpointAddress":
                return str(IPv4Address(value))
            case "Zone" | "AttachmentTag":
                return f"{value:#x}"
            case _:
                return str(value)

    def fields(self, name: str, value: int, mask: int | None, table: int) -> Iterator[list[str]]:
        """A register's value in a flow of a table as [name, value], one for each register field.

        Bits that no field has there come last, under the register's own name.
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
    """The register field that takes all of a register in a table; the register where none does."""
    for found in LAYOUT.registers.values():
        first, last = LAYOUT.live(found)
        if found.register == name and first <= table <= last:
            return found.name
    return name
