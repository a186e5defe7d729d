"""Which addresses this node has at the moment, by its own clock. Pure: the clock is an argument.

The node's part of the rules in `controller.address_owners.grants`. Times are seconds of
CLOCK_BOOTTIME, which goes on while the machine sleeps.
"""

from collections.abc import Collection, Hashable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from wire.address_grants import LIFETIME, Grant, Granted


@dataclass(slots=True)
class Hold:
    """An address that the node has."""

    number: int
    """Of its grant."""
    until: float
    """At this time, and later, the node has the address no more."""


class Said(NamedTuple):
    """What a controller that does not lead has answered."""

    sent: float
    """When it was asked."""
    controller: str
    """Its identity; empty: no process was there."""
    leader: str = ""


class Holds:
    """What the node has, as the controllers' answers say."""

    def __init__(self, controllers: Collection[Hashable], lifetime: float = LIFETIME) -> None:
        """`controllers`: every controller that may ever lead."""
        self.held: Final[dict[IPv4Address, Hold]] = {}
        """Also what has ended; see `has`."""
        self._lifetime = lifetime
        self._said: Final[dict[Hashable, Said | None]] = dict.fromkeys(controllers)

    def has(self, address: IPv4Address, now: float) -> bool:
        """Whether the node has the address."""
        hold = self.held.get(address)
        return hold is not None and now < hold.until

    def current(self, now: float) -> list[Grant]:
        """What the node has."""
        return [(address, hold.number) for address, hold in self.held.items() if now < hold.until]

    def forget_ended(self, now: float) -> list[IPv4Address]:
        """Remove what has ended; return it."""
        ended = [address for address, hold in self.held.items() if hold.until <= now]
        for address in ended:
            del self.held[address]
        return ended

    def give_up(self, address: IPv4Address) -> Grant | None:
        """Have the address no more; what to tell the controllers then. None: it was not held."""
        hold = self.held.pop(address, None)
        return (address, hold.number) if hold is not None else None

    def answered(
        self,
        controller: Hashable,
        answer: Granted,
        wanted: Collection[IPv4Address],
        *,
        sent: float,
        now: float,
    ) -> list[IPv4Address]:
        """Take a controller's answer to the request sent at `sent`; what the node has newly."""
        if not answer.leads:
            self._said[controller] = Said(sent, answer.controller, answer.leader)
            self._keep(now)
            return []
        self._said[controller] = None
        return list(self._take(answer.granted, wanted, sent + self._lifetime, now))

    def refused(self, controller: Hashable, *, sent: float, now: float) -> None:
        """At this controller's address nobody accepted a connection at `sent`, or later.

        So nobody led there, and whoever starts there later has to wait like any new leader. A
        firewall may lie about it, so this counts only beside the word of another controller.
        """
        self._said[controller] = Said(sent, "")
        self._keep(now)

    def _take(
        self, granted: Iterable[Grant], wanted: Collection[IPv4Address], until: float, now: float
    ) -> Iterable[IPv4Address]:
        for address, number in granted:
            hold = self.held.get(address)
            if hold is not None and now < hold.until:
                if hold.number == number:
                    hold.until = max(hold.until, until)
            elif address in wanted and now < until and (hold is None or hold.number != number):
                self.held[address] = Hold(number, until)
                yield address

    def _keep(self, now: float) -> None:
        """Keep what the node has if all controllers have just said that they do not lead."""
        said = [each for each in self._said.values() if each is not None]
        if len(said) < len(self._said):
            return
        identities = {each.controller for each in said} - {""}
        if not identities or any(each.leader and each.leader not in identities for each in said):
            return
        until = min(each.sent for each in said) + self._lifetime
        for hold in self.held.values():
            if now < hold.until:
                hold.until = max(hold.until, until)
