"""Rows of flow reports for the flows and groups that a switch should hold.

Apart from `flow_report`, because these need nothing of OpenFlow: the command line makes them too.
"""

from ipaddress import IPv4Address

from controller.references import Reference
from controller.reports.flows import BucketRow, FlowRow
from flows.flow import Action, Bucket, Ct, Flow, Group, Nat, SetField, ToGroup
from flows.labels import Labels
from flows.pipeline import LAYOUT, Feature
from flows.refs import Owners
from flows.text import actions_text, bucket_text, match_text, table_name


def desired_row(
    cookie: int, flow: Flow, owners: Owners, labels: Labels | None, *, state: str
) -> FlowRow:
    """A flow as it should be, with no packets."""
    return FlowRow(
        table_name(flow.table), flow.table, flow.priority, f"{cookie:#018x}", 0, 0, state,
        feature=Feature(flow.feature).name.lower(),
        object=named(owners),
        owners=references(owners),
        reason=flow.reason,
        match=match_text(flow, labels).partition(",")[2],
        actions=actions_text(flow, labels),
        groups=tuple(each.group for each in flow.actions if isinstance(each, ToGroup)),
    )  # fmt: skip


def named(owners: Owners) -> str:
    """The owners, for people."""
    return ", ".join(map(str, owners))


def references(owners: Owners) -> tuple[Reference, ...]:
    """The owners, for programs."""
    return tuple(map(Reference.of, owners))


def bucket_rows(group: Group, labels: Labels | None) -> tuple[BucketRow, ...]:
    """The buckets of a group as it should be."""
    return tuple(
        BucketRow(
            bucket.id,
            bucket.weight,
            _endpoint(bucket),
            group_behind(bucket),
            bucket_text(bucket, labels),
        )
        for bucket in group.buckets
    )


def group_behind(bucket: Bucket) -> int | None:
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
