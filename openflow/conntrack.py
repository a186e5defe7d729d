"""Connections to be forgotten: which conntrack entries a switch deletes, as values."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final, Self

from flows.family import IPAddress


@dataclass(frozen=True, slots=True)
class CtTuple:
    """What the packets of one direction of a connection are like; None: whatever it is."""

    source: IPAddress | None = None
    destination: IPAddress | None = None
    source_port: int | None = None
    destination_port: int | None = None

    def __str__(self) -> str:
        """For people."""
        ends = (
            ("from", self.source, self.source_port),
            ("to", self.destination, self.destination_port),
        )
        return " ".join(
            f"{word} {'any address' if address is None else address}"
            + ("" if port is None else f":{port}")
            for word, address, port in ends
            if (address, port) != (None, None)
        )


ANY: Final = CtTuple()


@dataclass(frozen=True, slots=True)
class Forget:
    """Deletes the conntrack entries of a zone that match these tuples.

    `reply` matches packets of the reply direction as they arrive: their source is the real peer,
    after the translation of a Service. `protocol` 0 matches every protocol.
    """

    zone: int
    protocol: int = 0
    original: CtTuple = ANY
    reply: CtTuple = ANY

    @classmethod
    def endpoint(cls, zone: int, protocol: int, address: IPAddress, port: int) -> Self:
        """Those that this address and port answers, translated or not."""
        return cls(zone, protocol, reply=CtTuple(source=address, source_port=port))

    @classmethod
    def frontend(cls, zone: int, protocol: int, address: IPAddress | None, port: int) -> Self:
        """Those opened to this address (None: to any) and port, whoever answers."""
        return cls(zone, protocol, original=CtTuple(destination=address, destination_port=port))

    @classmethod
    def untranslated(cls, zone: int, protocol: int, address: IPAddress | None, port: int) -> Self:
        """Those of `frontend` that it answers itself (address None: at that port)."""
        return replace(
            cls.frontend(zone, protocol, address, port),
            reply=CtTuple(source=address, source_port=port),
        )

    def __str__(self) -> str:
        """For people."""
        tuples = (("opened", self.original), ("answered", self.reply))
        like = " and ".join(f"{word} {given}" for word, given in tuples if given != ANY)
        of = f" of protocol {self.protocol}" if self.protocol else ""
        return (
            f"the flush of connections{of} {like or 'of all kinds'}, in zone {self.zone}"
            " (Open vSwitch does this from 3.1 on)"
        )


def of_addresses(zone: int, addresses: Iterable[IPAddress]) -> Iterable[Forget]:
    """Every connection of these addresses, whoever has opened it."""
    for address in addresses:
        yield Forget(zone, original=CtTuple(source=address))
        yield Forget(zone, reply=CtTuple(source=address))
