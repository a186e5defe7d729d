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
from ipaddress import IPv4Address
from typing import Any

import msgspec

from flows import names
from flows.diff import is_learned, is_ours
from flows.flow import Action, Bucket, Ct, Flow, Group, Nat, SetField, ToGroup
from flows.labels import Labels
from flows.pipeline import LAYOUT, Feature
from flows.refs import Owners
from flows.text import actions_text, bucket_text, match_text, table_name
from flows.view import Service
from openflow import digest, foreign
from openflow.messages import InstalledFlow, InstalledGroup


def flows(
    installed: Iterable[InstalledFlow],
    desired: Mapping[int, tuple[Flow, Owners]],
    services: Mapping[str, Service],
    labels: Labels | None = None,
) -> Generator[None, None, list[dict[str, Any]]]:
    """A row for each flow, sorted by table and descending priority.

    `desired` is by cookie, with owners.

    With `labels`, match and actions are for people, else as Open vSwitch prints them. What is not
    desired is always as it is on the switch.
    """
    missing = dict(desired)
    rows: list[dict[str, Any]] = []
    learned: list[tuple[InstalledFlow, dict[str, Any]]] = []
    for entry in installed:
        yield
        row = _row(entry, missing.pop(entry.cookie, None), labels)
        rows.append(row)
        if row["state"] == "learned":
            learned.append((entry, row))
    if learned:
        by_group = {
            number: (service.ref,)
            for service in services.values()
            for port in service.ports
            for number in port.groups.values()
        }
        register = int(LAYOUT.registers["Service"].register.removeprefix("reg"))
        for entry, row in learned:
            row.update(_owned(by_group.get(digest.registers(entry.raw).get(register, 0), ())))
            row["reason"] = "a client keeps its endpoint"
    for cookie, (flow, owners) in missing.items():
        yield
        rows.append(
            {
                "table": table_name(flow.table),
                "tableNumber": flow.table,
                "priority": flow.priority,
                "cookie": f"{cookie:#018x}",
                "packets": 0,
                "bytes": 0,
                "state": "missing",
                **_explained(flow, owners, labels),
            }
        )
    alike: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        alike.setdefault((row["tableNumber"], -row["priority"]), []).append(row)
    ordered: list[dict[str, Any]] = []
    for at in sorted(alike):
        yield
        ordered += sorted(alike[at], key=lambda row: str(row["match"]))
    return ordered


def groups(
    installed: Iterable[InstalledGroup],
    desired: Mapping[int, tuple[Group, Owners]],
    flow_rows: Iterable[Mapping[str, Any]],
    labels: Labels | None = None,
) -> Generator[None, None, list[dict[str, Any]]]:
    """A row for each group, by id. Its reason is that of the flow that uses it."""
    reasons = {number: row["reason"] for row in flow_rows for number in row["groups"]}
    for number, reason in list(reasons.items()):
        parts = desired[number][0].buckets if number in desired else ()
        reasons.update((part, reason) for each in parts if (part := _group_behind(each)))
    missing = dict(desired)
    rows: list[dict[str, Any]] = []

    def add(number: int, state: str, owners: Owners, buckets: list[dict[str, Any]]) -> None:
        reason = reasons.get(number, "")
        rows.append(
            {
                "id": number,
                "state": state,
                **_owned(owners),
                "reason": reason,
                "buckets": buckets,
            }
        )

    for entry in installed:
        yield
        if entry.id not in missing:
            state = "stale" if entry.id in names.GROUPS else "foreign"
            add(entry.id, state, (), foreign.described_buckets(entry))
            continue
        group, owners = missing.pop(entry.id)
        if digest.of_group_entry(entry) == digest.of_group(group):
            add(entry.id, "installed", owners, _buckets(group, labels))
        else:
            add(entry.id, "altered", owners, foreign.described_buckets(entry))
    for number, (group, owners) in missing.items():
        yield
        add(number, "missing", owners, _buckets(group, labels))
    return sorted(rows, key=lambda row: row["id"])


def encoded(rows: Iterable[Mapping[str, Any]]) -> Generator[None, None, list[msgspec.Raw]]:
    """Rows as JSON: all at once would take long."""
    made = []
    for row in rows:
        yield
        made.append(msgspec.Raw(msgspec.json.encode(row)))
    return made


def _row(
    entry: InstalledFlow, known: tuple[Flow, Owners] | None, labels: Labels | None
) -> dict[str, Any]:
    """A flow that the switch holds. `known` is the desired flow with its cookie, and its owners."""
    row: dict[str, Any] = {
        "table": table_name(entry.table),
        "tableNumber": entry.table,
        "priority": entry.priority,
        "cookie": f"{entry.cookie:#018x}",
        "packets": entry.packets,
        "bytes": entry.octets,
        "state": "installed",
        "feature": "",
        **_owned(()),
        "reason": "",
        "groups": [],
    }
    if known is not None:
        row |= _explained(*known, labels)
        if digest.of_entry(entry.raw) == digest.of_flow(known[0]):
            return row
        row["state"] = "altered"
    elif is_learned(entry.cookie):
        row |= {"state": "learned", "feature": Feature.LEARNED.name.lower()}
    else:
        row["state"] = "stale" if is_ours(entry.cookie) else "foreign"
    match, actions = foreign.described(entry)
    return row | {"match": match, "actions": actions}


def _explained(flow: Flow, owners: Owners, labels: Labels | None) -> dict[str, Any]:
    return {
        "match": match_text(flow, labels).partition(",")[2],
        "actions": actions_text(flow, labels),
        "feature": Feature(flow.feature).name.lower(),
        **_owned(owners),
        "reason": flow.reason,
        "groups": [action.group for action in flow.actions if isinstance(action, ToGroup)],
    }


def _owned(owners: Owners) -> dict[str, Any]:
    """`object` is for people, `owners` for programs."""
    return {
        "object": ", ".join(map(str, owners)),
        "owners": [owner._asdict() for owner in owners],
    }


def _buckets(group: Group, labels: Labels | None) -> list[dict[str, Any]]:
    return [
        {
            "id": bucket.id,
            "weight": bucket.weight,
            "endpoint": _endpoint(bucket),
            "group": _group_behind(bucket),
            "actions": bucket_text(bucket, labels),
        }
        for bucket in group.buckets
    ]


def _group_behind(bucket: Bucket) -> int | None:
    """The group that a bucket leads to, for choices that one group cannot hold."""
    return next((each.group for each in bucket.actions if isinstance(each, ToGroup)), None)


def _endpoint(bucket: Bucket) -> str:
    """The `ADDRESS:PORT` that it sends to; empty if it has none."""
    address, port = LAYOUT.registers["EndpointAddress"], LAYOUT.registers["EndpointPort"]
    loaded: dict[str, int] = {}
    action: Action
    for action in bucket.actions:
        match action:
            case Ct(nat=Nat(destination=(int(to), int(at)))):
                return f"{IPv4Address(to)}:{at}"
            case SetField(field, value):
                loaded[field] = value
    if address.register in loaded and port.register in loaded:
        return f"{IPv4Address(loaded[address.register])}:{loaded[port.register]}"
    return ""
