"""A change to a switch as bytes, encoded once and written to any number of switches.

Every message of a batch has the xid `BATCH_XID` + its index: a switch's error names its message,
and the bytes are the same for all. A connection has one batch at a time, so this is unambiguous.
"""

import struct
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Final, Self, TypeAlias

from flows.diff import GroupChange
from flows.family import IPAddress
from flows.features.state import GENERATION_FLOW, generation_cookie
from flows.flow import MOST_BUCKETS, Bucket, Flow, Group, Meter
from openflow import codec
from openflow.codec import MeterCommand
from openflow.compat import ofproto
from openflow.conntrack import Forget, of_addresses
from openflow.messages import (
    InstalledFlow,
    InstalledGroup,
    flow_mod_add,
    flow_mod_remove,
    group_mod_set,
)
from openflow.templates import FlowEncoder, GroupEncoder, Template, numbered

BATCH_XID: Final = 0x4000_0000
"""xids from here on belong to batches; lower ones to the connection's own requests."""

BUNDLE_SIZE: Final = 2_000
"""Messages and group buckets in one bundle (a bucket is as long as a flow). So at most 400 KB, or
10 ms of the switch's work, are unacknowledged at a time."""


@dataclass(frozen=True, slots=True)
class DeleteByCookie:
    """Deletes the flows with this cookie, in all tables."""

    cookie: int

    def __str__(self) -> str:
        """For people."""
        return f"the deletion of cookie {self.cookie:#x}"


@dataclass(frozen=True, slots=True)
class DeleteStrict:
    """Deletes the flow with this table, priority and match."""

    flow: Flow

    def __str__(self) -> str:
        """For people."""
        return f"the deletion of {codec.described(self.flow)}"


@dataclass(frozen=True, slots=True)
class InstalledRemove:
    """Deletes a dumped flow, but not another flow that replaced it meanwhile."""

    flow: InstalledFlow

    def __str__(self) -> str:
        """For people."""
        return f"the deletion of the {self.flow}"


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
class BucketsInsert:
    """Gives a group more buckets."""

    group: int
    buckets: tuple[Bucket, ...]

    def __str__(self) -> str:
        """For people."""
        return f"{len(self.buckets)} buckets more for group {self.group:#x}"


@dataclass(frozen=True, slots=True)
class BucketRemove:
    """Removes a bucket from a group."""

    group: int
    bucket: int

    def __str__(self) -> str:
        """For people."""
        return f"the removal of bucket {self.bucket} of group {self.group:#x}"


@dataclass(frozen=True, slots=True)
class GroupDelete:
    """Deletes a group; the switch deletes the flows that still use it."""

    group: int

    def __str__(self) -> str:
        """For people."""
        return f"the deletion of group {self.group:#x}"


@dataclass(frozen=True, slots=True)
class GenerationSet:
    """Sets the flow that says the newest generation of a controller (`flows.features.state`)."""

    generation: int

    def __str__(self) -> str:
        """For people."""
        return f"generation {self.generation}"


@dataclass(frozen=True, slots=True)
class Control:
    """Opens, closes or commits a bundle, or asks for a barrier."""

    name: str

    def __str__(self) -> str:
        """For people."""
        return self.name


Message: TypeAlias = (
    Flow
    | InstalledFlow
    | DeleteByCookie
    | DeleteStrict
    | InstalledRemove
    | Group
    | InstalledGroup
    | BucketsInsert
    | BucketRemove
    | GroupDelete
    | MeterMod
    | Forget
    | GenerationSet
    | Control
)


def message_text(message: Message) -> str:
    """A message in a few words, for errors."""
    return codec.described(message) if isinstance(message, Flow | Group) else str(message)


