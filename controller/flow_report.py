"""The flows and groups of a node's switch, compared with the desired ones.

`state` is one of

    installed   desired, and the switch holds it
    altered     desired, but somebody changed it on the switch
    missing     desired, but the switch does not hold it
    stale       of Sluice, but no longer desired
    learned     made by the switch itself (`learn`)
    foreign     not managed by Sluice
"""

from collections.abc import Generator, Iterable, Mapping

import msgspec

from controller.flow_rows import bucket_rows, desired_row, group_behind, named, references
from controller.reports.flows import BucketRow, FlowRow, GroupRow
from flows import names
from flows.diff import is_generation, is_learned, is_ours
from flows.flow import Flow, Group
from flows.labels import Labels
from flows.pipeline import LAYOUT
from flows.refs import Owners
from flows.text import table_name
from flows.view import Service
from openflow import digest, foreign
from openflow.messages import InstalledFlow, InstalledGroup


def flows(
    installed: Iterable[InstalledFlow],
    desired: Mapping[int, tuple[Flow, Owners]],
    services: Mapping[str, Service],
    labels: Labels | None = None,
) -> Generator[None, None, list[FlowRow]]:
    """A row for each flow, sorted by table and descending priority.

    `desired` is by cookie, with owners.

    With `labels`, match and actions are for people, else as Open vSwitch prints them. What is not
    desired is always as it is on the switch.
    """
    missing = dict(desired)
    rows: list[FlowRow] = []
    by_group: dict[int, Owners] | None = None
    for entry in installed:
        yield
        row = _row(entry, missing.pop(entry.cookie, None), labels)
        if row.state == "learned":
            by_group = _by_group(services) if by_group is None else by_group
            owners = by_group.get(service_group(entry), ())
            row = msgspec.structs.replace(
                row, object=named(owners), owners=references(owners),
                reason="a client keeps its endpoint",
            )  # fmt: skip
        rows.append(row)
    for cookie, (flow, owners) in missing.items():
        yield
        rows.append(desired_row(cookie, flow, owners, labels, state="missing"))
    alike: dict[tuple[int, int], list[FlowRow]] = {}
    for row in rows:
        alike.setdefault((row.table_number, -row.priority), []).append(row)
    ordered: list[FlowRow] = []
    for at in sorted(alike):
        yield
        ordered += sorted(alike[at], key=lambda row: row.match)
    return ordered


def service_group(learned: InstalledFlow) -> int:
    """The group of the Service port that a learned flow is for; 0: of none."""
    register = int(LAYOUT.registers["Service"].register.removeprefix("reg"))
    return digest.registers(learned.raw).get(register, 0)


def _by_group(services: Mapping[str, Service]) -> dict[int, Owners]:
    return {
        number: (service.ref,)
        for service in services.values()
        for port in service.ports
        for number in port.groups.values()
    }


def groups(
    installed: Iterable[InstalledGroup],
    desired: Mapping[int, tuple[Group, Owners]],
    flow_rows: Iterable[FlowRow],
    labels: Labels | None = None,
) -> Generator[None, None, list[GroupRow]]:
    """A row for each group, by id. Its reason is that of the flow that uses it."""
    reasons = {number: row.reason for row in flow_rows for number in row.groups}
    for number, reason in list(reasons.items()):
        parts = desired[number][0].buckets if number in desired else ()
        reasons.update((part, reason) for each in parts if (part := group_behind(each)))
    missing = dict(desired)
    rows: list[GroupRow] = []

    def add(number: int, state: str, owners: Owners, buckets: tuple[BucketRow, ...]) -> None:
        reason = reasons.get(number, "")
        rows.append(GroupRow(number, state, named(owners), references(owners), reason, buckets))

    for entry in installed:
        yield
        if entry.id not in missing:
            state = "stale" if entry.id in names.GROUPS else "foreign"
            add(entry.id, state, (), _found_buckets(entry))
            continue
        group, owners = missing.pop(entry.id)
        if digest.of_group_entry(entry) == digest.of_group(group):
            add(entry.id, "installed", owners, bucket_rows(group, labels))
        else:
            add(entry.id, "altered", owners, _found_buckets(entry))
    for number, (group, owners) in missing.items():
        yield
        add(number, "missing", owners, bucket_rows(group, labels))
    return sorted(rows, key=lambda row: row.id)


def is_foreign_group(entry: InstalledGroup) -> bool:
    """Whether Sluice does not manage this group."""
    return entry.id not in names.GROUPS


def _row(entry: InstalledFlow, known: tuple[Flow, Owners] | None, labels: Labels | None) -> FlowRow:
    """A flow that the switch holds. `known` is the desired flow with its cookie, and its owners."""
    replace = msgspec.structs.replace
    if known is not None:
        row = replace(
            desired_row(entry.cookie, *known, labels, state="installed"),
            packets=entry.packets, bytes=entry.octets,
        )  # fmt: skip
        if digest.of_entry(entry.raw) == digest.of_flow(known[0]):
            return row
        row = replace(
            row, table=table_name(entry.table), table_number=entry.table,
            priority=entry.priority, state="altered",
        )  # fmt: skip
    else:
        state = _state(entry.cookie)
        row = FlowRow(
            table_name(entry.table), entry.table, entry.priority, f"{entry.cookie:#018x}",
            entry.packets, entry.octets, state,
            feature=state if state in {"learned", "generation"} else "",
        )  # fmt: skip
    match, actions = foreign.described(entry)
    return replace(row, match=match, actions=actions)


def _state(cookie: int) -> str:
    """Of a flow that is not part of a program."""
    if is_learned(cookie):
        return "learned"
    if is_generation(cookie):
        return "generation"
    return "stale" if is_ours(cookie) else "foreign"


def _found_buckets(entry: InstalledGroup) -> tuple[BucketRow, ...]:
    """As they are on the switch."""
    return tuple(BucketRow(**row) for row in foreign.described_buckets(entry))
