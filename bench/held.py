"""Which flows simulated switches hold, by cookie, in the memory of one.

Most bytes that a controller sends to thousands of switches are the same for all. So a bundle that
came before is recognised by its bytes and not read again, and switches that were sent the same
bundles in the same order share one set of flows.
"""

import struct
from collections import OrderedDict
from typing import Final, Self
from weakref import WeakValueDictionary

FLOW_MOD: Final = 14
# enum ofp_flow_mod_command
ADD, DELETE, DELETE_STRICT = 0, 3, 4
ALL: Final = 0xFF
"""OFPTT_ALL."""
SEALS: Final = 250
"""The table whose flows a switch can describe: the controller reads it instead of all flows."""
_IN_BUNDLE: Final = struct.Struct("!8xQ8xBB")
"""Struct ofp_flow_mod in a bundle: cookie, table and command."""
_FLOW: Final = struct.Struct("!HxxBxHHHHHQ")
_PREFIX: Final = 1024
"""Bytes of a bundle that tell it from most others."""
_MOST_SEEN: Final = 100_000
_MOST_BYTES: Final = 256 << 20

_Place = tuple[int, bytes]
"""Priority and match of a flow of the table `SEALS`."""

_known: dict[int, int] = {}
"""One object for each cookie, however many switches hold it."""


