"""Policies in words: selectors, peers, ports and rules."""

from collections.abc import Iterable, Iterator
from typing import Final

from controller.policies.drafts import Peers, Tier
from controller.policies.port_sets import NamedPort, Ports
from controller.policies.selectors import NAMESPACE_NAME, Requirement, Selection, Selector
from controller.service_fields import PROTOCOL_NAMES
from flows.policy import Direction, PeerBlock, PolicyAction, PortRange

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
MOST_TEXTS: Final = 1_000
"""Peers of one rule that a report tells; the object itself has all."""
MOST_HOLES: Final = 10
"""Parts of a block that are excepted and named."""
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
    # From left to right, the larger ones first: what contains a block is on the stack.
    around: list[PeerBlock] = []
    holes: dict[PeerBlock, list[str]] = {}
    for each in sorted(blocks, key=lambda each: each.network):
        while around and each.network.network_address > around[-1].network.broadcast_address:  # type: ignore[operator]
            around.pop()
        if each.is_member:
            holes[each] = []
        elif within := [block for block in around if block.is_member][-1:]:
            holes[within[0]].append(str(each.network))
        around.append(each)
    for block, parts in holes.items():
        yield f"{block.network}{' but ' if parts else ''}{_some(parts)}"


def of_peers(given: Peers | None, own: str) -> tuple[str, ...]:
    """The peers of a rule, each as one text; of very many the first."""
    if given is None:
        return (EVERYBODY,)
    found = [of_selection(each, own) for each in given.selections[:MOST_TEXTS]]
    found += of_blocks(given.blocks[: MOST_TEXTS - len(found)])
    more = len(given.selections) + len(given.blocks) - MOST_TEXTS
    return (*found, *([f"{more} more"] if more > 0 else [])) or (NOBODY,)


def _some(texts: list[str]) -> str:
    more = len(texts) - MOST_HOLES
    return ", ".join(texts[:MOST_HOLES]) + (f" and {more} more" if more > 0 else "")


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


def of_ports(given: Ports | None) -> tuple[str, ...]:
    """The ports of a rule, each as one text."""
    if given is None:
        return (EVERY_PORT,)
    return (*map(of_range, given.ranges), *map(of_named, given.named)) or ("no port",)
