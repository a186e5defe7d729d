"""NetworkPolicy (networking.k8s.io/v1): from the object to a draft.

What is invalid is left out and reported; the rest of the policy is in force. Nothing is left out in
a way that lets more packets pass: an invalid peer or port matches nothing, and where the selector
of the policy is invalid, the policy isolates all pods that it may mean and accepts nothing. A type
that is unknown may mean either direction.
"""

from collections.abc import Collection, Iterable
from typing import Final

from controller.policies.blocks import SLICE, Block, read_block, union
from controller.policies.drafts import Peers, PolicyDraft, Rule, Tier, peers_of
from controller.policies.port_sets import (
    MOST_MASKS,
    MOST_PORTS,
    PORT_NAME,
    NamedPort,
    Ports,
    mask_count,
    merged,
    read_protocol,
    read_range,
)
from controller.policies.selectors import (
    MOST_SELECTORS,
    Selection,
    Selector,
    in_namespace,
    read_selector,
)
from controller.policies.slices import Slices
from controller.sources.policy_objects import NetworkPolicyObject, PolicyPeer, PolicyPort
from flows.policy import PolicyAction, PortRange
from flows.refs import ObjectRef
from settings.plain_yaml import shown

TYPES = ("Ingress", "Egress")
MOST_RULES: Final = 2_000
"""Of one policy in one direction. A packet can try some of them only (`MOST_RESUBMITS`)."""


def read_network_policy(given: NetworkPolicyObject) -> Slices[PolicyDraft]:
    """The draft of a NetworkPolicy."""
    metadata, spec = given.metadata, given.spec
    problems: list[str] = []
    selectors: list[str] = []
    pods, is_valid = read_selector(spec.pod_selector, "spec.podSelector", problems)
    types = set(spec.policy_types or (TYPES if spec.egress else TYPES[:1]))
    for number, each in enumerate(spec.policy_types or ()):
        if each not in TYPES:
            problems.append(
                f"spec.policyTypes[{number}]: {shown(each)} is none of {', '.join(TYPES)};"
                " the policy is for both"
            )
            types = set(TYPES)
    own = in_namespace(metadata.namespace)
    to_pod: list[Rule] = []
    from_pod: list[Rule] = []
    for name, rules in (("ingress", spec.ingress), ("egress", spec.egress)):
        if len(rules or ()) > MOST_RULES:
            problems.append(f"spec.{name}[{MOST_RULES}]: {MOST_RULES} rules are the most")
    if not is_valid:
        problems.append("it accepts nothing, because spec.podSelector is invalid")
    else:
        if "Ingress" in types:
            for number, rule in enumerate((spec.ingress or ())[:MOST_RULES]):
                field = f"spec.ingress[{number}]"
                peers = yield from _peers(rule.from_, own, f"{field}.from", problems, selectors)
                ports = yield from _ports(rule.ports, f"{field}.ports", problems)
                to_pod.append(Rule(number, PolicyAction.ACCEPT, peers, ports))
        if "Egress" in types:
            for number, out in enumerate((spec.egress or ())[:MOST_RULES]):
                field = f"spec.egress[{number}]"
                peers = yield from _peers(out.to, own, f"{field}.to", problems, selectors)
                ports = yield from _ports(out.ports, f"{field}.ports", problems)
                from_pod.append(Rule(number, PolicyAction.ACCEPT, peers, ports))
    return PolicyDraft(
        ObjectRef("NetworkPolicy", metadata.namespace, metadata.name),
        Tier.POLICY,
        0,
        Selection(own, pods),
        tuple(from_pod) if "Egress" in types else None,
        tuple(to_pod) if "Ingress" in types else None,
        tuple(problems),
    )


def _peers(
    given: Iterable[PolicyPeer] | None,
    own: Selector,
    field: str,
    problems: list[str],
    selectors: list[str],
) -> Slices[Peers | None]:
    """The peers of a rule; None, everybody, if it names none.

    `selectors` has the fields of all peers with selectors that were read so far.
    """
    if not given:
        return None
    selections: list[Selection] = []
    blocks: list[Block] = []
    for number, peer in enumerate(given):
        if number % SLICE == SLICE - 1:
            yield
        at = f"{field}[{number}]"
        if peer.ip_block is not None:
            if peer.pod_selector is not None or peer.namespace_selector is not None:
                problems.append(f"{at}: it has an ipBlock and a selector; it matches nothing")
                continue
            block = yield from read_block(
                peer.ip_block.cidr, peer.ip_block.except_ or (), f"{at}.ipBlock", problems
            )
            if block is not None:
                blocks.append(block)
            continue
        if (found := _selection(peer, own, at, problems, selectors)) is not None:
            selections.append(found)
    return peers_of(selections, (yield from union(blocks)))


def _selection(
    peer: PolicyPeer, own: Selector, field: str, problems: list[str], selectors: list[str]
) -> Selection | None:
    """The pods that a peer with selectors means; None: it matches nothing."""
    if peer.pod_selector is None and peer.namespace_selector is None:
        problems.append(f"{field}: it has no selector and no ipBlock; it matches nothing")
        return None
    if len(selectors) >= MOST_SELECTORS:
        problems.append(f"{field}: {MOST_SELECTORS} peers with selectors are the most of a policy")
        return None
    selectors.append(field)
    pods, pods_valid = read_selector(peer.pod_selector, f"{field}.podSelector", problems)
    namespaces, namespaces_valid = own, True
    if peer.namespace_selector is not None:
        namespaces, namespaces_valid = read_selector(
            peer.namespace_selector, f"{field}.namespaceSelector", problems
        )
    return Selection(namespaces, pods) if pods_valid and namespaces_valid else None


def _ports(
    given: Collection[PolicyPort] | None, field: str, problems: list[str]
) -> Slices[Ports | None]:
    """The ports of a rule; None, all of them, if it names none."""
    if not given:
        return None
    if len(given) > MOST_PORTS:
        problems.append(f"{field}: {MOST_PORTS} are the most; they match nothing")
        return Ports()
    ranges: list[PortRange] = []
    named: set[NamedPort] = set()
    for number, port in enumerate(given):
        if number % SLICE == SLICE - 1:
            yield
        found = _port(port, f"{field}[{number}]", problems)
        if isinstance(found, PortRange):
            ranges.append(found)
        elif found is not None:
            named.add(found)
    whole = merged(ranges)
    if (masks := mask_count(whole)) > MOST_MASKS:
        problems.append(
            f"{field}: they take {masks} flows, and {MOST_MASKS} is the most; they match nothing"
        )
        whole = ()
    return Ports(whole, tuple(sorted(named)))


def _port(given: PolicyPort, field: str, problems: list[str]) -> PortRange | NamedPort | None:
    """A port of a rule; None: it is invalid."""
    protocol = read_protocol(given.protocol, f"{field}.protocol", problems)
    if protocol is None:
        return None
    if isinstance(given.port, int):
        last = given.port if given.end_port is None else given.end_port
        return read_range(
            protocol, given.port, last, (f"{field}.port", f"{field}.endPort"), problems
        )
    if given.end_port is not None:
        problems.append(f"{field}.endPort: it needs a port that is a number")
        return None
    if given.port is None:
        return PortRange(protocol)
    if not PORT_NAME.fullmatch(given.port):
        problems.append(f"{field}.port: {shown(given.port)} is not the name of a port")
        return None
    return NamedPort(given.port, protocol)
