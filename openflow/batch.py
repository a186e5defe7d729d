"""A change to a switch as bytes, encoded once and written to any number of switches.

Every message of a batch has the xid `BATCH_XID` + its index: a switch's error names its message,
and the bytes are the same for all. A connection has one batch at a time, so this is unambiguous.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Address
from itertools import accumulate
from typing import Final, Self, TypeAlias

from flows.flow import Flow, Meter
from openflow import codec
from openflow.codec import Direction, MeterCommand
from openflow.compat import ofproto
from openflow.messages import InstalledFlow, flow_mod_add
from openflow.templates import FlowEncoder, Template, numbered

BATCH_XID: Final = 0x4000_0000
"""xids from here on are a batch's; below are the session's own requests."""

BUNDLE_SIZE: Final = 2_000
"""Messages of one bundle. What is unacknowledged at a time: some 400 KB, 10 ms of the switch."""


@dataclass(frozen=True, slots=True)
class FlowDelete:
    """Deletes the flows with this cookie, in all tables."""

    cookie: int

    def __str__(self) -> str:
        """For people."""
        return f"the deletion of cookie {self.cookie:#x}"


@dataclass(frozen=True, slots=True)
class FlowRemove:
    """Deletes whatever flow has this one's table, priority and match."""

    flow: Flow

    def __str__(self) -> str:
        """For people."""
        return f"the removal of {codec.described(self.flow)}"


@dataclass(frozen=True, slots=True)
class MeterMod:
    """Adds, changes or deletes a meter."""

    command: MeterCommand
    meter: Meter

    def __str__(self) -> str:
        """For people."""
        meter = self.meter
        return f"{self.command.name} of meter {meter.id} (rate {meter.rate}, burst {meter.burst})"


@dataclass(frozen=True, slots=True)
class Forget:
    """Makes the switch forget connections: those that have this source in this direction."""

    zone: int
    direction: Direction
    source: IPv4Address

    def __str__(self) -> str:
        """For people."""
        return (
            f"the flush of connections with {self.source} as source of the {self.direction.name} "
            f"direction, in zone {self.zone} (Open vSwitch does this from 3.1 on)"
        )


@dataclass(frozen=True, slots=True)
class Control:
    """What holds a batch together: opens, closes, commits a bundle, or asks for a barrier."""

    name: str

    def __str__(self) -> str:
        """For people."""
        return self.name


Message: TypeAlias = Flow | InstalledFlow | FlowDelete | FlowRemove | MeterMod | Forget | Control


def message_text(message: Message) -> str:
    """A message in a few words, for errors."""
    return codec.described(message) if isinstance(message, Flow) else str(message)


