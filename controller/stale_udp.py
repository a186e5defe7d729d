"""Which UDP connections go astray when Services change, and must be forgotten.

By itself a UDP client learns neither that nobody is there any more, nor that somebody is now.
"""

from dataclasses import dataclass
from ipaddress import IPv4Address

from flows.features.protocols import UDP
from flows.view import Service, ServicePort


@dataclass(frozen=True, slots=True, order=True)
class StaleEndpoint:
    """Where UDP connections must not go any more."""

    address: IPv4Address
    port: int


@dataclass(frozen=True, slots=True)
class StaleFrontend:
    """What is served only now: UDP connections to it that began before go astray."""

    address: IPv4Address | None
    """None: each node's own."""
    port: int


class StaleUdp:
    """Changes of Services in, what they made stale out; once each."""

    def __init__(self) -> None:
        self._found: dict[StaleEndpoint | StaleFrontend, None] = {}

    def follow(self, old: Service | None, new: Service | None) -> None:
        """A Service of the view has changed; None: there is none."""
        before = {p.name: p for p in (old.ports if old else ()) if p.protocol == UDP}
        after = {p.name: p for p in (new.ports if new else ()) if p.protocol == UDP}
        for port in before.values():
            left = _places(port) - (_places(after[port.name]) if port.name in after else set())
            self._found.update(dict.fromkeys(sorted(left)))
        for port in after.values():
            if not port.endpoints:
                continue
            known = before.get(port.name)
            was = _frontends(known) if known and known.endpoints else ()
            self._found.update((at, None) for at in _frontends(port) if at not in was)

    def take(self) -> list[StaleEndpoint | StaleFrontend]:
        """What became stale since the last call."""
        taken, self._found = self._found, {}
        return list(taken)


def _places(port: ServicePort) -> set[StaleEndpoint]:
    return {StaleEndpoint(endpoint.address, endpoint.port) for endpoint in port.endpoints}


def _frontends(port: ServicePort) -> list[StaleFrontend]:
    found = [StaleFrontend(frontend.address, frontend.port) for frontend in port.frontends]
    return found + [StaleFrontend(each.stand_in, each.port) for each in port.frontends if each.node]
