"""Existing connections that a change of policies would not allow any more.

Controllers do not know which connections there are; the switches do. Their tables come as the text
of `ovs-appctl dpctl/dump-conntrack`, of all nodes or of some.
"""

import re
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from controller.service_fields import PROTOCOL_NAMES, PROTOCOLS
from controller.what_if.ends import Ends
from controller.what_if.ports import Signature
from controller.what_if.report import Connections, LostConnection
from controller.what_if.state import Decisions, Evaluator
from flows.policy import EVERY_PORT, Direction, Walks

MOST_TOLD: Final = 1_000
"""Lost connections with all of their details."""
_ENTRY: Final = re.compile(
    r"^(?P<protocol>[a-z]+),orig=\(src=(?P<source>[0-9.]+),.*"
    r"reply=\(src=(?P<target>[0-9.]+),dst=[0-9.]+,sport=(?P<port>[0-9]+)"
)


class Connection(NamedTuple):
    """A connection: its client, and the server's address and port after translation."""

    protocol: int
    source: IPv4Address
    target: IPv4Address
    port: int


def read_connections(text: str) -> Iterator[Connection]:
    """The connections with ports in a dump of conntrack. Other lines are ignored."""
    for line in text.splitlines():
        if (found := _ENTRY.match(line)) is None:
            continue
        protocol = PROTOCOLS.get(found["protocol"].upper())
        if protocol is not None:
            try:
                ends = IPv4Address(found["source"]), IPv4Address(found["target"])
            except ValueError:
                continue
            yield Connection(protocol, *ends, int(found["port"]))


def lost_connections(
    given: Iterable[Connection], before: Evaluator, after: Evaluator
) -> Connections:
    """Those of these connections that were allowed, and would not be any more.

    Every node of a connection has an entry for it; it counts once.
    """
    every = sorted(set(given))
    old, new = _Judge(before), _Judge(after)
    lost: list[LostConnection] = []
    more = 0
    for each in every:
        if not old.allows(each) or new.allows(each):
            continue
        if len(lost) == MOST_TOLD:
            more += 1
            continue
        source, target = _name(before.ends, each.source), _name(before.ends, each.target)
        lost.append(LostConnection(PROTOCOL_NAMES[each.protocol], source, target, each.port))
    return Connections(len(every), tuple(lost), more)


def _name(ends: Ends, address: IPv4Address) -> str:
    end = ends.ends[ends.find(address)]
    if end.range is not None:
        return str(address)
    return f"{end.workload} ({end.name}, {address})"


class _Judge:
    """Says whether policies allow a connection. Connections that are alike are judged once."""

    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self._known: dict[tuple[Walks | None, Direction, Signature], Decisions] = {}

    def allows(self, connection: Connection) -> bool:
        """Whether the policies of both ends accept it."""
        ends = self._evaluator.ends
        source, target = ends.find(connection.source), ends.find(connection.target)
        if source == target or ends.node_clients.get(source, 0) >> target & 1:
            return True
        return self._accepts(Direction.FROM_POD, source, target, connection) and self._accepts(
            Direction.TO_POD, target, source, connection
        )

    def _accepts(self, direction: Direction, own: int, peer: int, given: Connection) -> bool:
        state = self._evaluator.state
        place = 0 if direction is Direction.FROM_POD else 1
        end = self._evaluator.ends.ends[own]
        walks = state.isolations.get(end.name, (None, None))[place]
        signature = frozenset(
            step.ports
            for walk in state.known_walks(walks)
            for step in walk.steps
            if step.ports != EVERY_PORT and self._holds(step.ports, given)
        )
        key = walks, direction, signature
        if key not in self._known:
            self._known[key] = self._evaluator.decisions(*key)
        return next(decider.accepts for decider, bits in self._known[key] if bits >> peer & 1)

    def _holds(self, number: int, given: Connection) -> bool:
        return any(
            each.protocol == given.protocol
            and (each.first is None or each.last is None or each.first <= given.port <= each.last)
            for each in self._evaluator.state.ranges(number) or ()
        )