@dataclass(frozen=True)
class Part:
    """Messages that a switch acknowledges together: a bundle, or meters and their barrier.

    A bundle is closed first and committed only if nothing in it was refused: OVS checks a message
    when it is added, refuses that one alone, and would commit the rest, ATOMIC or not (seen with
    3.1). Its messages end with `CLOSE` and `COMMIT`.
    """

    first_xid: int
    messages: Sequence[Message]

    @property
    def in_bundle(self) -> bool:
        """Whether this is a bundle."""
        return self.messages[0] is OPEN

    @property
    def last_xid(self) -> int:
        """The xid of the commit or the barrier."""
        return self.first_xid + len(self.messages) - 1

    @property
    def checked_xid(self) -> int:
        """The xid whose answer says that all errors in `data` are told: the close or barrier."""
        return self.last_xid - self.in_bundle

    @cached_property
    def data(self) -> bytes:
        """All messages but the commit as they go over the wire. Raises `codec.CodecError`."""
        in_bundle = self.in_bundle
        pieces: list[bytes] = []
        for xid, message in enumerate(self.messages, self.first_xid):
            if message is COMMIT:
                break
            encoded = _encoded(message, xid)
            if in_bundle and not isinstance(message, Control):
                pieces.append(_IN_BUNDLE.pack(*_IN_BUNDLE_HEAD, 16 + len(encoded), xid, *_BUNDLE))
            pieces.append(encoded)
        return b"".join(pieces)

    @property
    def commit(self) -> bytes:
        """Makes a closed bundle happen; has `last_xid`."""
        return numbered(_CONTROLS[COMMIT], self.last_xid)

    @property
    def discard(self) -> bytes:
        """Forgets a closed bundle; has `last_xid` too, as it comes in the commit's place."""
        return numbered(_DISCARD, self.last_xid)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages in the order that keeps a switch sound at every moment.

    Meters come first, because flows name them and no bundle can hold them; then flows; at last
    the meters that are gone. All adds come before all deletes. Adds begin with the last table:
    where a batch is too big for one bundle, no packet meets a table whose next is not there yet,
    and whatever lets packets in, in the first table, comes when all the rest is in place.
    """

    parts: tuple[Part, ...]

    @classmethod
    def of(
        cls,
        adds: Iterable[Flow | InstalledFlow] = (),
        deletes: Iterable[int] = (),
        meters_set: Iterable[Meter] = (),
        meters_change: Iterable[Meter] = (),
        meters_delete: Iterable[int] = (),
        *,
        first: Iterable[FlowDelete | FlowRemove] = (),
        last: Iterable[Flow | InstalledFlow] = (),
        bundle_size: int = BUNDLE_SIZE,
    ) -> Self:
        """Make a batch of a delta.

        An `InstalledFlow` is put back as it was dumped. `deletes` are cookies and `meters_delete`
        ids. `meters_set` are to be added: a switch refuses an id that exists, which is what
        `meters_change` is for. `first` and `last` come before and after all other flows.
        `bundle_size` is in messages.
        """
        meters: list[Message] = [MeterMod(MeterCommand.ADD, meter) for meter in meters_set]
        meters += (MeterMod(MeterCommand.MODIFY, meter) for meter in meters_change)
        flows: list[Message] = [*first, *sorted(adds, key=lambda flow: -flow.table)]
        flows += map(FlowDelete, deletes)
        flows += last
        gone: list[Message] = [
            MeterMod(MeterCommand.DELETE, Meter(number, 0, 0)) for number in meters_delete
        ]
        return cls._of_parts(
            [
                *([*chunk, BARRIER] for chunk in _chunks(meters, bundle_size)),
                *([OPEN, *chunk, CLOSE, COMMIT] for chunk in _chunks(flows, bundle_size)),
                *([*chunk, BARRIER] for chunk in _chunks(gone, bundle_size)),
            ]
        )

    @classmethod
    def _of_parts(cls, parts: Iterable[list[Message]]) -> Self:
        listed = list(parts)
        firsts = accumulate(map(len, listed), initial=BATCH_XID)
        return cls(tuple(Part(xid, tuple(each)) for xid, each in zip(firsts, listed, strict=False)))

    @classmethod
    def forgetting(cls, zone: int, addresses: Iterable[IPv4Address]) -> Self:
        """Make a batch that has a switch forget every connection of these few addresses.

        For each the switch looks at all the connections it knows, and does nothing else meanwhile.
        Those an address has opened have it as source of their original direction; those opened to
        it, translated or not, as source of the reply.
        """
        messages: list[Message] = [
            Forget(zone, direction, address) for address in addresses for direction in Direction
        ]
        return cls._of_parts([[*messages, BARRIER]])

    def __bool__(self) -> bool:
        """Whether there is anything to send."""
        return bool(self.parts)

    def message(self, index: int) -> Message:
        """The message with xid `BATCH_XID + index`. Raises `IndexError`."""
        xid = BATCH_XID + index
        at = bisect_right(self.parts, xid, key=lambda part: part.first_xid) - 1
        if at < 0:
            raise IndexError(index)
        part = self.parts[at]
        return part.messages[xid - part.first_xid]


OPEN: Final = Control("the bundle's opening")
CLOSE: Final = Control("the bundle's closing")
COMMIT: Final = Control("the bundle's commit")
BARRIER: Final = Control("the barrier")

_CONTROLS: Final = {
    OPEN: codec.bundle_control(ofproto.OFPBCT_OPEN_REQUEST),
    CLOSE: codec.bundle_control(ofproto.OFPBCT_CLOSE_REQUEST),
    COMMIT: codec.bundle_control(ofproto.OFPBCT_COMMIT_REQUEST),
    BARRIER: codec.barrier(),
}
_DISCARD: Final = codec.bundle_control(ofproto.OFPBCT_DISCARD_REQUEST)
# struct ofp_bundle_add_msg (OpenFlow 1.5.1, 7.3.9.6), in front of the message it adds. Both have
# the same xid.
_IN_BUNDLE: Final = struct.Struct("!BBHIIxxH")
_IN_BUNDLE_HEAD: Final = (ofproto.OFP_VERSION, ofproto.OFPT_BUNDLE_ADD_MESSAGE)
_BUNDLE: Final = (codec.BUNDLE_ID, codec.BUNDLE_FLAGS)
_FLOWS: Final = FlowEncoder()
_DELETE: Final = Template(lambda values: codec.flow_delete(values[0]), [8])


def _encoded(message: Message, xid: int) -> bytes:  # noqa: PLR0911 - one line each
    match message:
        case Flow():
            return _FLOWS.add(message, xid)
        case InstalledFlow():
            return numbered(flow_mod_add(message), xid)
        case FlowDelete(cookie):
            return _DELETE.fill([cookie], xid)
        case FlowRemove(flow):
            return numbered(codec.flow_remove(flow), xid)
        case Forget(zone, direction, source):
            return numbered(codec.conntrack_flush(zone, direction, source), xid)
        case MeterMod(command, meter):
            return numbered(codec.meter_mod(command, meter), xid)
        case Control():
            return numbered(_CONTROLS[message], xid)


def _chunks(messages: Sequence[Message], size: int) -> Iterable[Sequence[Message]]:
    return (messages[at : at + size] for at in range(0, len(messages), size))
