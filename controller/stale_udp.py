"""Which UDP connections are stale after a change of Services, so that switches must flush them.

A UDP client does not notice that an endpoint was removed, nor that a first one was added. Only
connections of the changed Service are flushed: those of another Service with that endpoint stay.

What is stale now need not be when it is flushed: the endpoint may have come back. An answer that is
on its way when its connection is flushed is lost. So `StaleUdp.narrowed` says what is still stale.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from flows.family import IPAddress
from flows.features.protocols import UDP
from flows.view import Service, ServicePort
from openflow.conntrack import CtTuple, Forget

MAX_PAIRS: Final = 64
"""Pairs of a frontend and an endpoint that one change of a Service port flushes one by one. If
there are more, all connections to its frontends are flushed: each flush reads all of conntrack."""

_Place = tuple[int, int]
"""Address and port of an endpoint."""
_At = tuple[IPAddress | None, int]
"""Address and port of a frontend; None: each node's own."""


@dataclass(frozen=True, slots=True)
class StaleEndpoint:
    """No Service has this endpoint any more: all connections to it are flushed."""

    address: IPAddress
    port: int
    frontends: tuple[_At, ...] = ()
    """Those of the Service port that had it last."""

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
    endpoints: frozenset[_Place] = frozenset()
    """Those that it had, if it was served; empty: there are too many pairs to narrow it."""

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
        self._served: dict[_At, tuple[ServicePort, frozenset[_Place]]] = {}
        """The UDP port of each frontend, and its endpoints."""
        self.changes = 0
        """How often something changed that `narrowed` depends on."""

    def follow(self, old: Service | None, new: Service | None) -> None:
        """A Service of the view has changed; None: there is none."""
        before = {p.name: p for p in (old.ports if old else ()) if p.protocol == UDP}
        after = {p.name: p for p in (new.ports if new else ()) if p.protocol == UDP}
        if not before and not after:
            return
        self.changes += 1
        lost = [
            (port, kept, left)
            for port in before.values()
            if (left := self._count(port, kept := after.get(port.name))) or kept
        ]
        for name in after.keys() - before.keys():
            self._count(None, after[name])
        self._serve(before.values(), after.values())
        for port, kept, left in lost:
            self._note_lost(port, kept, left)
        for port in after.values():
            if not port.endpoints:
                continue
            known = before.get(port.name)
            was = set(_frontends(known) if known and known.endpoints else ())
            won = (StaleFrontend(*at, False) for at in _frontends(port) if at not in was)
            self._found.update(dict.fromkeys(won))

    def take(self) -> list[Stale]:
        """What became stale since the last call."""
        taken, self._found = self._found, {}
        return list(taken)

    def narrowed(self, stale: Stale) -> tuple[Stale, ...]:
        """What of it is still stale. What lies beyond `MAX_PAIRS` is not narrowed.

        An endpoint or a frontend that came back leaves the pairs that did not come back with it.
        """
        match stale:
            case StaleEndpoint(address, port, frontends) if (int(address), port) in self._uses:
                pairs = [StalePair(*at, address, port) for at in frontends]
            case StaleFrontend(address, port, True, endpoints) if endpoints and self._endpoints_of(
                (address, port)
            ):
                pairs = [
                    StalePair(address, port, IPv4Address(at), number) for at, number in endpoints
                ]
            case StalePair():
                pairs = [stale]
            case _:
                return (stale,)
        left = tuple(pair for pair in pairs if not self._is_live(pair))
        return left if len(left) <= MAX_PAIRS else (stale,)

    def _is_live(self, pair: StalePair) -> bool:
        place = int(pair.endpoint), pair.endpoint_port
        return place in self._endpoints_of((pair.address, pair.port))

    def _endpoints_of(self, at: _At) -> frozenset[_Place]:
        return self._served[at][1] if at in self._served else frozenset()

    def _serve(self, before: Iterable[ServicePort], after: Iterable[ServicePort]) -> None:
        """Update `_served`."""
        for port in before:
            for at in _frontends(port):
                # Another Service may have taken it over already.
                if at in self._served and self._served[at][0] is port:
                    del self._served[at]
        for port in after:
            self._served.update(dict.fromkeys(_frontends(port), (port, _places(port))))

    def _count(self, old: ServicePort | None, new: ServicePort | None) -> frozenset[_Place]:
        """Update `_uses`. Returns the endpoints that the port does not have any more."""
        if old and new and old.endpoints is new.endpoints:
            return frozenset()
        before, after = _places(old), _places(new)
        left = before - after
        for place in after - before:
            self._uses[place] += 1
        for place in left:
            self._uses[place] -= 1
            if not self._uses[place]:
                del self._uses[place]
        return left

    def _note_lost(
        self, port: ServicePort, kept: ServicePort | None, left: frozenset[_Place]
    ) -> None:
        served = kept is not None and bool(kept.endpoints)
        frontends = tuple(dict.fromkeys(_frontends(port)))
        had = _places(port)
        if kept is not None and served:
            still = set(_frontends(kept))
            gone = [StaleFrontend(*at, True, had) for at in frontends if at not in still]
            self._found.update(dict.fromkeys(gone))
        unused = sorted(place for place in left if place not in self._uses)
        self._found.update(
            dict.fromkeys(
                StaleEndpoint(IPv4Address(at), number, frontends) for at, number in unused
            )
        )
        others = sorted(left.difference(unused))
        if not others:
            return
        if not served or len(others) * len(frontends) > MAX_PAIRS:
            narrow = frozenset() if served else had
            self._found.update(dict.fromkeys(StaleFrontend(*at, True, narrow) for at in frontends))
            return
        self._found.update(
            dict.fromkeys(
                StalePair(*frontend, IPv4Address(at), number)
                for frontend in frontends
                for at, number in others
            )
        )


def _places(port: ServicePort | None) -> frozenset[_Place]:
    return frozenset((int(each.address), each.port) for each in (port.endpoints if port else ()))


def _frontends(port: ServicePort) -> list[_At]:
    places = [(each.address, each.port) for each in port.frontends]
    # The node's own stack translates its address before the switch sees the packet.
    places += [(own.address, each.port) for each in port.frontends for own in each.host_dnat]
    return places
