"""Which UDP connections are stale after a change of Services, so that switches must flush them.

A UDP client does not notice that an endpoint was removed, nor that a first one was added. Only
connections of the changed Service are flushed: those of another Service with that endpoint stay.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from flows.family import IPAddress
from flows.features.protocols import UDP
from flows.view import Service, ServicePort
from openflow.batch import Forget
from openflow.codec import CtTuple

MAX_PAIRS: Final = 64
"""Pairs of a frontend and an endpoint that one change of a Service port flushes one by one. If
there are more, all connections to its frontends are flushed: each flush reads all of conntrack."""

_Place = tuple[int, int]
"""Address and port of an endpoint."""


@dataclass(frozen=True, slots=True, order=True)
class StaleEndpoint:
    """No Service has this endpoint any more: all connections to it are flushed."""

    address: IPAddress
    port: int

    def forget(self, zone: int) -> Forget:
        """The message for a switch."""
        return Forget.endpoint(zone, UDP, self.address, self.port)


@dataclass(frozen=True, slots=True)
class StaleFrontend:
    """A frontend whose older UDP connections are stale."""

    address: IPAddress | None
    """None: each node's own."""
    port: int
    served: bool
    """True: it had endpoints, and all connections to it are stale. False: its first endpoints were
    added, and only untranslated connections are stale; others may be answered already."""

    def forget(self, zone: int) -> Forget:
        """The message for a switch."""
        like = Forget.frontend if self.served else Forget.untranslated
        return like(zone, UDP, self.address, self.port)


@dataclass(frozen=True, slots=True)
class StalePair:
    """Connections from this frontend to this endpoint. Both exist, but not together any more."""

    address: IPAddress | None
    port: int
    endpoint: IPAddress
    endpoint_port: int

    def forget(self, zone: int) -> Forget:
        """The message for a switch."""
        return Forget(
            zone,
            UDP,
            CtTuple(destination=self.address, destination_port=self.port),
            CtTuple(source=self.endpoint, source_port=self.endpoint_port),
        )


Stale = StaleEndpoint | StaleFrontend | StalePair


class StaleUdp:
    """Collects what changes of Services make stale."""

    def __init__(self) -> None:
        self._found: dict[Stale, None] = {}
        self._uses: Counter[_Place] = Counter()
        """How many UDP ports of Services have this endpoint."""

    def follow(self, old: Service | None, new: Service | None) -> None:
        """A Service of the view has changed; None: there is none."""
        before = {p.name: p for p in (old.ports if old else ()) if p.protocol == UDP}
        after = {p.name: p for p in (new.ports if new else ()) if p.protocol == UDP}
        lost = [
            (port, kept, left)
            for port in before.values()
            if (left := self._count(port, kept := after.get(port.name))) or kept
        ]
        for name in after.keys() - before.keys():
            self._count(None, after[name])
        for port, kept, left in lost:
            self._note_lost(port, kept, left)
        for port in after.values():
            if not port.endpoints:
                continue
            known = before.get(port.name)
            was = _frontends(known, served=False) if known and known.endpoints else ()
            won = (at for at in _frontends(port, served=False) if at not in was)
            self._found.update(dict.fromkeys(won))

    def take(self) -> list[Stale]:
        """What became stale since the last call."""
        taken, self._found = self._found, {}
        return list(taken)

    def _count(self, old: ServicePort | None, new: ServicePort | None) -> set[_Place]:
        """Update `_uses`. Returns the endpoints that the port does not have any more."""
        if old and new and old.endpoints is new.endpoints:
            return set()
        before, after = _places(old), _places(new)
        left = before - after
        for place in after - before:
            self._uses[place] += 1
        for place in left:
            self._uses[place] -= 1
            if not self._uses[place]:
                del self._uses[place]
        return left

    def _note_lost(self, port: ServicePort, kept: ServicePort | None, left: set[_Place]) -> None:
        served = kept is not None and bool(kept.endpoints)
        frontends = dict.fromkeys(_frontends(port, served=True))
        if kept is not None and served:
            still = set(_frontends(kept, served=True))
            gone = [at for at in frontends if at not in still]
            self._found.update(dict.fromkeys(gone))
        unused = sorted(place for place in left if place not in self._uses)
        self._found.update(
            dict.fromkeys(StaleEndpoint(IPv4Address(at), number) for at, number in unused)
        )
        others = sorted(left.difference(unused))
        if not others:
            return
        if not served or len(others) * len(frontends) > MAX_PAIRS:
            self._found.update(dict.fromkeys(frontends))
            return
        self._found.update(
            dict.fromkeys(
                StalePair(frontend.address, frontend.port, IPv4Address(at), number)
                for frontend in frontends
                for at, number in others
            )
        )


def _places(port: ServicePort | None) -> set[_Place]:
    return {(int(each.address), each.port) for each in (port.endpoints if port else ())}


def _frontends(port: ServicePort, *, served: bool) -> Iterable[StaleFrontend]:
    places = [(each.address, each.port) for each in port.frontends]
    # The node's own stack translates its address before the switch sees the packet.
    places += [(own.address, each.port) for each in port.frontends for own in each.host_dnat]
    return [StaleFrontend(*place, served) for place in places]
