"""What policy denied, in one sentence: both ends, the ports, and why."""

from collections.abc import Iterable, Sequence
from typing import Final

from controller.inventory import Inventory
from controller.policies.drafts import Tier
from controller.policies.walks import PolicyState
from controller.policy_reports import words
from controller.policy_reports.ends import QuestionError, at
from controller.policy_reports.pods import Attached
from controller.policy_reports.verdict import isolated_by
from controller.service_fields import PROTOCOL_NAMES
from flows.family import IPAddress
from flows.features.protocols import ICMP
from flows.policy import Direction, PolicyAction
from flows.view import Attachment
from wire.documents import DeniedPort
from wire.sentences import readable

MOST_POLICIES: Final = 3
"""Policies that the sentence names."""
REFUSED: Final = "the policies of the pod are refused, so nothing may pass"


def sentence_of(
    inventory: Inventory,
    pod: Attached,
    direction: Direction,
    other_end: IPAddress,
    ports: Sequence[DeniedPort],
    *,
    has_more: bool,
) -> str:
    """`policy to the pod denied 80/TCP from pod x/a (10.244.1.5) to pod x/b (10.244.1.6): WHY`.

    `has_more`: further ports were denied. Looks at each Node, once or twice.
    """
    is_from_pod = direction is Direction.FROM_POD
    own = _named(pod.attachment)
    other = _name_of(inventory, other_end, opens=not is_from_pod)
    ends = f"from {own} to {other}" if is_from_pod else f"from {other} to {own}"
    policies = pod.policies(direction)
    otherwise = _without_rule(inventory, pod, direction, policies)
    rules = {} if otherwise == REFUSED else _denying(policies, direction, ports)
    by_reason: dict[str, list[str]] = {}
    for each in sorted(ports, key=lambda each: (each.protocol, each.port or 0)):
        reason = otherwise if each.rule is None else rules.get(each.rule, otherwise)
        by_reason.setdefault(reason, []).append(_port(each))
    listed = {reason: ", ".join(dict.fromkeys(found)) for reason, found in by_reason.items()}
    more = " and others" if has_more else ""
    if len(listed) == 1:
        ((why, what),) = listed.items()
        text = f"{what}{more} {ends}: {why}"
    else:
        whys = "; ".join(f"{what}: {why}" for why, what in listed.items())
        text = f"several ports {ends}: {whys}{'; and others' if has_more else ''}"
    return readable(f"policy {words.DIRECTIONS[direction]} denied {text}")


def rule_of(pod: Attached, direction: Direction, rule: int) -> str:
    """`spec.egress[0] of NetworkPolicy x/a`; empty: no policy of the pod has a rule of this id."""
    for policy in pod.policies(direction):
        for state in policy.rules.get(direction, ()):
            if state.id == rule:
                return f"{words.rule_field(direction, state.rule.number)} of {policy.ref}"
    return ""


def _denying(
    policies: Iterable[PolicyState], direction: Direction, ports: Iterable[DeniedPort]
) -> dict[int, str]:
    """What the rules say that deny these ports, by their ids. Unknown ids are left out."""
    wanted = {each.rule for each in ports if each.rule is not None}
    return {
        state.id: f"{words.rule_field(direction, state.rule.number)} of {policy.ref} denies it"
        for policy in (policies if wanted else ())
        for state in policy.rules.get(direction, ())
        if state.id in wanted and state.rule.action is PolicyAction.DENY
    }


def _without_rule(
    inventory: Inventory, pod: Attached, direction: Direction, policies: Iterable[PolicyState]
) -> str:
    """Why something is denied that no rule denies."""
    walks = pod.walks(inventory, direction)
    if walks is not None and walks.refused:
        return REFUSED
    isolating = [each for each in policies if each.draft.tier is Tier.POLICY]
    if not isolating:
        return "the policies have changed since"
    if len(isolating) > MOST_POLICIES:
        return f"{len(isolating)} policies isolate the pod, and no rule accepts this connection"
    return isolated_by(isolating)


def _name_of(inventory: Inventory, address: IPAddress, *, opens: bool) -> str:
    try:
        end = at(inventory, address, opens=opens)
    except QuestionError:
        for service in inventory.view.services.values():
            for port in service.ports:
                if any(each.address == address for each in port.frontends):
                    return f"Service {service.namespace}/{service.name} ({address})"
        return str(address)
    if end.pod is not None:
        return _named(end.pod.attachment)
    return f"node {end.name} ({address})" if end.node is not None else f"{address} ({end.name})"


def _named(attachment: Attachment) -> str:
    kind = "pod" if attachment.pod else "container"
    return f"{kind} {attachment.pod or attachment.port} ({attachment.address})"


def _port(given: DeniedPort) -> str:
    known = {**PROTOCOL_NAMES, ICMP: "ICMP"}
    protocol = known.get(given.protocol, f"protocol {given.protocol}")
    return protocol if given.port is None else f"{given.port}/{protocol}"
