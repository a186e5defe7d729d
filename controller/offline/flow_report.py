"""The flows of a node without its switch: as it should hold them, or as they were recorded."""

from collections.abc import Mapping

from controller.flow_choice import Choice, choose, shown_groups, wanted_flows
from controller.flow_rows import bucket_rows, desired_row, named, references
from controller.inventory import Inventory
from controller.policies.slices import complete
from controller.programs import CompiledPrograms
from controller.references import Reference
from controller.reports.flows import FlowReport, FlowRow, GroupRow
from flows.labels import Labels

DESIRED = "desired"
"""The state of a flow that nobody has looked for on a switch."""


def chosen_flows(
    inventory: Inventory,
    programs: CompiledPrograms,
    recorded: Mapping[str, FlowReport],
    query: Mapping[str, str],
    node: str | None,
) -> FlowReport:
    """The answer of `sluice flows`. `recorded` is by node. Raises `BadQuestion`."""
    choice = choose(inventory, query, node)
    names = Labels.of(inventory.view, choice.node) if "names" in query else None
    wanted = complete(wanted_flows(inventory, programs, choice)).flows
    dump = recorded.get(choice.node)
    if dump is None:
        rows = [
            desired_row(cookie, flow, owners, names, state=DESIRED)
            for cookie, (flow, owners) in wanted.items()
        ]
    else:
        rows = []
        for row in dump.flows:
            known = wanted.get(int(row.cookie, 16))
            if known is not None and row.state == "installed" and names is None:
                # It was recorded with names.
                flow, owners = known
                made = desired_row(int(row.cookie, 16), flow, owners, None, state=row.state)
                rows.append(_counted(made, row))
            elif known is not None or _is_chosen(choice, row):
                rows.append(row)
    rows.sort(key=lambda row: (row.table_number, -row.priority, row.match))
    return FlowReport(
        node=choice.node,
        flows=tuple(rows),
        groups=_groups(programs, dump, choice, rows, names),
    )


def _counted(made: FlowRow, recorded: FlowRow) -> FlowRow:
    return FlowRow(
        **{field: getattr(made, field) for field in made.__struct_fields__}
        | {"packets": recorded.packets, "bytes": recorded.bytes}
    )


def _is_chosen(choice: Choice, row: FlowRow) -> bool:
    """Of a row that no desired flow is behind."""
    if not choice.takes(row.table_number, int(row.cookie, 16)):
        return False
    wanted = map(Reference.of, choice.objects)
    return all(each in row.owners for each in wanted)


def _groups(
    programs: CompiledPrograms,
    dump: FlowReport | None,
    choice: Choice,
    rows: list[FlowRow],
    names: Labels | None,
) -> tuple[GroupRow, ...]:
    desired = programs.groups_of(choice.node)
    shown = None if choice.is_everything else shown_groups(rows, desired)
    if dump is not None:
        return tuple(each for each in dump.groups if shown is None or each.id in shown)
    reasons = {number: row.reason for row in rows for number in row.groups}
    return tuple(
        GroupRow(
            number, DESIRED, named(owners), references(owners), reasons.get(number, ""),
            bucket_rows(group, names),
        )
        for number, (group, owners) in sorted(desired.items())
        if shown is None or number in shown
    )  # fmt: skip
