"""The report about egress addresses, for people."""

from collections.abc import Generator, Iterable

from controller.egress.ledger import PORTS, REPORTER, Ledger, title
from controller.egress.rules import Rule
from controller.inventory import Inventory
from controller.policies.selectors import text_of
from controller.problems import INVENTORY, OWNERS
from controller.reports.egress import DestinationRow, EgressList, EgressRow, PodUseRow
from controller.sources.routed_objects import EgressAddressObject
from flows.refs import ObjectRef
from wire.egress import PodUse

MOST_PODS = 100
"""Of one EgressAddress that are named."""


def listed(inventory: Inventory) -> Generator[None, None, EgressList]:
    """Every EgressAddress, with what its gateway has told."""
    rows = []
    egress = inventory.egress
    for name in egress.ordered():
        yield
        rule, given = egress.rules.get(name), inventory.egress_addresses.objects.get(name)
        if rule is not None:
            rows.append(_row(inventory, name, rule))
        elif given is not None:  # `egress` may not have settled yet
            rows.append(_refused(inventory, given))
    return EgressList(egress=tuple(rows))


def _row(inventory: Inventory, name: str, rule: Rule) -> EgressRow:
    egress, ledger = inventory.egress, inventory.egress_ledger
    entry = ledger.entry(name)
    pods = sorted(egress.pods_of(rule))
    return EgressRow(
        name=name,
        address=str(rule.address),
        gateway=egress.view[name].gateway,
        since=egress.since.get(name),
        candidates=tuple(sorted(rule.candidates)),
        namespaces=text_of(rule.draft.selection.namespaces),
        pod_selector=text_of(rule.draft.selection.pods),
        pods=tuple(pods[:MOST_PODS]),
        pod_count=len(pods),
        connections=entry.use.connections if entry else None,
        destination_count=entry.use.destination_count if entry else 0,
        ports=PORTS,
        destinations=tuple(
            DestinationRow(title(each), each.ports, each.ports / PORTS, _pods(ledger, each.pods))
            for each in (entry.use.destinations if entry else ())
        ),
        top_pods=_pods(ledger, entry.use.pods if entry else ()),
        problem=_problem(inventory, name),
    )


def _refused(inventory: Inventory, given: EgressAddressObject) -> EgressRow:
    name = given.metadata.name
    return EgressRow(
        name, given.spec.address[:64], "", None, (), "", "", (), 0, None, 0, PORTS, (), (),
        _problem(inventory, name),
    )  # fmt: skip


def _pods(ledger: Ledger, pods: Iterable[PodUse]) -> tuple[PodUseRow, ...]:
    return tuple(PodUseRow(ledger.pod(address), number) for address, number in pods)


def _problem(inventory: Inventory, name: str) -> str:
    ref = ObjectRef("EgressAddress", "", name)
    texts = (inventory.problems.text(each, ref) for each in (INVENTORY, OWNERS, REPORTER))
    return "; ".join(filter(None, texts))
