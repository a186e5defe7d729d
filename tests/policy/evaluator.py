"""What the Kubernetes API says about a packet: an evaluator of policy, written from its text alone.

It reads objects as they are in manifests (`networking.k8s.io/v1` NetworkPolicy, and
`policy.networking.k8s.io/v1beta1` ClusterNetworkPolicy, Pod, Namespace, Node), and decides packet
by packet. It is naive on purpose, and shares no code with what it checks: no flows, sets or ids.
Decisions that the API leaves open are in docs/decisions.md.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from ipaddress import IPv4Address, IPv4Network
from typing import Any, NamedTuple

Object = Mapping[str, Any]
"""A Kubernetes object, or a part of one, as in YAML."""

PROTOCOLS = ("TCP", "UDP", "SCTP")
"""The protocols that have ports."""
ACCEPT, DENY, PASS = "Accept", "Deny", "Pass"
NAME_LABEL = "kubernetes.io/metadata.name"
MIRROR = "kubernetes.io/config.mirror"


class Attachment(NamedTuple):
    """A sandbox that is attached to the network of a node now."""

    pod: str
    """`NAMESPACE/NAME`; empty: a container without a Pod."""
    node: str
    address: str


class End(NamedTuple):
    """One end of a packet: an attached pod, the network stack of a node, or an address outside."""

    address: str
    pod: str = ""
    """`NAMESPACE/NAME`; empty: not an attached pod."""
    node: str = ""
    """Of a pod: where it runs. Without a pod: the node whose own stack this is."""


class Packet(NamedTuple):
    """The first packet of a connection."""

    source: End
    destination: End
    protocol: str
    """TCP, UDP, SCTP, or any other, which has no ports: ICMP."""
    port: int | None = None
    """The destination port; None: there is none, as in ICMP, or it is unknown, as in fragments."""


@dataclass
class Cluster:
    """The objects of a cluster, and what is attached."""

    objects: list[dict[str, Any]]
    attachments: list[Attachment]
    by_kind: dict[str, list[Object]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_kind = {}
        for each in self.objects:
            self.by_kind.setdefault(each["kind"], []).append(each)

    @cached_property
    def pods(self) -> dict[str, Object]:
        """By `NAMESPACE/NAME`."""
        return {_full_name(pod): pod for pod in self.by_kind.get("Pod", ())}

    @cached_property
    def nodes(self) -> dict[str, Object]:
        return {node["metadata"]["name"]: node for node in self.by_kind.get("Node", ())}

    def namespace_labels(self, name: str) -> dict[str, str]:
        """The API server gives every Namespace the label of its name."""
        found = [n for n in self.by_kind.get("Namespace", ()) if n["metadata"]["name"] == name]
        labels = found[0]["metadata"].get("labels") if found else None
        return {**(labels or {}), NAME_LABEL: name}

    def end(self, pod: str) -> End:
        """An attached pod as an end."""
        found = next(each for each in self.attachments if each.pod == pod)
        return End(found.address, pod, found.node)


class Rules(NamedTuple):
    """The rules that match two ends, in one direction; what is left to compare is the port."""

    admin: list[tuple[str, Any]]
    """Action and `protocols`, in their order."""
    is_isolated: bool
    """Whether a NetworkPolicy selects the pod."""
    policies: list[Any]
    """The `ports` of each rule of a NetworkPolicy."""
    baseline: list[tuple[str, Any]]


class Evaluator:
    """The verdicts on the packets of one cluster."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self._policies = cluster.by_kind.get("NetworkPolicy", [])
        self._cluster_policies = sorted(
            cluster.by_kind.get("ClusterNetworkPolicy", []),
            key=lambda policy: (policy["spec"]["priority"], policy["metadata"]["name"]),
        )
        self._rules: dict[tuple[str, End, End], Rules] = {}

    def allows(self, packet: Packet) -> bool:
        """Whether the packet goes through."""
        return self.allows_from_pod(packet) and self.allows_to_pod(packet)

    def allows_from_pod(self, packet: Packet) -> bool:
        """What policy from the source says. Only pods have policy."""
        return self._allows("egress", packet.source, packet.destination, packet)

    def allows_to_pod(self, packet: Packet) -> bool:
        """What policy to the destination says. Only pods have policy."""
        source, destination = packet.source, packet.destination
        if not source.pod and source.node and source.node == destination.node:
            return True  # a node reaches its own pods
        return self._allows("ingress", destination, source, packet)

    def _allows(self, direction: str, subject: End, peer: End, packet: Packet) -> bool:
        if not subject.pod or subject == peer:
            return True  # a pod reaches itself
        rules = self._rules_about(direction, subject, peer)
        verdict = self._first(rules.admin, packet, direction)
        if verdict in {ACCEPT, DENY}:
            return verdict == ACCEPT
        if rules.is_isolated:
            return any(
                not ports or any(self._is_port(each, packet, direction) for each in ports)
                for ports in rules.policies
            )
        return self._first(rules.baseline, packet, direction) != DENY

    def _rules_about(self, direction: str, subject: End, peer: End) -> "Rules":
        """All rules that match the two ends of a packet."""
        key = direction, subject, peer
        if key not in self._rules:
            admin, policies, baseline = self._selecting(subject.pod, direction)
            self._rules[key] = Rules(
                self._cluster_rules(admin, direction, peer),
                bool(policies),
                [
                    ports
                    for policy in policies
                    for rule in policy["spec"].get(direction) or ()
                    if (ports := self._ports_for(policy, rule, direction, peer)) is not None
                ],
                self._cluster_rules(baseline, direction, peer),
            )
        return self._rules[key]

    # --- which policies select a pod ---

    def _selecting(self, pod: str, direction: str) -> tuple[list[Object], ...]:
        """The policies that select a pod: Admin, NetworkPolicies, Baseline."""
        found = self.cluster.pods.get(pod)
        if found is None or _host_network(found):
            return [], [], []
        tiers = {
            tier: [p for p in self._cluster_policies if p["spec"]["tier"] == tier
                   and p["spec"].get(direction) and self._is_subject(p["spec"]["subject"], found)]
            for tier in ("Admin", "Baseline")
        }  # fmt: skip
        policies = [
            policy for policy in self._policies
            if policy["metadata"]["namespace"] == found["metadata"]["namespace"]
            and direction in affected(policy["spec"])
            and selects(policy["spec"].get("podSelector") or {}, _labels_of(found))
        ]  # fmt: skip
        return tiers["Admin"], policies, tiers["Baseline"]

    def _is_subject(self, subject: Object, pod: Object) -> bool:
        namespace = self.cluster.namespace_labels(pod["metadata"]["namespace"])
        if "namespaces" in subject:
            return selects(subject["namespaces"], namespace)
        both = subject["pods"]
        return selects(both["namespaceSelector"], namespace) and selects(
            both["podSelector"], _labels_of(pod)
        )

    # --- NetworkPolicy ---

    def _ports_for(
        self, policy: Object, rule: Object, direction: str, peer: End
    ) -> list[Object] | None:
        """The ports of a rule for this peer; empty: all of them; None: it is no peer of the rule.

        A rule without peers is for everybody. A block has no named ports, as the API says of
        `networks`: for policy from a pod, a name is a port of pods that a selector selects.
        """
        peers = rule.get("from" if direction == "ingress" else "to")
        ports = rule.get("ports") or []
        matching = [each for each in peers or () if self._is_peer(policy, each, peer)]
        if peers and not matching:
            return None
        if direction == "egress" and ports and peers and all("ipBlock" in p for p in matching):
            return [each for each in ports if not isinstance(each.get("port"), str)] or None
        return ports

    def _is_peer(self, policy: Object, given: Object, end: End) -> bool:
        if block := given.get("ipBlock"):
            return self._in_networks([block["cidr"]], block.get("except") or (), end)
        namespaces, pods = given.get("namespaceSelector"), given.get("podSelector")
        if namespaces is None and pods is None:
            return False
        if namespaces is None:
            namespaces = {"matchLabels": {NAME_LABEL: policy["metadata"]["namespace"]}}
        return self._is_pod(namespaces, {} if pods is None else pods, end)

    def _is_pod(self, namespaces: Object, pods: Object, end: End) -> bool:
        """Whether an end is a pod that both selectors select."""
        if not end.pod and not self._is_container(end):
            return False
        if _selects_all(namespaces) and _selects_all(pods):
            return True  # every pod, whoever it says to be
        pod = self.cluster.pods.get(end.pod)
        if pod is None or _host_network(pod) or _is_mirror(pod):
            return False
        namespace = self.cluster.namespace_labels(pod["metadata"]["namespace"])
        return selects(namespaces, namespace) and selects(pods, _labels_of(pod))

    def _is_container(self, end: End) -> bool:
        return any(a.address == end.address for a in self.cluster.attachments)

    def _in_networks(self, networks: Iterable[str], excepted: Iterable[str], end: End) -> bool:
        """Whether the networks contain an address, without the excepted ones.

        A node's gateway address stands for the node: it is in a network that its addresses are in.
        """
        addresses = {end.address}
        for node in self.cluster.nodes.values():
            if end.address == gateway(node):
                addresses.update(node_addresses(node))
        return any(
            any(_contains(network, address) for network in networks)
            and not any(_contains(network, address) for network in excepted)
            for address in addresses
        )

    def _is_port(self, given: Object, packet: Packet, direction: str) -> bool:
        if packet.protocol != given.get("protocol", "TCP"):
            return False
        port = given.get("port")
        if port is None:
            return True
        if packet.port is None:
            return False
        if isinstance(port, str):
            return packet.port == self._named(packet, port, direction)
        return bool(port <= packet.port <= given.get("endPort", port))

    def _named(self, packet: Packet, name: str | None, direction: str) -> int | None:
        """The number of a named port of the destination, which has to be a pod.

        For policy from a pod, a mirror pod has none: whoever makes it may name any port so.
        """
        pod = self.cluster.pods.get(packet.destination.pod)
        if pod is None or name is None or (direction == "egress" and _is_mirror(pod)):
            return None
        for port in container_ports(pod):
            if port.get("name") == name and port.get("protocol", "TCP") == packet.protocol:
                return int(port["containerPort"])
        return None

    # --- ClusterNetworkPolicy ---

    def _cluster_rules(
        self, policies: Iterable[Object], direction: str, peer: End
    ) -> list[tuple[str, Any]]:
        """Action and `protocols` of the rules that match this peer, in their order."""
        found: list[tuple[str, Any]] = []
        for policy in policies:
            for rule in policy["spec"].get(direction) or ():
                if not _is_understood(rule, direction):
                    if rule["action"] != ACCEPT:
                        found.append((DENY, None))
                elif any(
                    self._is_cluster_peer(each, peer)
                    for each in rule["from" if direction == "ingress" else "to"]
                ):
                    found.append((rule["action"], rule.get("protocols")))
        return found

    def _first(
        self, rules: Iterable[tuple[str, Any]], packet: Packet, direction: str
    ) -> str | None:
        """The action of the first of these rules that matches; None: none does.

        Whether a fragment matches a port is unknown. Then only an Accept goes on to the next rule.
        """
        for action, protocols in rules:
            if not protocols or any(
                self._is_protocol(each, packet, direction) for each in protocols
            ):
                return action
            if (
                packet.port is None
                and action != ACCEPT
                and self._may_match(protocols, packet, direction)
            ):
                return DENY
        return None

    def _may_match(self, protocols: Iterable[Object], packet: Packet, direction: str) -> bool:
        """Whether there is a port with which a fragment would match."""
        return packet.protocol in PROTOCOLS and any(
            packet.protocol.lower() in each
            or self._named(packet, each.get("destinationNamedPort"), direction)
            for each in protocols
        )

    def _is_cluster_peer(self, given: Object, end: End) -> bool:
        if "namespaces" in given:
            return self._is_pod(given["namespaces"], {}, end)
        if "pods" in given:
            both = given["pods"]
            return self._is_pod(both["namespaceSelector"], both["podSelector"], end)
        return self._in_networks(given["networks"], (), end)

    def _is_protocol(self, given: Object, packet: Packet, direction: str) -> bool:
        if name := given.get("destinationNamedPort"):
            return packet.port is not None and packet.port == self._named(packet, name, direction)
        ((protocol, content),) = given.items()
        if packet.protocol != protocol.upper() or packet.port is None:
            return False
        port = content["destinationPort"]
        if "number" in port:
            return bool(packet.port == port["number"])
        return bool(port["range"]["start"] <= packet.port <= port["range"]["end"])


