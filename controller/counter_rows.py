"""What counters of flows say about pods, Services and dropped packets."""

from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from typing import Final, NamedTuple

from controller.drop_reasons import drop_reason
from controller.references import Reference
from controller.reports.counters import DropRow, ServiceTrafficRow, TrafficRow
from flows import names
from flows.flow import Flow
from flows.pipeline import LAYOUT
from flows.refs import ObjectRef, Owners

SLICE: Final = 200
"""Flows that are looked at before the event loop may have its turn."""
CLASSIFIER, OUTPUT, SERVICE_CHOICE = (
    LAYOUT.tables[name].number for name in ("Classifier", "Output", "ServiceChoice")
)
_OUTPUT_PORT: Final = LAYOUT.registers["OutputPort"].register


class Counted(NamedTuple):
    """A desired flow, and what it has counted on a switch."""

    packets: int
    octets: int
    idle: int | None
    """Seconds since its last packet; None: not known."""
    flow: Flow
    owners: Owners


def traffic_rows(node: str, known: Iterable[Counted]) -> Iterable[TrafficRow]:
    """By ingress port in `Classifier`, by output port in `Output`."""
    sent: dict[ObjectRef, tuple[int, int]] = {}
    received: dict[ObjectRef, tuple[int, int]] = {}
    for row in known:
        flow, owners = row.flow, row.owners
        if flow.table not in (CLASSIFIER, OUTPUT):
            continue
        fields = {name: value for name, value, _ in flow.match}
        port = fields.get("in_port" if flow.table == CLASSIFIER else _OUTPUT_PORT)
        if port is None:
            continue
        ref = _EVERY_PORT.get(port, "")
        of = ObjectRef(ref, "", node) if ref else owners[0]
        by_object = sent if flow.table == CLASSIFIER else received
        by_object[of] = row.packets, row.octets
    for of in sorted(sent.keys() | received.keys()):
        yield TrafficRow(Reference.of(of), *sent.get(of, (0, 0)), *received.get(of, (0, 0)))


_EVERY_PORT: Final[Mapping[int, str]] = {
    names.TUNNEL_OFPORT: "tunnel",
    names.GATEWAY_OFPORT: "gateway",
}


def service_rows(
    known: Iterable[Counted],
) -> Iterable[ServiceTrafficRow]:
    connections: Counter[ObjectRef] = Counter()
    for row in known:
        flow, owners = row.flow, row.owners
        is_served = flow.table == SERVICE_CHOICE and drop_reason(flow) is None
        if is_served and owners[0].kind == "Service":
            connections[owners[0]] += row.packets
    for ref, count in sorted(connections.items()):
        yield ServiceTrafficRow(Reference.of(ref), count)


def drop_rows(
    known: Iterable[Counted],
) -> Generator[None, None, list[DropRow]]:
    """Flows that drop for one reason are one row: some guards have a flow for each bit."""
    found: dict[tuple[str, str, str, Owners], list[Counted]] = {}
    for number, row in enumerate(known):
        if number % SLICE == 0:
            yield
        reason = drop_reason(row.flow)
        if reason is not None and row.packets:
            table = LAYOUT.by_number[row.flow.table].name
            key = reason, row.flow.reason, table, row.owners
            found.setdefault(key, []).append(row)
    made = []
    for (reason, why, table, owners), rows in found.items():
        idle = [each.idle for each in rows if each.idle is not None]
        made.append(
            DropRow(
                reason, why, table, tuple(map(Reference.of, owners)),
                sum(each.packets for each in rows), sum(each.octets for each in rows),
                min(idle, default=None),
            )
        )  # fmt: skip
    return made
