"""What agents found, as sentences: each with the table, the cookie and the objects of its flow."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from itertools import islice
from typing import Final

from controller.inventory import Inventory
from controller.policies.slices import Slices
from controller.policy_reports.denied import rule_of, sentence_of
from controller.policy_reports.ends import QuestionError, at
from controller.policy_reports.pods import Attached
from controller.references import Reference
from controller.reports.trace import FlowRow, Hop
from controller.service_fields import PROTOCOL_NAMES
from flows import names
from flows.features.protocols import ICMP, LAYER_4_NAMES
from flows.flow import Flow
from flows.pipeline import LAYOUT, Feature
from flows.policy import Direction
from flows.refs import Owners
from flows.view import ClusterView, Node
from flows.ways import is_direct
from wire.documents import DeniedPort
from wire.questions import Packet, Part, Step, SwitchTrace

MOST_EVENTS: Final = 32
"""Sentences about one switch, besides the last."""
_DENIALS: Final = {
    "DeniedFromPod": Direction.FROM_POD,
    "DeniedToPod": Direction.TO_POD,
}
_VERDICTS: Final = {
    "PolicyFromPodVerdict": Direction.FROM_POD,
    "PolicyToPodVerdict": Direction.TO_POD,
}
_DECIDING: Final = ("Forwarding", "PeerWay", "EgressRoute", "Refuse")
"""The last of these that a packet passes decides where it leaves."""
_CHOICES: Final = ("EndpointChoice", "ServiceNat")
_CURES: Final = {
    "SpoofGuard": "the pod would have to send with its own address and MAC",
    "TunnelGuard": "packets from a tunnel need the address of a pod of the node that sends them",
    "PeerGuard": "that pod would have to be on a node that reaches this one without the tunnel",
    "PeerWay": "the destination would have to be the address of a pod",
    "Forwarding": "the destination would have to be the address of a pod, a node or a Service",
    "Egress": "the pod would have to have an egress address of this gateway: see `sluice egress`",
    "EgressRoute": "a node would have to be the gateway of the egress address: see `sluice egress`",
    "EgressReply": "only the gateway of a connection's egress address may send its replies",
    "EndpointChoice": "the Service would have to have a ready endpoint",
    "ConntrackState": "the packet would have to belong to a connection, or open one",
}
"""By the table that drops."""


@dataclass(slots=True)
class Told:
    """What a switch did, in sentences."""

    hops: list[Hop] = field(default_factory=list)
    end: str = ""
    """If it dropped the packet, or has the node's stack refuse it: why."""
    cure: str = ""
    by_policy: bool = False
    """Whether policy dropped it."""