# --- parts of objects ---

_PEERS = {"ingress": {"namespaces", "pods"}, "egress": {"namespaces", "pods", "networks"}}
"""The kinds of peers that are supported. `nodes` and `domainNames` are experimental."""
_PROTOCOLS = {"tcp", "udp", "sctp", "destinationNamedPort"}


def _is_understood(rule: Object, direction: str) -> bool:
    """Whether each peer and each protocol is of a known kind, and has exactly one.

    If not, a field is unknown here, and the rule fails closed.
    """
    peers, protocols = rule.get("from" if direction == "ingress" else "to"), rule.get("protocols")
    return (
        bool(peers)
        and all(len(_PEERS[direction] & peer.keys()) == 1 == len(peer) for peer in peers)
        and (protocols is None or bool(protocols))
        and all(_is_protocol_understood(each) for each in protocols or ())
    )


def _is_protocol_understood(given: Object) -> bool:
    if len(_PROTOCOLS & given.keys()) != 1 or len(given) != 1:
        return False
    if "destinationNamedPort" in given:
        return True
    (content,) = given.values()
    port = (content or {}).get("destinationPort") or {}
    return len(port) == 1 and bool({"number", "range"} & port.keys())


def affected(spec: Object) -> set[str]:
    """The directions of a NetworkPolicy: by default ingress, and egress if it has such rules."""
    types = spec.get("policyTypes")
    if types:
        return {each.lower() for each in types}
    return {"ingress", "egress"} if spec.get("egress") else {"ingress"}


