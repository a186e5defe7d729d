"""Which UDP connections go astray when Services change, and must be forgotten.

By itself a UDP client learns neither that nobody is there any more, nor that somebody is now.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address

from flows.features.protocols import UDP
from flows.view import Service, ServicePort
from openflow.batch import Forget


@dataclass(frozen=True, slots=True, order=True)
class StaleEndpoint:
    """Where UDP connections must not go any more."""

    address: IPv4Address
    port: int

    def forget(self, zone: int) -> Forget:
        return Forget.endpoint(zone, UDP, self.address, self.port)


@dataclass(frozen=True, slots=True)
class StaleFrontend:
    """Where UDP connections that began before go astray."""

    address: IPv4Address | None
    """None: each node's own."""
    port: int
    served: bool
    """It was, and all connections to it are stale. If not, it is only now, and those are that went
    there untranslated: from the others, answers may be on their way already."""

    def forget(self, zone: int) -> Forget:
        like = Forget.frontend if self.served else Forget.untranslated
        return like(zone, UDP, self.address, self.port)


class StaleUdp:
    """Changes of Services in, what they made stale out; once each."""

    def __init__(self) -> None:
        self._found: dict[StaleEndpoint | StaleFrontend, None] = {}

    def follow(self, old: Service | None, new: Service | None) -> None:
        """A Service of the view has changed; None: there is none."""
        before = {p.name: p for p in (old.ports if old else ()) if p.protocol == UDP}
        after = {p.name: p for p in (new.ports if new else ()) if p.protocol == UDP}
        for port in before.values():
            kept = after.get(port.name)
            left = _places(port) - (_places(kept) if kept else set())
            self._found.update(dict.fromkeys(sorted(left)))
            if kept and kept.endpoints:
                still = _frontends(kept, served=True)
                lost = (at for at in _frontends(port, served=True) if at not in still)
                self._found.update(dict.fromkeys(lost))
        for port in after.values():
            if not port.endpoints:
                continue
            known = before.get(port.name)
            was = _frontends(known, served=False) if known and known.endpoints else ()
            won = (at for at in _frontends(port, served=False) if at not in was)
            self._found.update(dict.fromkeys(won))

    def take(self) -> list[StaleEndpoint | StaleFrontend]:
        """What became stale since the last call."""
        taken, self._found = self._found, {}
        return list(taken)


def _places(port: ServicePort) -> set[StaleEndpoint]:
    return {StaleEndpoint(endpoint.address, endpoint.port) for endpoint in port.endpoints}


def _frontends(port: ServicePort, *, served: bool) -> list[StaleFrontend]:
    places = [(each.address, each.port) for each in port.frontends]
    places += [(each.stand_in, each.port) for each in port.frontends if each.node]
    return [StaleFrontend(*place, served) for place in places]
