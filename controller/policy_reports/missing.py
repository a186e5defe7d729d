"""What keeps a rule from matching: a label, a namespace, a range of addresses, a port."""

from collections.abc import Iterator
from typing import Final

from controller.inventory import Inventory
from controller.policies.drafts import Peers, Rule
from controller.policies.port_sets import NamedPort
from controller.policies.selectors import NAMESPACE_NAME, Labels, Requirement, Selection
from controller.policy_reports import words
from controller.policy_reports.ends import End
from controller.policy_reports.pods import namespace_labels
from controller.service_fields import PROTOCOL_NAMES

MOST_LOOKS: Final = 5_000
"""Selectors of one question that are compared with the labels of the other end."""


class Missing:
    """Says what one end would need to be matched by rules."""

    def __init__(self, inventory: Inventory, peer: End, target: End, protocol: int) -> None:
        """`target` is the end that accepts the connection; `peer` is what rules look at."""
        self._peer = peer
        self._target = target
        self._protocol = protocol
        self._looks = 0
        pod = peer.pod
        group = pod.group if pod else None
        self._is_peer = group is not None and group.key.is_peer
        self._labels: Labels = dict(group.key.labels) if group else {}
        self._namespace = group.key.namespace if group else ""
        self._of_namespace = namespace_labels(inventory, self._namespace) if group else {}

    def of_peers(self, rule: Rule) -> tuple[str, ...]:
        """Why the other end is no peer of a rule."""
        peers, name = rule.peers, self._peer.name
        if not peers:
            return ("the rule names no valid peer",)
        if self._peer.pod is None and not peers.blocks:
            address = self._peer.address
            return (f"{name} ({address}) is no pod, and the rule has only selectors of pods",)
        nearest: tuple[str, ...] | None = None
        if self._is_peer:
            looks = peers.selections[: MOST_LOOKS - self._looks]
            self._looks += len(looks)
            found = (tuple(self._of_selection(selection)) for selection in looks)
            nearest = min(found, key=len, default=None)
        elif self._peer.pod is not None and not peers.blocks:
            return (f"{name} is a mirror pod or no pod of Kubernetes: selectors do not match it",)
        if nearest is None and peers.blocks:
            return (self._of_blocks(peers),)
        return nearest or ("the rule has too many peers to say what is missing",)

    def _of_blocks(self, peers: Peers) -> str:
        address = self._peer.address
        inside = [each for each in peers.blocks if address in each.network]
        if inside:
            longest = max(inside, key=lambda each: each.network.prefixlen)
            return f"address: {address} is in {longest.network}, which the rule excepts"
        return f"address: {address} is not in {' or '.join(words.of_blocks(peers.blocks))}"

    def _of_selection(self, selection: Selection) -> Iterator[str]:
        for requirement in selection.namespaces:
            if requirement.matches(self._of_namespace):
                continue
            if requirement.key == NAMESPACE_NAME:
                names = ", ".join(sorted(requirement.values))
                not_in = "one other than" if requirement.operator == "NotIn" else "namespace"
                yield f"namespace: {self._peer.name} is not in {not_in} {names}"
            else:
                of = f"namespace {self._namespace}"
                yield f"namespace label: {_label(of, requirement, self._of_namespace)}"
        for requirement in selection.pods:
            if not requirement.matches(self._labels):
                yield f"label: {_label(f'pod {self._peer.name}', requirement, self._labels)}"

    def of_ports(self, rule: Rule) -> tuple[str, ...]:
        """Why the ports of a rule do not hold the port of the connection."""
        port = self._target.port
        if port is None:
            return ("port: only a rule without ports matches a protocol that has no ports",)
        asked = f"{port}/{PROTOCOL_NAMES[self._protocol]}"
        given = rule.ports
        if given is None:
            return ()
        texts = [words.of_range(each) for each in given.ranges]
        texts += [self._named(each) for each in given.named]
        return (f"port: the rule has {', '.join(texts) or 'no valid port'}, not {asked}",)

    def _named(self, port: NamedPort) -> str:
        """A named port, and what it is on the pod that accepts the connection."""
        name = words.of_named(port)
        group = self._target.pod.group if self._target.pod else None
        numbers = [
            str(number)
            for each, number in (group.key.named_ports if group else ())
            if each.name == port.name and port.protocol in {None, each.protocol}
        ]
        if not numbers:
            return f"{name} (which {self._target.name} does not have)"
        return f"{name} ({', '.join(numbers)} on {self._target.name})"


def _label(of: str, requirement: Requirement, labels: Labels) -> str:
    """`pod shop/a has app=front, the rule wants app=web`."""
    value = labels.get(requirement.key)
    has = f"no label {requirement.key}" if value is None else f"{requirement.key}={value}"
    return f"{of} has {has}, and the rule wants {words.of_requirement(requirement)}"