@dataclass(frozen=True)
class Part:
    """Messages that a switch acknowledges together: a bundle, or meters and their barrier.

    A bundle is closed first and committed only if nothing in it was rejected: OVS checks a message
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
        """The xid of the close or barrier: after its answer, no more errors of `data` follow."""
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
        """Commits a closed bundle; has `last_xid`."""
        return numbered(_CONTROLS[COMMIT], self.last_xid)

    @property
    def discard(self) -> bytes:
        """Discards a closed bundle; has `last_xid` too: it is sent instead of the commit."""
        return numbered(_DISCARD, self.last_xid)


@dataclass(frozen=True, slots=True)
class Batch:
    """Messages in an order in which the switch is correct at every moment.

    Meters come first, because flows name them and no bundle can hold them; then groups, which
    flows name too; then flows; then the groups and the meters that are gone. All adds come
    before all deletes. Adds begin with the last table: where a batch is too big for one bundle, no
    packet meets a table whose next is not there yet, and whatever lets packets in, in the first
    table, comes when all the rest is in place.
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
        groups_set: Iterable[GroupChange | InstalledGroup] = (),
        groups_delete: Iterable[int] = (),
        first: Iterable[
            DeleteByCookie | DeleteStrict | InstalledRemove | Flow | GenerationSet
        ] = (),
        last: Iterable[Flow | InstalledFlow | DeleteByCookie] = (),
        bundle_size: int = BUNDLE_SIZE,
    ) -> Self:
        """Make a batch of a delta.

        An `InstalledFlow` or `InstalledGroup` is put back as it was dumped. `deletes` are cookies,
        `groups_delete` and `meters_delete` ids. `meters_set` are to be added: a switch refuses an
        id that exists, which is what `meters_change` is for. `first` comes before all other flows
        and groups, `last` after everything else, deletions of meters included, and in one bundle.
        `bundle_size` is in messages and buckets.
        """
        meters: list[Message] = [MeterMod(MeterCommand.ADD, meter) for meter in meters_set]
        meters += (MeterMod(MeterCommand.MODIFY, meter) for meter in meters_change)
        flows: list[Message] = [*first]
        for group in groups_set:
            flows += _of_group(group)
        by_table: list[Flow | InstalledFlow] = sorted(adds, key=lambda flow: -flow.table)
        flows += by_table
        flows += map(DeleteByCookie, deletes)
        flows += map(GroupDelete, groups_delete)
        gone: list[Message] = [
            MeterMod(MeterCommand.DELETE, Meter(number, 0, 0)) for number in meters_delete
        ]
        bundles = [*_chunks(flows, bundle_size)]
        ending: list[Message] = [*last]
        room = bundle_size - sum(map(_cost, bundles[-1] if bundles else ()))
        if bundles and not gone and len(ending) <= room:
            bundles[-1] += ending
            ending = []
        return cls._of_parts(
            [
                *([*chunk, BARRIER] for chunk in _chunks(meters, bundle_size)),
                *([OPEN, *chunk, CLOSE, COMMIT] for chunk in bundles),
                *([*chunk, BARRIER] for chunk in _chunks(gone, bundle_size)),
                *([OPEN, *chunk, CLOSE, COMMIT] for chunk in [ending] if chunk),
            ]
        )

    @classmethod
    def _of_parts(cls, parts: Iterable[list[Message]]) -> Self:
        listed = list(parts)
        firsts = accumulate(map(len, listed), initial=BATCH_XID)
        return cls(tuple(Part(xid, tuple(each)) for xid, each in zip(firsts, listed, strict=False)))

    @classmethod
    def forgetting(cls, zone: int, addresses: Iterable[IPAddress]) -> Self:
        """Make a batch that has a switch forget every connection of these few addresses.

        For each the switch looks at all the connections it knows, and does nothing else meanwhile.
        Those an address has opened have it as source of their original direction; those opened to
        it, translated or not, as source of the reply.
        """
        return cls.of_forgets(of_addresses(zone, addresses))

    @classmethod
    def of_forgets(cls, forgets: Iterable[Forget]) -> Self:
        """Make a batch that has a switch forget connections; what `forgetting` says holds here too.

        Meant for what has no connection of its own to notice that its other end is gone: UDP to an
        endpoint that went, or to a Service that had none. In the userspace datapath one flush
        leaves up to half of what it is to forget (docs/decisions.md): so repeat it.
        """
        return cls._of_parts([[*forgets, BARRIER]])

    @property
    def cost(self) -> int:
        """Messages and buckets in it: roughly what it costs in memory."""
        return sum(_cost(message) for part in self.parts for message in part.messages)

    @property
    def bundles(self) -> int:
        """Number of bundles. With more than one, the switch holds a mixture for a while."""
        return sum(part.in_bundle for part in self.parts)

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
_GROUPS: Final = GroupEncoder()
_DELETE: Final = Template(lambda values: codec.flow_delete(values[0]), [8])
_GROUP_DELETE: Final = Template(lambda values: codec.group_delete(values[0]), [4])
_BUCKET_REMOVE: Final = Template(lambda values: codec.bucket_remove(*values), [4, 4])


def _of_group(change: GroupChange | InstalledGroup) -> Iterable[Message]:
    """The messages that set or change a group. Raises `codec.CodecError`."""
    if isinstance(change, InstalledGroup):
        yield change
        return
    group = change.new
    edits = change.buckets()
    if edits is None or len(group.buckets) > MOST_BUCKETS:
        yield group
        return
    removed, inserted = edits
    for number in removed:
        yield BucketRemove(group.id, number)
    if inserted:
        yield BucketsInsert(group.id, inserted)


def _encoded(message: Message, xid: int) -> bytes:  # noqa: C901, PLR0911, PLR0912 - one line each
    match message:
        case Flow():
            return _FLOWS.add(message, xid)
        case InstalledFlow():
            return numbered(flow_mod_add(message), xid)
        case DeleteByCookie(cookie):
            return _DELETE.fill([cookie], xid)
        case DeleteStrict(flow):
            return numbered(codec.flow_remove(flow), xid)
        case InstalledRemove(flow):
            return numbered(flow_mod_remove(flow), xid)
        case Group():
            return _GROUPS.set(message, xid)
        case BucketsInsert(group, buckets):
            return _GROUPS.insert(group, buckets, xid)
        case BucketRemove(group, bucket):
            return _BUCKET_REMOVE.fill([group, bucket], xid)
        case GroupDelete(group):
            return _GROUP_DELETE.fill([group], xid)
        case InstalledGroup():
            return numbered(group_mod_set(message), xid)
        case Forget(zone, protocol, original, reply):
            return numbered(codec.conntrack_flush(zone, protocol, original, reply), xid)
        case GenerationSet(generation):
            cookie = generation_cookie(generation)
            return numbered(codec.flow_add(GENERATION_FLOW, stand_in=(cookie, None)), xid)
        case MeterMod(command, meter):
            return numbered(codec.meter_mod(command, meter), xid)
        case Control():
            return numbered(_CONTROLS[message], xid)


def _chunks(messages: Iterable[Message], size: int) -> Iterable[list[Message]]:
    chunk: list[Message] = []
    taken = 0
    for message in messages:
        cost = _cost(message)
        if chunk and taken + cost > size:
            yield chunk
            chunk, taken = [], 0
        chunk.append(message)
        taken += cost
    if chunk:
        yield chunk


def _cost(message: Message) -> int:
    match message:
        case Group(buckets=buckets) | BucketsInsert(buckets=buckets):
            return 1 + len(buckets)
        case InstalledGroup(raw=raw):
            return 1 + len(raw) // _BYTES_A_BUCKET
    return 1


_BYTES_A_BUCKET: Final = 80
