"""ClusterNetworkPolicy (policy.networking.k8s.io): from the object to a draft.

A rule of which any part is invalid or unknown fails closed, as the API demands: Accept matches
nothing, Deny and Pass deny everything. If the subject is invalid, the policy is for all pods that
it may mean: there Accept matches nothing, and Pass denies what it matches.
"""

from collections.abc import Iterable
from typing import Final

from controller.policies.blocks import Block, is_ipv6, read_range, union
from controller.policies.drafts import Peers, PolicyDraft, Rule, Tier, peers_of
from controller.policies.port_sets import PORT_NAME, NamedPort, Ports, merged
from controller.policies.port_sets import read_range as read_ports
from controller.policies.selectors import EVERYTHING, Selection, read_selector
from controller.policies.slices import Slices
from controller.service_fields import PROTOCOLS
from controller.sources.policy_objects import (
    ClusterNetworkPolicyObject,
    ClusterPolicyPeer,
    ClusterPolicyProtocol,
    ClusterPolicyRule,
    ClusterPolicySubject,
    NamespacedPods,
    TransportMatch,
)
from flows.policy import PolicyAction, PortRange
from flows.refs import ObjectRef
from settings.plain_yaml import shown

_TIERS: Final = {"Admin": Tier.ADMIN, "Baseline": Tier.BASELINE}
_ACTIONS: Final = {
    "Accept": PolicyAction.ACCEPT,
    "Deny": PolicyAction.DENY,
    "Pass": PolicyAction.PASS,
}
PRIORITIES: Final = range(1_001)


def read_cluster_policy(given: ClusterNetworkPolicyObject) -> Slices[PolicyDraft]:
    """The draft of a ClusterNetworkPolicy."""
    spec = given.spec
    problems: list[str] = []
    tier = _TIERS.get(spec.tier)
    if tier is None:
        problems.append(f"spec.tier: {shown(spec.tier)} is none of {', '.join(_TIERS)}")
    if spec.priority not in PRIORITIES:
        problems.append(f"spec.priority: {spec.priority} is not from 0 to {PRIORITIES[-1]}")
    subject, is_exact = _subject(spec.subject, problems)
    rules: list[tuple[Rule, ...] | None] = []
    for name, given_rules in (("egress", spec.egress), ("ingress", spec.ingress)):
        found: list[Rule] = []
        for number, each in enumerate(given_rules or ()):
            yield
            field = f"spec.{name}[{number}]"
            peers = each.to if name == "egress" else each.from_
            rule = yield from _rule(number, each, peers, field, problems, is_known=tier is not None)
            if rule is not None and not is_exact:
                rule = _closed(rule)
            if rule is not None:
                found.append(rule)
        rules.append(tuple(found) or None)
    return PolicyDraft(
        ObjectRef("ClusterNetworkPolicy", "", given.metadata.name),
        Tier.ADMIN if tier is None else tier,
        min(max(spec.priority, 0), PRIORITIES[-1]),
        subject,
        rules[0],
        rules[1],
        tuple(problems),
    )


def _closed(rule: Rule) -> Rule | None:
    """What is left of a rule if it is not known which pods it is for."""
    if rule.action is PolicyAction.ACCEPT:
        return None
    return rule._replace(action=PolicyAction.DENY)


def _subject(given: ClusterPolicySubject, problems: list[str]) -> tuple[Selection, bool]:
    """The pods that a policy is for, and whether these are exactly the pods that it means."""
    field = "spec.subject"
    if (given.namespaces is None) == (given.pods is None):
        what = "neither namespaces nor pods" if given.pods is None else "both namespaces and pods"
        problems.append(f"{field}: it has {what}; the policy is for all pods")
        return Selection(EVERYTHING, EVERYTHING), False
    before = len(problems)
    found = (
        Selection(read_selector(given.namespaces, f"{field}.namespaces", problems)[0], EVERYTHING)
        if given.pods is None
        else _pods(given.pods, f"{field}.pods", problems)
    )
    return found, len(problems) == before


def _pods(given: NamespacedPods, field: str, problems: list[str]) -> Selection:
    return Selection(
        read_selector(given.namespace_selector, f"{field}.namespaceSelector", problems)[0],
        read_selector(given.pod_selector, f"{field}.podSelector", problems)[0],
    )


