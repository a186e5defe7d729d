"""Policies in words: selectors, peers, ports and rules."""

from collections.abc import Iterable, Iterator
from typing import Final

from controller.policies.drafts import Peers, PolicyDraft, Rule, Tier
from controller.policies.port_sets import NamedPort, Ports
from controller.policies.selectors import NAMESPACE_NAME, Requirement, Selection, Selector
from controller.service_fields import PROTOCOL_NAMES
from flows.policy import Direction, PeerBlock, PolicyAction, PortRange
from flows.refs import ObjectRef

EVERY_PORT: Final = "every port and protocol"
EVERYBODY: Final = "everybody"
NOBODY: Final = "nobody"
DIRECTIONS: Final = {Direction.FROM_POD: "from the pod", Direction.TO_POD: "to the pod"}
ACTIONS: Final = {
    PolicyAction.ACCEPT: "accept",
    PolicyAction.DENY: "deny",
    PolicyAction.PASS: "pass",
}
TIERS: Final = {Tier.ADMIN: "Admin", Tier.POLICY: "NetworkPolicy", Tier.BASELINE: "Baseline"}
_FIELDS: Final = {Direction.FROM_POD: "egress", Direction.TO_POD: "ingress"}


def rule_field(direction: Direction, number: int) -> str:
    """`spec.ingress[0]`: the field of a rule in its policy."""
    return f"spec.{_FIELDS[direction]}[{number}]"


def of_requirement(given: Requirement) -> str:
    """`app=web`, `app in (a, b)`, `app`, `!app`: as kubectl writes it."""
    if given.operator == "In" and len(given.values) == 1:
        return f"{given.key}={next(iter(given.values))}"
    return str(given)


def of_selector(given: Selector) -> str:
    """All requirements; empty for the selector that matches everything."""
    return ", ".join(map(of_requirement, given))


def of_namespaces(given: Selector, own: str) -> str:
    """`in its own namespace`, `in namespace x`, `in namespaces with team=a`, `in every namespace`.

    `own` is the namespace of the policy.
    """
    if not given:
        return "in every namespace"
    if len(given) == 1 and given[0].key == NAMESPACE_NAME and given[0].operator == "In":
        names = sorted(given[0].values)
        if names == [own]:
            return f"in namespace {own}"
        return f"in namespace{'s' * (len(names) > 1)} {', '.join(names)}"
    return f"in namespaces with {of_selector(given)}"


def of_selection(given: Selection, own: str) -> str:
    """`pods with app=web in namespace shop`."""
    pods = f"pods with {of_selector(given.pods)}" if given.pods else "all pods"
    return f"{pods} {of_namespaces(given.namespaces, own)}"


def of_blocks(blocks: Iterable[PeerBlock]) -> Iterator[str]:
    """`192.0.2.0/24 but 192.0.2.128/25`, for each block."""
    given = sorted(blocks, key=lambda each: each.network.prefixlen)
    parts: dict[PeerBlock, list[PeerBlock]] = {each: [] for each in given if each.is_member}
    members = sorted(parts, key=lambda each: -each.network.prefixlen)
    for each in given:
        if not each.is_member:
            around = (m for m in members if m.network.supernet_of(each.network))  # type: ignore[arg-type]
            if (within := next(around, None)) is not None:
                parts[within].append(each)
    for block, holes in parts.items():
        but = f" but {', '.join(str(each.network) for each in holes)}" if holes else ""
        yield f"{block.network}{but}"


def of_peers(given: Peers | None, own: str) -> list[str]:
    """The peers of a rule, each as one text."""
    if given is None:
        return [EVERYBODY]
    found = [of_selection(each, own) for each in given.selections]
    found += of_blocks(given.blocks)
    return found or [NOBODY]


def of_range(given: PortRange) -> str:
    """`80/TCP`, `1000-2000/UDP`, `all TCP`."""
    protocol = PROTOCOL_NAMES.get(given.protocol, str(given.protocol))
    if given.first is None:
        return f"all {protocol}"
    ports = str(given.first) if given.first == given.last else f"{given.first}-{given.last}"
    return f"{ports}/{protocol}"


def of_named(given: NamedPort) -> str:
    """`port http/TCP`."""
    protocol = "" if given.protocol is None else f"/{PROTOCOL_NAMES[given.protocol]}"
    return f"port {given.name}{protocol}"


def of_ports(given: Ports | None) -> list[str]:
    """The ports of a rule, each as one text."""
    if given is None:
        return [EVERY_PORT]
    found = [*map(of_range, given.ranges), *map(of_named, given.named)]
    return found or ["no port"]


def of_rule(rule: Rule, direction: Direction, ref: ObjectRef) -> str:
    """`accept from pods with app=web in namespace shop at 80/TCP`."""
    way = "from" if direction is Direction.TO_POD else "to"
    peers = " or ".join(of_peers(rule.peers, ref.namespace))
    return f"{ACTIONS[rule.action]} {way} {peers} at {', '.join(of_ports(rule.ports))}"


def of_policy(draft: PolicyDraft) -> str:
    """`NetworkPolicy shop/web`, `ClusterNetworkPolicy strict (Admin, priority 10)`."""
    if draft.tier is Tier.POLICY:
        return str(draft.ref)
    return f"{draft.ref} ({TIERS[draft.tier]}, priority {draft.priority})"