class Bundle:
    """What one bundle changes."""

    def __init__(self) -> None:
        self.adds: list[int] = []
        self.deletes: list[int] = []
        self.seals: dict[_Place, tuple[int, bytes] | None] = {}
        """Of the table `SEALS`: cookie and description; None: deleted."""
        self.is_shared = False
        """Whether several switches were sent these bytes."""
        self.answers: list[bytes] = []
        """To its opening and its closing."""
        self.data = b""
        """All of it, but for the commit. Empty until it is closed."""
        self._pieces: list[bytes] = []

    def add(self, data: bytes, at: int, length: int) -> None:
        """A message in it."""
        self._pieces.append(data[at : at + length])
        if data[at + 17] != FLOW_MOD:
            return
        cookie, table, command = _IN_BUNDLE.unpack_from(data, at + 16)
        cookie = _known.setdefault(cookie, cookie)
        if command == ADD:
            self.adds.append(cookie)
        elif command == DELETE:
            self.deletes.append(cookie)
        if table == SEALS and command in (ADD, DELETE_STRICT):
            self._seal(cookie, command, data[at + 16 : at + length])

    def _seal(self, cookie: int, command: int, message: bytes) -> None:
        (priority,) = struct.unpack_from("!H", message, 30)
        (length,) = struct.unpack_from("!H", message, 50)
        end = 48 + -(-length // 8) * 8
        match, instructions = message[48:end], message[end:]
        described = match + struct.pack("!HH4x", 0, 4) + instructions
        head = _FLOW.pack(
            _FLOW.size + len(described), SEALS, priority, 0, 0, 0, 0, cookie
        )  # fmt: skip
        self.seals[priority, match] = None if command != ADD else (cookie, head + described)

    def control(self, message: bytes, answer: bytes) -> None:
        """It is opened, or closed."""
        self._pieces.append(message)
        self.answers.append(answer)

    def close(self) -> None:
        """All of it is here."""
        self.data = b"".join(self._pieces)
        self._pieces.clear()


class Bundles:
    """Those that came before."""

    def __init__(self) -> None:
        self._seen: set[int] = set()
        """Hashes of the beginnings of those that came once."""
        self._known: OrderedDict[bytes, Bundle] = OrderedDict()
        """By their beginning, those that came twice; the one that came last is the last."""
        self._size = 0

    def find(self, data: bytes, at: int) -> Bundle | None:
        """The one that begins with the same bytes."""
        beginning = data[at : at + _PREFIX]
        if (found := self._known.get(beginning)) is not None:
            self._known.move_to_end(beginning)
        return found

    def remember(self, bundle: Bundle) -> None:
        """One was closed."""
        bundle.close()
        beginning = bundle.data[:_PREFIX]
        if (number := hash(beginning)) not in self._seen:
            if len(self._seen) >= _MOST_SEEN:
                self._seen.clear()
            self._seen.add(number)
        elif beginning not in self._known:
            bundle.is_shared = True
            self._known[beginning] = bundle
            self._size += len(bundle.data)
            while self._size > _MOST_BYTES:
                self._size -= len(self._known.popitem(last=False)[1].data)


class Shared:
    """The flows of switches that were sent the same shared bundles in the same order."""

    def __init__(self, before: Self | None = None, bundle: Bundle | None = None) -> None:
        self.most: int = (before.most if before else 0) + (len(bundle.adds) if bundle else 0)
        """No more flows than this."""
        self.seals: dict[_Place, tuple[int, bytes]] = dict(before.seals) if before else {}
        self._from = None if before is None or bundle is None else (before, bundle)
        self._flows: set[int] = set()
        self._next: WeakValueDictionary[Bundle, Shared] = WeakValueDictionary()
        self._lacks: tuple[frozenset[int], frozenset[int]] | None = None
        if bundle is not None:
            _take_seals(self.seals, bundle)

    @property
    def flows(self) -> set[int]:
        """Their cookies. Computed when somebody asks: nobody does half-way through a long batch."""
        if self._from is not None:
            bundles: list[Bundle] = []
            at: Shared = self
            while at._from is not None:
                before, bundle = at._from
                bundles.append(bundle)
                at = before
            found = set(at._flows)  # noqa: SLF001
            for bundle in reversed(bundles):
                found.difference_update(bundle.deletes)
                found.update(bundle.adds)
            self._flows, self._from = found, None
        return self._flows

    def after(self, bundle: Bundle) -> "Shared":
        """What they hold after one more bundle."""
        following = self._next.get(bundle)
        if following is None:
            following = self._next[bundle] = Shared(self, bundle)
        return following

    def lacks(self, expected: frozenset[int]) -> frozenset[int]:
        """Which of these cookies are missing."""
        if self._lacks is None or self._lacks[0] is not expected:
            self._lacks = expected, expected - self.flows
        return self._lacks[1]


class Flows:
    """The flows of one switch."""

    def __init__(self) -> None:
        self._shared = _NOTHING
        self._own: set[int] = set()
        self._removed: set[int] = set()
        """Of the shared ones."""
        self._seals: dict[_Place, tuple[int, bytes] | None] = {}

    def __len__(self) -> int:
        return len(self._shared.flows) + len(self._own) - len(self._removed)

    def holds(self, expected: frozenset[int]) -> bool:
        """Whether it has all of these cookies."""
        if self._shared.most + len(self._own) < len(expected):
            return False
        if len(expected) < 100:
            shared, own = self._shared.flows, self._own
            return all(
                cookie in own or (cookie in shared and cookie not in self._removed)
                for cookie in expected
            )
        return self._own >= self._shared.lacks(expected) and expected.isdisjoint(self._removed)

    def commit(self, bundle: Bundle) -> None:
        """Take a bundle in."""
        if bundle.is_shared:
            self._shared = self._shared.after(bundle)
            self._own.difference_update(bundle.adds, bundle.deletes)
            self._removed.difference_update(bundle.adds)
            for place in bundle.seals:
                self._seals.pop(place, None)
            return
        self._own.update(bundle.adds)
        self._removed.difference_update(bundle.adds)
        for cookie in bundle.deletes:
            self._own.discard(cookie)
            if cookie in self._shared.flows:
                self._removed.add(cookie)
        self._seals.update(bundle.seals)

    @property
    def seals_alone(self) -> bool:
        """Whether it has no flows but those of the table `SEALS`, if any."""
        return len(self) <= len(self._described())

    def description(self, table: int) -> bytes | None:
        """Of the flows of a table, as in OFPMP_FLOW_DESC; None: it cannot be given."""
        if table != SEALS and not self.seals_alone:
            return None
        return b"".join(described for _, described in self._described())

    def _described(self) -> list[tuple[int, bytes]]:
        seals = self._shared.seals | self._seals
        return [found for found in seals.values() if found is not None]


def _take_seals(seals: dict[_Place, tuple[int, bytes]], bundle: Bundle) -> None:
    for place, found in bundle.seals.items():
        if found is None:
            seals.pop(place, None)
        else:
            seals[place] = found


_NOTHING: Final = Shared()
