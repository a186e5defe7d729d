"""The last verified state of the bridge, on disk, for an ovs-vswitchd that has lost its flows.

The file is OpenFlow as a switch speaks it: the replies that describe its meters, its groups and its
flows, byte for byte but for the flows' counters. `ovs-ofctl ofp-parse FILE` prints it.
"""

import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from flows import names
from flows.diff import is_ours
from flows.features.state import is_seal
from flows.flow import Meter
from flows.pipeline import TABLES
from node_agent import install
from node_agent.faults import NodeFault
from openflow import messages
from openflow.batch import Batch
from openflow.compat import ofproto
from openflow.connection import MAX_REPLY
from openflow.messages import (
    HEADER,
    VERSION,
    InstalledFlow,
    InstalledGroup,
    Multipart,
    Type,
)
from openflow.switch import Switch
from settings import Agent

FIRST_TABLE: Final = min(table.number for table in TABLES)
"""The table that packets enter. Restored last: while it is empty, the rest may be incomplete."""

_MULTIPART: Final = struct.Struct("!HHxxxx")
_METER: Final = struct.Struct("!HHIHHIIxxxx")
"""struct ofp_meter_desc with one struct ofp_meter_band_drop (7.3.5.15, 7.3.4.4)."""
_LARGEST_BODY: Final = 60_000
"""A message's length has 16 bits."""
_LARGEST_FILE: Final = MAX_REPLY
"""Bytes. No dump is longer."""


class SnapshotError(NodeFault):
    """There is a file, but it cannot be read; the text says why."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the controller has installed on the bridge, without foreign and learned flows."""

    flows: tuple[InstalledFlow, ...]
    """Without counters, in one order whatever order the switch tells them in."""
    groups: tuple[InstalledGroup, ...]
    meters: tuple[Meter, ...]

    @classmethod
    def of(
        cls,
        flows: Iterable[InstalledFlow],
        groups: Iterable[InstalledGroup],
        meters: Iterable[Meter],
    ) -> Self:
        """From a dump of everything."""
        ours = (messages.without_counters(flow) for flow in flows if is_ours(flow.cookie))
        return cls(
            tuple(sorted(ours, key=lambda flow: (-flow.table, flow.raw))),
            tuple(
                sorted(
                    (group for group in groups if group.id in names.GROUPS),
                    key=lambda group: group.id,
                )
            ),
            tuple(sorted(filter(_is_ours, meters), key=lambda meter: meter.id)),
        )

    @property
    def lets_packets_in(self) -> bool:
        """False for an empty bridge, and for one that is being filled: never saved."""
        return any(flow.table == FIRST_TABLE for flow in self.flows)

    async def restore(self, switch: Switch) -> None:
        """Add everything to a switch. Raises `Rejected` and `ConnectionLost`."""
        known = await switch.dump_meters()
        seals = [flow for flow in self.flows if is_seal(flow.table, flow.cookie)]
        batch = Batch.of(
            [flow for flow in self.flows if flow not in seals],
            groups_set=self.groups,
            meters_set=[meter for meter in self.meters if meter.id not in known],
            meters_change=[meter for meter in self.meters if meter.id in known],
            # They say that all the rest is there.
            last=seals,
        )
        await switch.apply(batch)


def file_of(agent: Agent) -> Path:
    """Where a node keeps it."""
    return agent.state / "bridge.openflow"


def save(path: Path, snapshot: Snapshot) -> None:
    """Replace the file as a whole, or not at all. Raises `OSError`."""
    if not snapshot.lets_packets_in:
        raise ValueError("a snapshot of a bridge that lets nobody in would replace a good one")
    part = path.with_suffix(".part")
    # Whoever reads it knows all pods, Services and policies of the node.
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)
        meters = (
            _METER.pack(
                _METER.size, ofproto.OFPMF_PKTPS | ofproto.OFPMF_BURST, meter.id,
                ofproto.OFPMBT_DROP, 16, meter.rate, meter.burst,
            )
            for meter in snapshot.meters
        )  # fmt: skip
        file.writelines(_replies(Multipart.METER_DESC, meters))
        file.writelines(_replies(Multipart.GROUP_DESC, (group.raw for group in snapshot.groups)))
        file.writelines(_replies(Multipart.FLOW_DESC, (flow.raw for flow in snapshot.flows)))
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)
    install.sync(path.parent)


def load(path: Path) -> Snapshot | None:
    """What was saved last; None where nothing ever was. Raises `SnapshotError`."""
    flows: list[InstalledFlow] = []
    groups: list[InstalledGroup] = []
    meters: list[Meter] = []
    try:
        content = bytearray(install.read(path, _LARGEST_FILE))
        for _, _, _, body in messages.messages(content):
            (kind, _) = _MULTIPART.unpack_from(body)
            if kind == Multipart.METER_DESC:
                meters += messages.meters(body[_MULTIPART.size :])
            elif kind == Multipart.GROUP_DESC:
                groups += messages.groups(body[_MULTIPART.size :])
            elif kind == Multipart.FLOW_DESC:
                flows += messages.flows(body[_MULTIPART.size :])
    except FileNotFoundError:
        return None
    except (OSError, messages.ProtocolError, struct.error) as error:
        raise SnapshotError(f"{path}: {error}") from error
    found = Snapshot(tuple(flows), tuple(groups), tuple(meters))
    # It may have been cut between two messages, and what lets packets in comes last.
    if content or not found.lets_packets_in:
        raise SnapshotError(f"{path}: its end is missing")
    return found


def _is_ours(meter: Meter) -> bool:
    # One of another make than ours has no rate here.
    return names.is_our_meter(meter.id) and meter.rate > 0


def _replies(kind: Multipart, entries: Iterable[bytes]) -> Iterator[bytes]:
    body = b""
    for entry in entries:
        if len(body) + len(entry) > _LARGEST_BODY:
            yield _reply(kind, body)
            body = b""
        body += entry
    yield _reply(kind, body)


def _reply(kind: Multipart, body: bytes) -> bytes:
    length = HEADER.size + _MULTIPART.size + len(body)
    return HEADER.pack(VERSION, Type.MULTIPART_REPLY, length, 0) + _MULTIPART.pack(kind, 0) + body
