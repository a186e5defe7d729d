"""Random clusters with policies, the same for the same seed; and how to make one smaller.

The pools are small on purpose: labels that match, blocks that overlap, ports at the edge of ranges
and equal priorities must come up all the time.
"""

import copy
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv4Network
from random import Random
from typing import Any, Final

import yaml

from tests.policy.evaluator import MIRROR, NAME_LABEL, Attachment, Cluster
from tests.policy.manifests import Part, cluster_policy, namespace, network_policy, node, pod

NODES: Final = ("node1", "node2", "node3")
"""node3 runs no pods."""
NAMESPACES: Final = ("a", "b", "c")
_LABELS: Final = {"app": ("web", "db", ""), "team": ("x", "y"), "example.com/env": ("dev", "prod")}
_PORTS: Final = (1, 53, 80, 81, 1023, 1024, 8080, 32768, 65535)
_PORT_NAMES: Final = ("http", "dns", "metrics")
_PROTOCOLS: Final = ("TCP", "TCP", "UDP", "SCTP")
_BLOCKS: Final = (
    "0.0.0.0/0", "0.0.0.0/1", "10.0.0.0/8", "10.244.0.0/16", "10.244.1.0/24", "10.244.2.0/24",
    "10.244.1.2/32", "10.244.1.2/31", "10.244.2.0/29", "10.244.2.3/32", "10.244.2.1/32",
    "172.30.1.0/24", "172.30.1.1/32", "172.30.1.2/31", "203.0.113.0/24", "203.0.113.128/25",
    "203.0.113.7/32",
)  # fmt: skip


HISTORY: Final = 5
"""Clusters of successive seeds of which each is the one before with small changes."""


def generate(seed: int) -> Cluster:
    """The cluster of this seed."""
    first = seed - seed % HISTORY
    cluster = _Generator(_random(first)).cluster()
    for step in range(first + 1, seed + 1):
        generator = _Generator(_random(step))
        for _ in range(generator.random.choice((1, 1, 2, 3))):
            cluster = generator.changed(cluster)
    return cluster


def _random(seed: int) -> Random:
    return Random(seed)  # noqa: S311 - no secret