class Explainer:
    """Explains flows by their cookies."""

    def __init__(
        self, inventory: Inventory, flow_of: Callable[[str, int], tuple[Flow, Owners] | None]
    ) -> None:
        """`flow_of` gives the flow of a node that has a cookie, with its owners."""
        self._inventory = inventory
        self._flow_of = flow_of

    def switch(self, node: str, trace: SwitchTrace) -> Slices[Told]:
        """What the switch of a node did with the packet."""
        told = Told()
        rows: list[FlowRow] = []
        left = MOST_EVENTS
        for number, part in enumerate(trace.parts):
            following = trace.parts[number + 1] if number + 1 < len(trace.parts) else None
            for step in part.steps:
                yield
                rows.append(self._row(node, step))
            for text, step in islice(self._events(node, part, following), left):
                yield
                told.hops.append(self._hop(node, text, step, rows))
                rows = []
                left -= 1
        last = trace.parts[-1]
        # The agent may be anybody who has stolen the node.
        final = next((step for step in reversed(last.steps) if not step.depth), last.steps[-1])
        if trace.out_port is None:
            text, told.cure = self._dropped(node, last, final)
            told.end = f"dropped by the switch of node {node}: {text}"
            told.by_policy = self._is_policy(node, final)
            told.hops.append(self._hop(node, f"dropped in table {_table(final)}", final, rows))
            return told
        deciding = [step for step in _steps(trace) if _table(step) in _DECIDING]
        text = self._leaving(node, trace)
        if deciding and _table(deciding[-1]) == "Refuse":
            told.end, told.cure = self._refused(node, trace)
            text = f"{told.end}, so the node's own stack has to refuse the packet"
        hop = self._hop(node, text, deciding[-1] if deciding else final, rows)
        told.hops.append(
            Hop(hop.node, hop.place, text, hop.table, hop.cookie, hop.objects,
                text_of(trace.packet), hop.flows)
        )  # fmt: skip
        return told

    def _events(self, node: str, part: Part, following: Part | None) -> Iterable[tuple[str, Step]]:
        """What else of the part is worth a sentence, with the flow that did it."""
        for step in part.steps:
            table = _table(step)
            if table == "ConntrackState" and part.is_known and "est" in part.connection:
                yield self._established(node, part), step
            elif table in _CHOICES and following is not None and _is_moved(part, following):
                yield self._choice(node, part, following, step), step
            elif table in _VERDICTS and (text := self._accepted(node, part, _VERDICTS[table])):
                yield text, step

    def _established(self, node: str, part: Part) -> str:
        text = "a packet of a connection that the switch knows, which policy does not judge again"
        if "rpl" in part.connection:
            return f"{text}: a reply"
        allowed = [rule for each in Direction if (rule := self._rule(node, part, each))]
        return f"{text}: {' and '.join(allowed)} accepted it" if allowed else text

    def _accepted(self, node: str, part: Part, direction: Direction) -> str:
        rule = self._rule(node, part, direction)
        denied = any(_DENIALS.get(_table(step)) is direction for step in part.steps)
        return f"{rule} accepts it" if rule and not denied else ""

    def _rule(self, node: str, part: Part, direction: Direction) -> str:
        """The rule that decided in one direction, in words."""
        is_from = direction is Direction.FROM_POD
        rule = part.rule_from_pod if is_from else part.rule_to_pod
        pod = self._pod(node, part.packet.source if is_from else part.packet.destination)
        return rule_of(pod, direction, rule) if rule and pod is not None else ""

    def _pod(self, node: str, address: IPv4Address) -> Attached | None:
        for each in self._inventory.view.attachments.get(node, {}).values():
            if each.address == address:
                group = self._inventory.policies.group(node, each.port)
                return Attached(node, each, group)
        return None

    def _choice(self, node: str, part: Part, following: Part, step: Step) -> str:
        owners = self._owners(node, step)
        service = str(owners[0]) if owners else "the Service"
        to = following.packet
        name = self._named(to.destination)
        count = self._endpoints(owners, part.group)
        among = f", one of {count} endpoints" if count > 1 else ""
        return f"{service} sends it to {to.destination}:{to.destination_port} ({name}){among}"

    def _endpoints(self, owners: Owners, group: int) -> int:
        """The number of endpoints that the group of one of these Services chooses from."""
        for owner in owners:
            service = self._inventory.view.services.get(f"{owner.namespace}/{owner.name}")
            for port in service.ports if service else ():
                if group in port.groups.values():
                    return len(port.endpoints)
        return 0

    def _leaving(self, node: str, trace: SwitchTrace) -> str:
        to = trace.packet
        if trace.out_port == names.TUNNEL_OFPORT:
            return f"the switch sends it into the tunnel to {trace.tunnel}"
        if trace.out_port == names.GATEWAY_OFPORT:
            peer = self._direct_peer(node, to.destination)
            if peer:
                return (
                    f"the switch hands it to the node's own stack by {names.GATEWAY_PORT}, which"
                    f" routes it to node {peer} without the tunnel"
                )
            return f"the switch hands it to the node's own stack by {names.GATEWAY_PORT}"
        return f"the switch sends it to {self._named(to.destination, node, trace.out_port)}"

    def _direct_peer(self, node: str, address: IPv4Address) -> str:
        """The node with the pod of this address, if this node reaches it without the tunnel."""
        peer = direct_peer(self._inventory.view, node, address)
        return peer.name if peer else ""

    def _refused(self, node: str, trace: SwitchTrace) -> tuple[str, str]:
        """Why there is no endpoint, and what would have to differ."""
        to = trace.packet
        services = [
            owner
            for step in _steps(trace)
            if _table(step) in ("ServiceChoice", *_CHOICES)
            for owner in self._owners(node, step)
            if owner.kind == "Service"
        ]
        if services:
            return (
                f"{services[-1]} has no endpoint for this client",
                f"{services[-1]} would have to have a ready endpoint: `sluice services"
                f" {services[-1].namespace}/{services[-1].name}` shows what it has",
            )
        port = f"{to.destination}:{to.destination_port}"
        return (
            f"no Service has {port}",
            f"a Service would have to have {port}: `sluice services` shows all",
        )

    def _dropped(self, node: str, part: Part, step: Step) -> tuple[str, str]:
        name = _table(step)
        if (direction := _DENIALS.get(name)) is not None:
            text = self._denied(node, part, direction)
            if text:
                return text, ""
        found = self._flow(node, step)
        if found is None:
            return f"a flow that is not desired, in table {name}", (
                f"`sluice flows {node} --table {name}` shows who altered the switch"
            )
        reason = found[0].reason
        to = part.packet.destination
        if name in ("Forwarding", "PeerWay") and to in self._inventory.view.cluster.pod_range:
            return f"{reason}, and no pod of node {node} has {to}", f"a pod would have to have {to}"
        return reason, _CURES.get(name, "")

    def _is_policy(self, node: str, step: Step) -> bool:
        found = self._flow(node, step)
        return _table(step) in _DENIALS or (
            found is not None and found[0].feature == Feature.POLICY
        )

    def _denied(self, node: str, part: Part, direction: Direction) -> str:
        packet = part.packet
        own, other = packet.source, packet.destination
        if direction is Direction.TO_POD:
            own, other = other, own
        # The register has the rule of the direction that was judged last.
        rule = part.rule_to_pod
        pod = self._pod(node, own)
        if pod is None:
            return ""
        port = packet.destination_port if packet.protocol in LAYER_4_NAMES else None
        return sentence_of(
            self._inventory,
            pod,
            direction,
            other,
            [DeniedPort(packet.protocol, port, rule or None)],
            has_more=False,
        )

    def _named(self, address: IPv4Address, node: str = "", out_port: int | None = None) -> str:
        for each in self._inventory.view.attachments.get(node, {}).values():
            if each.ofport == out_port:
                return f"pod {each.pod}" if each.pod else f"container {each.port}"
        try:
            end = at(self._inventory, address, opens=False)
        except QuestionError:
            return "an address of the Service range"
        kind = "pod " if end.pod else "node " if end.node else ""
        return f"{kind}{end.name}"

    def _flow(self, node: str, step: Step) -> tuple[Flow, Owners] | None:
        return self._flow_of(node, int(step.cookie, 16))

    def _owners(self, node: str, step: Step) -> Owners:
        found = self._flow(node, step)
        return found[1] if found else ()

    def _row(self, node: str, step: Step) -> FlowRow:
        found = self._flow(node, step)
        return FlowRow(
            _table(step),
            step.cookie,
            step.priority,
            tuple(map(Reference.of, found[1])) if found else (),
            found[0].reason if found else "not desired",
            step.depth,
        )  # fmt: skip

    def _hop(self, node: str, text: str, step: Step, rows: list[FlowRow]) -> Hop:
        return Hop(
            node,
            "switch",
            text,
            _table(step),
            step.cookie,
            tuple(map(Reference.of, self._owners(node, step))),
            flows=tuple(rows),
        )