def selects(selector: Object, labels: Mapping[str, str]) -> bool:
    """A meta/v1 LabelSelector: all requirements must hold; without any it selects everything."""
    wanted = (selector.get("matchLabels") or {}).items()
    return all(labels.get(key) == value for key, value in wanted) and all(
        _satisfies(each, labels) for each in selector.get("matchExpressions") or ()
    )


def _satisfies(expression: Object, labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or ()
    match expression["operator"]:
        case "In":
            return key in labels and labels[key] in values
        case "NotIn":
            return key not in labels or labels[key] not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(f"operator {expression['operator']}")


def _selects_all(selector: Object) -> bool:
    return not selector.get("matchLabels") and not selector.get("matchExpressions")


def _contains(network: str, address: str) -> bool:
    return _address(address) in _network(network)


@lru_cache(maxsize=4096)
def _network(text: str) -> IPv4Network:
    return IPv4Network(text)


@lru_cache(maxsize=4096)
def _address(text: str) -> IPv4Address:
    return IPv4Address(text)


def gateway(node: Object) -> str:
    """The address of a node's own stack among its pods: the first one of the podCIDR."""
    return str(_network(node["spec"]["podCIDR"])[1])


def node_addresses(node: Object) -> list[str]:
    """All in its status, without its names."""
    return [each["address"] for each in node["status"]["addresses"] if each["type"].endswith("IP")]


def container_ports(pod: Object) -> Iterator[Object]:
    """Of all containers, in their order."""
    for container in pod["spec"].get("containers") or ():
        yield from container.get("ports") or ()


def _labels_of(given: Object) -> dict[str, str]:
    return given["metadata"].get("labels") or {}


def _host_network(pod: Object) -> bool:
    return bool(pod["spec"].get("hostNetwork"))


def _is_mirror(pod: Object) -> bool:
    return MIRROR in (pod["metadata"].get("annotations") or {})


def _full_name(given: Object) -> str:
    return f"{given['metadata']['namespace']}/{given['metadata']['name']}"