class _Generator:
    """Makes one cluster."""

    def __init__(self, random: Random) -> None:
        self.random = random
        self._rules: list[Part] = []

    def cluster(self) -> Cluster:
        random = self.random
        objects = [
            node(number, **({"zone": random.choice("xy")} if random.random() < 0.7 else {}))
            for number in range(1, len(NODES) + 1)
        ]
        objects += [
            namespace(name, **self.labels(0.6)) for name in NAMESPACES if random.random() < 0.9
        ]
        attachments: list[Attachment] = []
        for number in range(random.randint(2, 5)):
            objects.append(made := self.pod(f"p{number}"))
            attachments.append(self.attach(made, attachments))
        self.oddities(objects, attachments)
        count = random.choices((0, 1, 2, 3, 4), (1, 3, 5, 3, 2))[0]
        objects += [self.network_policy(number) for number in range(count)]
        count = random.choices((0, 1, 2, 3), (5, 3, 3, 1))[0]
        objects += [self.cluster_policy(number) for number in range(count)]
        return Cluster(objects, attachments)

    # --- pods ---

    def pod(self, name: str) -> Part:
        random = self.random
        ports = []
        for port_name in random.sample(_PORT_NAMES, random.choice((0, 1, 1, 2))):
            ports.append({"name": port_name, "containerPort": random.choice(_PORTS[:7])})
            if random.random() < 0.5:
                ports[-1]["protocol"] = random.choice(_PROTOCOLS)
        labels = None if random.random() < 0.1 else self.labels(0.7)
        return pod(f"{random.choice(NAMESPACES)}/{name}", random.choice(NODES[:2]), labels, ports)

    def labels(self, probability: float) -> dict[str, str]:
        random = self.random
        return {
            key: random.choice(values)
            for key, values in _LABELS.items()
            if random.random() < probability
        }

    def attach(self, made: Part, others: list[Attachment]) -> Attachment:
        name = f"{made['metadata']['namespace']}/{made['metadata']['name']}"
        return self.attachment(name, made["spec"]["nodeName"], others)

    @staticmethod
    def attachment(name: str, on: str, others: list[Attachment]) -> Attachment:
        """At the first free address, so that addresses are used again."""
        taken = {other.address for other in others}
        addresses = (f"10.244.{on[-1]}.{number}" for number in range(2, 10))
        return Attachment(name, on, next(each for each in addresses if each not in taken))

    def oddities(self, objects: list[Part], attachments: list[Attachment]) -> None:
        """Pods that are not simply there."""
        random = self.random
        usual = objects[-1]
        if random.random() < 0.25:
            host = self.pod("host")
            host["spec"]["hostNetwork"] = True
            host["status"] = {"podIP": f"172.30.1.{host['spec']['nodeName'][-1]}"}
            objects.append(host)
        if random.random() < 0.2:
            done = self.pod("done")
            done["status"] = {"phase": "Succeeded", "podIP": attachments[0].address}
            objects.append(done)
        if random.random() < 0.2:
            mirror = self.pod("mirror")
            uid = "0123456789abcdef"
            mirror["metadata"]["annotations"] = {MIRROR: uid, "kubernetes.io/config.hash": uid}
            on = mirror["spec"]["nodeName"]
            mirror["metadata"]["ownerReferences"] = [
                {"apiVersion": "v1", "kind": "Node", "name": on, "uid": f"node-{on[-1]}",
                 "controller": True}
            ]  # fmt: skip
            objects.append(mirror)
            attachments.append(self.attach(mirror, attachments))
        if random.random() < 0.2:
            usual["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
        if random.random() < 0.2:
            usual["status"] = {"phase": "Running", "podIP": random.choice(attachments).address}
        if random.random() < 0.15:
            attachments.append(self.attachment("", random.choice(NODES[:2]), attachments))

    # --- changes ---

    def changed(self, cluster: Cluster) -> Cluster:
        """The same cluster with one small change, or none where there is nothing to change."""
        changes = (
            self.relabel, self.relabel, self.relabel, self.replace_policy, self.replace_policy,
            self.replace_pod, self.remove_one, self.add_policy, self.add_pod,
        )  # fmt: skip
        objects, attachments = list(cluster.objects), list(cluster.attachments)
        self.random.choice(changes)(objects, attachments)
        return Cluster(objects, attachments)

    def some(self, objects: list[Part], *kinds: str) -> int | None:
        """The index of an object of these kinds."""
        found = [index for index, each in enumerate(objects) if each["kind"] in kinds]
        return self.random.choice(found) if found else None

    def relabel(self, objects: list[Part], _: list[Attachment]) -> None:
        index = self.some(objects, "Pod", "Pod", "Namespace")
        if index is not None:
            old = objects[index]
            objects[index] = {**old, "metadata": {**old["metadata"], "labels": self.labels(0.6)}}

    def replace_policy(self, objects: list[Part], _: list[Attachment]) -> None:
        """Another policy of the same name, or the same one without a rule."""
        index = self.some(objects, "NetworkPolicy", "ClusterNetworkPolicy")
        if index is None:
            return
        old = objects[index]
        if self.random.random() < 0.5:
            is_namespaced = old["kind"] == "NetworkPolicy"
            new = self.network_policy(0) if is_namespaced else self.cluster_policy(0)
            objects[index] = {**old, "spec": new["spec"]}
            return
        direction = self.random.choice(("ingress", "egress"))
        if rules := old["spec"].get(direction):
            rules = list(rules)
            rules.pop(self.random.randrange(len(rules)))
            objects[index] = {**old, "spec": {**old["spec"], direction: rules}}

    def replace_pod(self, objects: list[Part], attachments: list[Attachment]) -> None:
        """Another pod at the same address."""
        places = [i for i, each in enumerate(attachments) if each.pod and "/p" in each.pod]
        if not places:
            return
        place = self.random.choice(places)
        old = attachments[place]
        new = self.pod(f"q{self.random.randrange(1000)}")
        new["spec"]["nodeName"] = old.node
        name = f"{new['metadata']['namespace']}/{new['metadata']['name']}"
        if any(each.pod == name for each in attachments):
            return
        self.remove_pod(objects, old.pod)
        objects.append(new)
        attachments[place] = Attachment(name, old.node, old.address)

    @staticmethod
    def remove_pod(objects: list[Part], name: str) -> None:
        for index, each in enumerate(objects):
            metadata = each["metadata"]
            if each["kind"] == "Pod" and name == f"{metadata['namespace']}/{metadata['name']}":
                del objects[index]
                return

    def remove_one(self, objects: list[Part], attachments: list[Attachment]) -> None:
        index = self.some(objects, "Pod", "Namespace", "NetworkPolicy", "ClusterNetworkPolicy")
        if index is None:
            return
        gone = objects.pop(index)
        metadata = gone["metadata"]
        if gone["kind"] == "Pod":
            name = f"{metadata['namespace']}/{metadata['name']}"
            attachments[:] = [each for each in attachments if each.pod != name]

    def add_policy(self, objects: list[Part], _: list[Attachment]) -> None:
        number = self.unused_number(objects)
        make = self.random.choice((self.network_policy, self.network_policy, self.cluster_policy))
        objects.append(make(number))

    def add_pod(self, objects: list[Part], attachments: list[Attachment]) -> None:
        made = self.pod(f"p{self.unused_number(objects)}")
        on = made["spec"]["nodeName"]
        if sum(each.node == on for each in attachments) < 6:
            objects.append(made)
            attachments.append(self.attach(made, attachments))

    def unused_number(self, objects: list[Part]) -> int:
        """A number that no object has in its name."""
        names = [each["metadata"]["name"] for each in objects]
        while True:
            number = 10 + self.random.randrange(1000)
            if not any(name.endswith(str(number)) for name in names):
                return number

    # --- selectors ---

    def selector(self, *, empty: float = 0.2) -> Part:
        random = self.random
        if random.random() < empty:
            return {}
        made: Part = {}
        if random.random() < 0.6:
            made["matchLabels"] = self.labels(0.4)
        if random.random() < 0.5:
            made["matchExpressions"] = [self.expression() for _ in range(random.choice((1, 1, 2)))]
        return made

    def expression(self) -> Part:
        random = self.random
        key, values = random.choice(list(_LABELS.items()))
        operator = random.choice(("In", "NotIn", "Exists", "DoesNotExist"))
        if operator in {"Exists", "DoesNotExist"}:
            return {"key": key, "operator": operator}
        return {"key": key, "operator": operator,
                "values": random.sample(values, random.randint(1, len(values)))}  # fmt: skip

    def namespace_selector(self) -> Part:
        random = self.random
        if random.random() < 0.3:
            wanted = random.choice(NAMESPACES)
            if random.random() < 0.5:
                return {"matchLabels": {NAME_LABEL: wanted}}
            operator = random.choice(("In", "NotIn"))
            return {"matchExpressions": [
                {"key": NAME_LABEL, "operator": operator, "values": [wanted, "other"]}
            ]}  # fmt: skip
        return self.selector(empty=0.4)

    # --- NetworkPolicy ---

    def network_policy(self, number: int) -> Part:
        random = self.random
        spec: Part = {}
        if random.random() < 0.95:
            spec["podSelector"] = self.selector(empty=0.5)
        types = random.choice((None, None, [], ["Ingress"], ["Egress"], ["Egress", "Ingress"]))
        if types is not None or random.random() < 0.1:
            spec["policyTypes"] = types
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            if random.random() < 0.75:
                count = random.choice((0, 1, 1, 2, 3))
                spec[direction] = [self.rule(peers) for _ in range(count)]
            elif random.random() < 0.1:
                spec[direction] = None
        return network_policy(f"{random.choice(NAMESPACES)}/policy{number}", **spec)

    def rule(self, peers: str) -> Part:
        random = self.random
        if self._rules and random.random() < 0.15:
            again = copy.deepcopy(random.choice(self._rules))
            return {peers if key in {"from", "to"} else key: v for key, v in again.items()}
        made: Part = {}
        if random.random() < 0.85:
            made[peers] = [self.peer() for _ in range(random.choice((0, 1, 1, 1, 2, 3)))]
            excepted = [
                x for peer in made[peers] for x in peer.get("ipBlock", {}).get("except", ())
            ]
            if excepted and random.random() < 0.4:
                # Another block of the same rule has what the first one excepts.
                other = IPv4Network(random.choice(excepted))
                wider = other.supernet() if random.random() < 0.3 and other.prefixlen else other
                made[peers].append({"ipBlock": {"cidr": str(wider)}})
        elif random.random() < 0.1:
            made[peers] = None
        if random.random() < 0.6:
            made["ports"] = [self.port() for _ in range(random.choice((0, 1, 1, 2, 3)))]
        elif random.random() < 0.1:
            made["ports"] = None
        self._rules.append(made)
        return made

    def peer(self) -> Part:
        random = self.random
        match random.randrange(8):
            case 0 | 1:
                return {"podSelector": self.selector()}
            case 2 | 3:
                return {"namespaceSelector": self.namespace_selector()}
            case 4:
                return {"namespaceSelector": self.namespace_selector(),
                        "podSelector": self.selector()}  # fmt: skip
            case _:
                return {"ipBlock": self.block()}

    def block(self) -> Part:
        random = self.random
        cidr = IPv4Network(random.choice(_BLOCKS))
        made: Part = {"cidr": str(cidr)}
        if random.random() < 0.6 and cidr.prefixlen < 32:
            made["except"] = [str(self.within(cidr)) for _ in range(random.choice((0, 1, 1, 2)))]
        return made

    def within(self, cidr: IPv4Network) -> IPv4Network:
        """A smaller block: one of the pool, or any."""
        random = self.random
        inside = [
            block for block in map(IPv4Network, _BLOCKS)
            if block.subnet_of(cidr) and block != cidr
        ]  # fmt: skip
        if inside and random.random() < 0.8:
            return random.choice(inside)
        length = random.randint(cidr.prefixlen + 1, 32)
        address = IPv4Address(int(cidr[0]) + random.randrange(cidr.num_addresses))
        return IPv4Network((address, length), strict=False)

    def port(self) -> Part:
        random = self.random
        made: Part = {}
        if random.random() < 0.7:
            made["protocol"] = random.choice(_PROTOCOLS)
        match random.randrange(6):
            case 0:
                pass
            case 1 | 2:
                made["port"] = random.choice(_PORT_NAMES)
            case 3:
                first, last = sorted(random.choices(_PORTS, k=2))
                made |= {"port": first, "endPort": last}
            case _:
                made["port"] = random.choice(_PORTS)
        return made

    # --- ClusterNetworkPolicy ---

    def cluster_policy(self, number: int) -> Part:
        random = self.random
        spec: Part = {"subject": self.cluster_pods()}
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            if random.random() < 0.8:
                count = random.choice((0, 1, 1, 2, 3))
                spec[direction] = [self.cluster_rule(peers) for _ in range(count)]
        tier, priority = random.choice(("Admin", "Baseline")), random.choice((0, 5, 5, 10, 1000))
        # Equal priorities are ordered by name, not by the order in which they come.
        made = cluster_policy(f"{random.choice('xyz')}{number}", tier, priority, **spec)
        if random.random() < 0.1:
            made["apiVersion"] = "policy.networking.k8s.io/v1alpha2"
        return made

    def cluster_pods(self) -> Part:
        if self.random.random() < 0.5:
            return {"namespaces": self.namespace_selector()}
        return {"pods": {"namespaceSelector": self.namespace_selector(),
                         "podSelector": self.selector()}}  # fmt: skip

    def cluster_rule(self, peers: str) -> Part:
        random = self.random
        made: Part = {"action": random.choice(("Accept", "Deny", "Pass"))}
        if random.random() < 0.3:
            made["name"] = random.choice(("one", "two"))
        made[peers] = [self.cluster_peer(peers) for _ in range(random.choice((1, 1, 2)))]
        if random.random() < 0.5:
            named = peers == "from" or not any(
                {"networks", "domainNames"} & peer.keys() for peer in made[peers]
            )
            made["protocols"] = [self.protocol(named) for _ in range(random.choice((1, 1, 2)))]
        return made

    def cluster_peer(self, peers: str) -> Part:
        random = self.random
        if random.random() < 0.04:
            unknown = ({}, {"domainNames": ["*.example.com"]}, {"planets": {}}, {"nodes": {}})
            return random.choice(unknown)
        if peers == "to" and random.random() < 0.4:
            return {"networks": random.sample(_BLOCKS, random.choice((1, 1, 2)))}
        return self.cluster_pods()

    def protocol(self, named: bool) -> Part:
        random = self.random
        if random.random() < 0.04:
            return random.choice(({}, {"tcp": {}}, {"quic": {"destinationPort": {"number": 443}}}))
        if named and random.random() < 0.25:
            return {"destinationNamedPort": random.choice(_PORT_NAMES)}
        protocol = random.choice(_PROTOCOLS).lower()
        match random.randrange(3):
            case 0:
                first, last = sorted(random.sample(_PORTS, 2))
                return {protocol: {"destinationPort": {"range": {"start": first, "end": last}}}}
            case _:
                return {protocol: {"destinationPort": {"number": random.choice(_PORTS)}}}


# --- smaller clusters ---


def shrink(cluster: Cluster, fails: Callable[[Cluster], bool], tries: int = 2_000) -> Cluster:
    """The smallest cluster found that still fails: leaves out objects, then parts of them."""
    smaller = True
    while smaller and tries > 0:
        smaller = False
        for candidate in _smaller(cluster):
            tries -= 1
            if fails(candidate):
                cluster, smaller = candidate, True
                break
            if tries <= 0:
                break
    return cluster


def _smaller(cluster: Cluster) -> Iterator[Cluster]:
    objects, attachments = cluster.objects, cluster.attachments
    for index, each in enumerate(objects):
        if each["kind"] != "Node":
            name = f"{each['metadata'].get('namespace', '')}/{each['metadata']['name']}"
            yield Cluster(
                objects[:index] + objects[index + 1 :],
                [a for a in attachments if each["kind"] != "Pod" or a.pod != name],
            )
    for index, attachment in enumerate(attachments):
        if not attachment.pod:
            yield Cluster(objects, attachments[:index] + attachments[index + 1 :])
    for index, each in enumerate(objects):
        for part in ("spec", "metadata", "status"):
            if each["kind"] == "Node" or part not in each:
                continue
            for less in _less(each[part]):
                yield Cluster(
                    [*objects[:index], {**each, part: less}, *objects[index + 1 :]], attachments
                )


_NEEDED = {
    "name", "namespace", "uid", "nodeName", "tier", "priority", "subject", "action", "key",
    "operator", "cidr", "from", "to", "protocols", "namespaceSelector", "podSelector",
    "containerPort", "annotations", "ownerReferences", "namespaces", "pods", "networks", "values",
}  # fmt: skip


_WHOLE = {"annotations", "ownerReferences"}
"""What makes a pod a mirror pod."""


def _less(given: Any) -> Iterator[Any]:  # noqa: C901 - two kinds of containers, each in two ways
    """The same with one part left out, somewhere inside."""
    if isinstance(given, dict):
        for key in given:
            if key not in _NEEDED and not (key == "port" and "endPort" in given):
                yield {other: value for other, value in given.items() if other != key}
        for key, value in given.items():
            for less in _less(value) if key not in _WHOLE else ():
                yield {**given, key: less}
    elif isinstance(given, list):
        for index in range(len(given)):
            if len(given) > 1:
                yield given[:index] + given[index + 1 :]
        for index, value in enumerate(given):
            for less in _less(value):
                if less != {}:
                    yield [*given[:index], less, *given[index + 1 :]]


def as_yaml(cluster: Cluster) -> str:
    """The cluster as manifests, and its attachments as a comment."""
    lines = [f"# {a.pod or '(no Pod)'} is at {a.address} on {a.node}" for a in cluster.attachments]
    return "\n".join(lines) + "\n" + yaml.safe_dump_all(cluster.objects, sort_keys=False)