def _rule(
    number: int,
    given: ClusterPolicyRule,
    given_peers: Iterable[ClusterPolicyPeer] | None,
    field: str,
    problems: list[str],
    *,
    is_known: bool,
) -> Slices[Rule | None]:
    """A rule; None: it fails closed and matches nothing."""
    bad: list[str] = []
    action = _ACTIONS.get(given.action)
    if action is None:
        bad.append(f"{field}.action: {shown(given.action)} is none of {', '.join(_ACTIONS)}")
    peers = yield from _peers(given_peers, f"{field}.{_peers_field(field)}", bad, problems)
    ports = _ports(given.protocols, f"{field}.protocols", bad)
    if not bad and is_known and action is not None:
        return Rule(number, action, peers, ports)
    problems += bad
    if action is PolicyAction.ACCEPT:
        problems.append(f"{field}: the rule matches nothing")
        return None
    problems.append(f"{field}: the rule denies everything")
    return Rule(number, PolicyAction.DENY, None, None)


def _peers_field(field: str) -> str:
    return "to" if field.startswith("spec.egress") else "from"


def _peers(
    given: Iterable[ClusterPolicyPeer] | None, field: str, bad: list[str], problems: list[str]
) -> Slices[Peers]:
    """The peers of a rule. What is not supported is added to `bad`."""
    selections: list[Selection] = []
    blocks: list[Block] = []
    if not given:
        bad.append(f"{field}: it names no peer")
    for number, peer in enumerate(given or ()):
        yield
        at = f"{field}[{number}]"
        kinds = [name for name in peer.__struct_fields__ if getattr(peer, name) is not None]
        if len(kinds) != 1:
            bad.append(f"{at}: a peer has exactly one field that is known here, not {len(kinds)}")
        elif peer.namespaces is not None:
            namespaces = read_selector(peer.namespaces, f"{at}.namespaces", bad)[0]
            selections.append(Selection(namespaces, EVERYTHING))
        elif peer.pods is not None:
            selections.append(_pods(peer.pods, f"{at}.pods", bad))
        elif peer.networks is not None:
            blocks += _networks(peer.networks, f"{at}.networks", bad, problems)
        else:
            unsupported = "domainNames" if peer.domain_names is not None else "nodes"
            bad.append(f"{at}.{unsupported}: this kind of peer is not supported")
    return peers_of(selections, (yield from union(blocks)))


def _networks(
    given: Iterable[str], field: str, bad: list[str], problems: list[str]
) -> Iterable[Block]:
    for number, text in enumerate(given):
        at = f"{field}[{number}]"
        if is_ipv6(text):
            problems.append(f"{at}: {text} is not IPv4: no address of this cluster is in it")
            continue
        found = read_range(text, at, problems)
        if found is None:
            bad.append(f"{at}: it is not a range of addresses")
        else:
            yield Block(found)


def _ports(
    given: Iterable[ClusterPolicyProtocol] | None, field: str, bad: list[str]
) -> Ports | None:
    """The ports of a rule; None, all of them, if it names none."""
    if given is None:
        return None
    ranges: list[PortRange] = []
    named: set[NamedPort] = set()
    if not given:
        bad.append(f"{field}: it names no protocol")
    for number, each in enumerate(given):
        at = f"{field}[{number}]"
        kinds = [name for name in each.__struct_fields__ if getattr(each, name) is not None]
        if len(kinds) != 1:
            bad.append(f"{at}: it has exactly one field that is known here, not {len(kinds)}")
        elif each.destination_named_port is not None:
            if PORT_NAME.fullmatch(each.destination_named_port):
                named.add(NamedPort(each.destination_named_port, None))
            else:
                text = shown(each.destination_named_port)
                bad.append(f"{at}.destinationNamedPort: {text} is not the name of a port")
        else:
            found = _transport(kinds[0], getattr(each, kinds[0]), f"{at}.{kinds[0]}", bad)
            if found is not None:
                ranges.append(found)
    return Ports(merged(ranges), tuple(sorted(named, key=str)))


def _transport(name: str, given: TransportMatch, field: str, bad: list[str]) -> PortRange | None:
    port, protocol = given.destination_port, PROTOCOLS[name.upper()]
    at = f"{field}.destinationPort"
    if port is None or (port.number is None) == (port.range is None):
        bad.append(f"{at}: it needs either number or range")
        return None
    if port.range is not None:
        fields = f"{at}.range.start", f"{at}.range.end"
        return read_ports(protocol, port.range.start, port.range.end, fields, bad)
    number = port.number or 0
    return read_ports(protocol, number, number, (f"{at}.number", f"{at}.number"), bad)