def direct_peer(view: ClusterView, node: str, address: IPv4Address) -> Node | None:
    """The node whose pods have this address, if `node` reaches it without the tunnel."""
    own = view.nodes.get(node)
    if own is None or address not in view.cluster.pod_range:
        return None
    for peer in view.nodes.values():
        if address in peer.pod_cidr:
            return peer if peer is not own and is_direct(own, peer) else None
    return None


def _steps(trace: SwitchTrace) -> Iterator[Step]:
    return (step for part in trace.parts for step in part.steps)


def _table(step: Step) -> str:
    table = LAYOUT.by_number.get(step.table)
    return table.name if table else str(step.table)


def _is_moved(part: Part, following: Part) -> bool:
    one, other = part.packet, following.packet
    return (one.destination, one.destination_port) != (other.destination, other.destination_port)


def text_of(packet: Packet) -> str:
    """`TCP 10.244.1.2:40000 > 10.244.2.3:80`."""
    if packet.protocol in LAYER_4_NAMES:
        name = PROTOCOL_NAMES[packet.protocol]
        return (
            f"{name} {packet.source}:{packet.source_port}"
            f" > {packet.destination}:{packet.destination_port}"
        )
    name = "ICMP" if packet.protocol == ICMP else f"protocol {packet.protocol}"
    return f"{name} {packet.source} > {packet.destination}"
