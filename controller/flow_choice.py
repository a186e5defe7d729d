"""Which flows of a node are asked for, and which of them its switch should hold."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from controller.causes import keys_of
from controller.flow_rows import group_behind
from controller.inventory import Inventory
from controller.object_names import is_known
from controller.policies.slices import SLICE, Slices
from controller.policy_reports.pods import attached, why_not_attached
from controller.programs import Programs
from controller.reports.flows import FlowRow
from flows.flow import Flow, Group
from flows.pipeline import LAYOUT, Table
from flows.refs import ObjectRef, Owners
from flows.view import Key

ALL_BITS: Final = (1 << 64) - 1


class BadQuestion(ValueError):  # noqa: N818
    """What was asked cannot be answered: `status` of HTTP, and a sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        self.status = status
        super().__init__(sentence)


@dataclass(frozen=True)
class Choice:
    """Which flows of a switch are wanted. All conditions hold."""

    node: str
    table: Table | None = None
    cookie: tuple[int, int] | None = None
    """Value and mask."""
    objects: tuple[ObjectRef, ...] = ()

    def takes(self, table: int, cookie: int) -> bool:
        """Whether a flow is wanted, as far as table and cookie say."""
        if self.table is not None and table != self.table.number:
            return False
        return self.cookie is None or cookie & self.cookie[1] == self.cookie[0]

    @property
    def is_everything(self) -> bool:
        """Whether nothing is left out."""
        return self.table is None and self.cookie is None and not self.objects


@dataclass
class Wanted:
    """The flows that a switch should hold, of those that are wanted."""

    flows: dict[int, tuple[Flow, Owners]] = field(default_factory=dict)
    """By cookie."""
    learned_for: frozenset[int] = frozenset()
    """The groups of the Services whose learned flows are wanted as well."""


def choose(inventory: Inventory, query: Mapping[str, str], node: str | None) -> Choice:
    """What a query asks for: see `FlowApi`. `node` is that of the path. Raises `BadQuestion`."""
    objects: list[ObjectRef] = []
    node = node or query.get("node")
    if (pod := query.get("pod")) is not None:
        found = attached(inventory, pod)
        if found is None:
            raise BadQuestion(404, why_not_attached(inventory, pod))
        if node is None:
            node = found.node
        objects.append(ObjectRef.namespaced("Pod", pod))
    if node is None:
        raise BadQuestion(400, "node: give this, or pod")
    if (service := query.get("service")) is not None:
        ref = ObjectRef("Service", *_namespaced("service", service))
        objects.append(_known(inventory, ref))
    if (policy := query.get("policy")) is not None:
        objects.append(_policy(inventory, policy))
    if not inventory.knows_node(node):
        raise BadQuestion(404, f"Node {node} is unknown")
    return Choice(node, _table(query.get("table")), _cookie(query.get("cookie")), tuple(objects))


def _known(inventory: Inventory, ref: ObjectRef) -> ObjectRef:
    if not is_known(inventory, ref):
        raise BadQuestion(404, f"there is no {ref}")
    return ref


def _policy(inventory: Inventory, text: str) -> ObjectRef:
    if "/" not in text:
        return _known(inventory, ObjectRef("ClusterNetworkPolicy", "", text))
    return _known(inventory, ObjectRef("NetworkPolicy", *_namespaced("policy", text)))


def wanted_flows(inventory: Inventory, programs: Programs, choice: Choice) -> Slices[Wanted]:
    """What the switch should hold of it."""
    made = Wanted()
    if not choice.objects:
        if choice.is_everything:
            made.flows = programs.of(choice.node)
            return made
        entries = list(programs.of(choice.node).items())
        for number, (cookie, entry) in enumerate(entries):
            if number % SLICE == 0:
                yield
            if choice.takes(entry[0].table, cookie):
                made.flows[cookie] = entry
        return made
    flows: dict[int, tuple[Flow, Owners]] | None = None
    for ref in choice.objects:
        keys = yield from keys_of(inventory, ref)
        of_object = yield from _of_keys(programs, choice, keys)
        if flows is not None:
            of_object = {each: flows[each] for each in of_object if each in flows}
        flows = of_object
    made.flows = flows or {}
    (*_, last) = choice.objects
    if len(choice.objects) == 1 and last.kind == "Service":
        made.learned_for = _learned_for(inventory, last)
    return made


def _of_keys(
    programs: Programs, choice: Choice, keys: Iterable[Key]
) -> Slices[dict[int, tuple[Flow, Owners]]]:
    both = programs.shared, programs.program(choice.node)
    found: dict[int, tuple[Flow, Owners]] = {}
    for number, key in enumerate(keys):
        if number % SLICE == 0:
            yield
        for program in both:
            if (fragment := program.fragments.get(key)) is not None:
                found |= {
                    entry[0].cookie: entry
                    for entry in fragment.entries
                    if choice.takes(entry[0].table, entry[0].cookie)
                }
    return found


def _learned_for(inventory: Inventory, ref: ObjectRef) -> frozenset[int]:
    service = inventory.view.services.get(f"{ref.namespace}/{ref.name}")
    return frozenset(
        number
        for port in (service.ports if service else ())
        if port.affinity is not None
        for number in port.groups.values()
    )


def shown_groups(
    flows: Iterable[FlowRow], desired: Mapping[int, tuple[Group, Owners]]
) -> Collection[int]:
    """The groups that flows lead to, and those behind these."""
    first = {number for row in flows for number in row.groups}
    behind = {
        part
        for number in first
        if number in desired
        for bucket in desired[number][0].buckets
        if (part := group_behind(bucket)) is not None
    }
    return first | behind


def _table(text: str | None) -> Table | None:
    """Raises `BadQuestion`."""
    if text is None:
        return None
    for table in LAYOUT.tables.values():
        if text.lower() in {table.name.lower(), str(table.number)}:
            return table
    raise BadQuestion(404, f"there is no table {text}; there are {', '.join(LAYOUT.tables)}")


def _cookie(text: str | None) -> tuple[int, int] | None:
    """Value and mask. Raises `BadQuestion`."""
    if text is None:
        return None
    value, slash, mask = text.partition("/")
    try:
        numbers = int(value, 0), int(mask, 0) if slash else ALL_BITS
    except ValueError:
        numbers = -1, 0
    if not all(0 <= number <= ALL_BITS for number in numbers):
        raise BadQuestion(400, f"cookie: {text} is not of the form 0x... or VALUE/MASK")
    return numbers[0] & numbers[1], numbers[1]


def _namespaced(what: str, text: str) -> tuple[str, str]:
    """Raises `BadQuestion`."""
    namespace, _, name = text.partition("/")
    if not namespace or not name or "/" in name:
        raise BadQuestion(400, f"{what}: {text} is not of the form NAMESPACE/NAME")
    return namespace, name
