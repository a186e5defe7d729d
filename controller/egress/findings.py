"""What is wrong with an EgressAddress, beside what it says itself."""

from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address

from controller.egress.rules import Rule
from flows.names import ENCAPSULATION_OVERHEAD
from flows.view import Node, egress_number
from flows.ways import Mode


def problems_of(
    rule: Rule, nodes: Mapping[str, Node], hosts: AbstractSet[str], *, is_mtu_lowered: bool
) -> Iterable[str]:
    """The sentences.

    `nodes` are the accepted ones, `hosts` those with the address on an interface. `is_mtu_lowered`:
    whether somebody has set the largest MTU of pods.
    """
    if not rule.candidates:
        yield "spec.gateways selects no Node that takes part"
    if hosts:
        yield (
            f"spec.address: the host of Node {min(hosts)} has {rule.address} on an interface, so"
            " replies to pods would end there"
        )
    whole = [each for each in rule.nodes if each in nodes and nodes[each].mode is Mode.NO_ENCAP]
    if whole and not is_mtu_lowered:
        yield (
            f"pods of Node {min(whole)}, whose mode is {Mode.NO_ENCAP}, may send packets that do"
            " not fit into the tunnel to the gateway: set cluster.mtu to"
            f" {ENCAPSULATION_OVERHEAD} less than the network carries"
        )
    if rule.hidden:
        group, other = min(
            rule.hidden.items(), key=lambda item: (item[0].key.namespace, item[0].key)
        )
        if pods := sorted(each.pod for each in group.attachments.values()):
            yield (
                f"it selects pods of EgressAddress {other.draft.name}, which is older and keeps"
                f" them, as {pods[0]}"
            )


def taken(address: IPv4Address, rules: Iterable[Rule]) -> Iterable[str]:
    """Why an EgressAddress that is not used cannot have this address, beside those with `rules`."""
    for other in rules:
        if other.address == address:
            yield f"spec.address: {address} is EgressAddress {other.draft.name}'s already"
        elif egress_number(other.address) == egress_number(address):
            yield (
                f"spec.address: {address} cannot be told from {other.address} of EgressAddress"
                f" {other.draft.name}: their last 24 bits are the same"
            )
