"""policy_load_s, policy_pod_added_ms, policy_label_10k_vs_100, policy_update_vs_ovn.

Policies on three switches, and what they cost there (flows_per_policy).

The controller is its own code in this process (`bench.in_process`). The clock starts with the
objects in JSON, as an API server gives them, and ends when all three switches have acknowledged.
"""

import asyncio
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network

import msgspec

from bench import in_process, ovn
from bench import policy_objects as objects
from bench.controller import CLUSTER, Manifest
from bench.figures import Figure, versus
from bench.nodes import bare_lab, ofctl, vsctl
from controller.inventory import BridgePort
from controller.reconciler import Reconciler
from controller.sources.objects import PodObject, from_manifest
from controller.sources.policy_objects import NetworkPolicyObject
from flows import names
from flows.pipeline import LAYOUT
from flows.refs import ObjectRef
from flows.view import Cluster, Node
from lab import Lab, LabError
from lab.layout import NodeLayout

NODES = 3
PER_NAMESPACE = 10
"""Pods of a Namespace on each node, of ten applications."""
POD_CIDR_LENGTH = 22
"""Room for 1,000 pods."""
PAUSE = 0.2
"""Seconds of quiet before what is measured."""
MONITORING = "monitoring"
"""The Namespace whose pods may reach every pod: the set that all policies use."""
PEERS_TABLE = LAYOUT.tables["PolicyPeers"].number
SUBJECTS = 10
"""Applications of the comparison with OVN, with one pod on each node."""


def measure(
    *,
    policies: int = 1000,
    users: int = 100,
    few: int = 100,
    many: int = 10_000,
    rounds: int = 7,
    loads: int = 5,
) -> list[Figure]:
    """Load policies; add a pod; change labels among few pods and many; a rule more, as OVN."""
    return [
        *asyncio.run(_load(policies, loads)),
        *asyncio.run(_pod_added(users, rounds)),
        *asyncio.run(_labels(users, few, many, rounds)),
        *_update(policies, rounds),
    ]


# --- a cluster in the controller's own inventory ---


@dataclass
class _World:
    """Pods on the nodes of a controller in this process."""

    reconciler: Reconciler
    nodes: Sequence[Node]
    _ports: dict[str, int] = field(default_factory=dict)

    def add_pod(self, node: Node, namespace: str, name: str, labels: objects.Labels) -> BridgePort:
        """A Pod and its port, as if the CNI plugin had added it."""
        number = self._ports.get(node.name, 0)
        self._ports[node.name] = number + 1
        made = objects.pod(node.name, namespace, name, labels)
        port = objects.port(made, IPv4Address(int(node.gateway) + 1 + number), number)
        self.reconciler.update([_decoded_pod(made)], [])
        self.reconciler.compilation.touch(self.reconciler.inventory.set_port(node.name, port))
        return port

    def remove_pod(self, node: Node, namespace: str, name: str, port: BridgePort) -> None:
        """Remove it again."""
        inventory = self.reconciler.inventory
        self.reconciler.compilation.touch(inventory.remove_port(node.name, port.name))
        self.reconciler.update([], [ObjectRef("Pod", namespace, name)])

    async def settled(self) -> None:
        """Until every switch has acknowledged everything."""
        await in_process.acknowledged(self.reconciler, NODES)


def _decoded_pod(of: Manifest) -> PodObject:
    return msgspec.json.decode(msgspec.json.encode(of), type=PodObject)


def _cluster() -> Cluster:
    return Cluster(
        CLUSTER.pod_range,
        CLUSTER.service_range,
        CLUSTER.tunnel_port,
        CLUSTER.new_connections_per_second,
    )


def _nodes(lab: Lab, count: int) -> list[Node]:
    """The lab's three nodes, and others without a switch."""
    size = 1 << (32 - POD_CIDR_LENGTH)
    addresses = [node.address for node in lab.layout.nodes(NODES)]
    return [
        Node(
            f"node{number}",
            f"uid-{number}",
            addresses[number - 1] if number <= NODES else IPv4Address("172.20.0.0") + number,
            IPv4Network((int(CLUSTER.pod_range[0]) + number * size, POD_CIDR_LENGTH)),
        )
        for number in range(1, count + 1)
    ]


def _namespaces(count: int) -> Iterator[Manifest]:
    yield objects.namespace(MONITORING, {"team": MONITORING})
    for number in range(count):
        yield objects.namespace(f"ns-{number}", {"team": f"team-{number % 10}"})


def _policy(number: int, *rules: Manifest) -> Manifest:
    """The policy of one application, with three rules and those that are given.

    The clients of its Namespace, the pods of monitoring, and a range of addresses outside may
    reach it.
    """
    ingress = [
        objects.from_([objects.pods({"role": "client"})], 8080),
        objects.from_([objects.namespaces({"team": MONITORING})], 9090),
        objects.from_([objects.block("192.168.0.0/16", "192.168.7.0/24")], 443),
        *rules,
    ]
    name = f"app-{number}"
    return objects.policy(f"ns-{number // PER_NAMESPACE}", name, {"app": name}, ingress=ingress)


async def _populated(world: _World, pods: int, nodes: Sequence[Node]) -> None:
    """So many pods, one of each application, shared out over these nodes; half are clients."""
    made = [from_manifest(each) for each in _namespaces(-(-pods // PER_NAMESPACE))]
    world.reconciler.update(made, [])
    for number in range(pods):
        role = "client" if number % 2 else "server"
        labels = {"app": f"app-{number}", "role": role}
        node = nodes[number % len(nodes)]
        world.add_pod(node, f"ns-{number // PER_NAMESPACE}", f"pod-{number}", labels)
        if number % PER_NAMESPACE == 0:
            await asyncio.sleep(0)
    for number, node in enumerate(world.nodes[:NODES]):
        world.add_pod(node, MONITORING, f"pod-{number}", {"app": "metrics"})
    await world.settled()


# --- figures ---


async def _load(policies: int, rounds: int) -> list[Figure]:
    """All policies from nothing; each selects one pod of the first node."""
    seconds, flows = [], []
    listed = msgspec.json.encode([_policy(number) for number in range(policies)])
    with bare_lab("pload", NODES) as lab:
        nodes = _nodes(lab, NODES)
        async with in_process.controller(lab, NODES, _cluster(), nodes) as reconciler:
            world = _World(reconciler, nodes)
            await _populated(world, policies, nodes[:1])
            first = lab.layout.node(1)
            for _ in range(rounds):
                without = len(_flows(first))
                began = time.monotonic()
                made = in_process.decoded(listed, NetworkPolicyObject)
                reconciler.update(made, [])
                await world.settled()
                seconds.append(time.monotonic() - began)
                flows.append((len(_flows(first)) - without) / policies)
                reconciler.update([], [_ref(each) for each in made])
                await world.settled()
    return [
        Figure("policy_load_s", "s", seconds, at_most=1),
        Figure("flows_per_policy", "flows", flows, at_most=5),
    ]


async def _pod_added(users: int, rounds: int) -> list[Figure]:
    """A pod joins the set of monitoring, which policies on all nodes use."""
    milliseconds = []
    with bare_lab("padd", NODES) as lab:
        nodes = _nodes(lab, NODES)
        async with in_process.controller(lab, NODES, _cluster(), nodes) as reconciler:
            world = _World(reconciler, nodes)
            await _populated(world, NODES * users, nodes)
            made = [from_manifest(_policy(number)) for number in range(NODES * users)]
            reconciler.update(made, [])
            await world.settled()
            for number in range(rounds):
                await asyncio.sleep(PAUSE)
                before = [len(_flows(n, PEERS_TABLE)) for n in lab.layout.nodes(NODES)]
                began = time.monotonic()
                name = f"added-{number}"
                port = world.add_pod(nodes[0], MONITORING, name, {"app": "metrics"})
                await world.settled()
                milliseconds.append(1000 * (time.monotonic() - began))
                after = [len(_flows(n, PEERS_TABLE)) for n in lab.layout.nodes(NODES)]
                if after != [count + 1 for count in before]:
                    raise LabError(f"peers of each switch: {before}, then {after}")
                world.remove_pod(nodes[0], MONITORING, name, port)
                await world.settled()
    return [Figure("policy_pod_added_ms", "ms", milliseconds, at_most=20)]


async def _labels(policies: int, few: int, many: int, rounds: int) -> list[Figure]:
    """A pod becomes a client, among many pods and among few, in turns; both with all policies."""
    with ExitStack() as stack:
        labs = [stack.enter_context(bare_lab(name, NODES)) for name in ("pmany", "pfew")]
        nodes = [_nodes(labs[0], max(NODES, -(-many // 1000))), _nodes(labs[1], NODES)]
        samples: tuple[list[float], list[float]] = [], []
        async with (
            in_process.controller(labs[0], NODES, _cluster(), nodes[0]) as large,
            in_process.controller(labs[1], NODES, _cluster(), nodes[1]) as small,
        ):
            worlds = _World(large, nodes[0]), _World(small, nodes[1])
            for world, pods in zip(worlds, (many, few), strict=True):
                await _populated(world, pods, world.nodes)
                made = [from_manifest(_policy(number)) for number in range(min(policies, few))]
                world.reconciler.update(made, [])
                await world.settled()
            for number in range(2 * rounds):
                for world, taken in zip(worlds, samples, strict=True):
                    taken.append(await _relabel(world, number // 2, number % 2 == 0))
    name = "policy_label_10k_vs_100"
    ratio, *_ = versus(name, "ms", samples[0], ("few", samples[1]), at_most=1.2)
    return [
        ratio,
        Figure("policy_label_ms.10k", "ms", samples[0]),
        Figure("policy_label_ms.100", "ms", samples[1]),
    ]


async def _relabel(world: _World, round_: int, is_client: bool) -> float:
    """Milliseconds until all switches know that a pod is a client, or that it is none."""
    number = 2 * round_  # these are servers
    node = world.nodes[number % len(world.nodes)]
    labels = {"app": f"app-{number}", "role": "client" if is_client else "server"}
    made = objects.pod(node.name, f"ns-{number // PER_NAMESPACE}", f"pod-{number}", labels)
    version = _versions(world)
    await asyncio.sleep(PAUSE)
    began = time.monotonic()
    world.reconciler.update([_decoded_pod(made)], [])
    await world.settled()
    ended = time.monotonic()
    if _versions(world) == version:
        raise LabError("the label changed nothing, so it measured nothing")
    return 1000 * (ended - began)


def _versions(world: _World) -> list[int]:
    desired = world.reconciler.desired
    return [desired.program(node.name).version for node in world.nodes[:NODES]]


# --- against OVN ---


def _update(policies: int, rounds: int) -> list[Figure]:
    """One rule more in one policy of many; each application has a pod on each node."""
    with bare_lab("pupdate", NODES) as lab, bare_lab("ovn-p", NODES) as rival:
        other = _Ovn(rival, policies)
        other.prepare()
        ours, theirs = asyncio.run(_updates(lab, other, policies, rounds))
    return versus("policy_update_vs_ovn", "ms", ours, ("ovn", theirs), at_most=0.2)


async def _updates(
    lab: Lab, other: "_Ovn", policies: int, rounds: int
) -> tuple[list[float], list[float]]:
    ours: list[float] = []
    theirs: list[float] = []
    nodes = _nodes(lab, NODES)
    async with in_process.controller(lab, NODES, _cluster(), nodes) as reconciler:
        world = _World(reconciler, nodes)
        for node in nodes:
            for number in range(SUBJECTS):
                name = f"pod-{node.name}-{number}"
                world.add_pod(node, "default", name, _subject(number))
        reconciler.update([from_manifest(_rival_policy(n, 1)) for n in range(policies)], [])
        await world.settled()
        for number in range(rounds):
            for rules in (2, 1):
                written = msgspec.json.encode(_rival_policy(number, rules))
                await asyncio.sleep(PAUSE)
                began = time.monotonic()
                reconciler.update([msgspec.json.decode(written, type=NetworkPolicyObject)], [])
                await world.settled()
                if rules > 1:
                    ours.append(1000 * (time.monotonic() - began))
            theirs.append(1000 * await asyncio.to_thread(other.update, number))
    return ours, theirs


def _subject(number: int) -> objects.Labels:
    return {"app": f"app-{number % SUBJECTS}"}


def _rival_policy(number: int, rules: int) -> Manifest:
    """What `_Ovn` has, too: the first rule is for a range of its own, the others for peers."""
    ingress = [objects.from_([objects.block(_range(number))], 8080)]
    peers = [objects.pods(_subject(number + 1))]
    ingress += [objects.from_(peers, 9090) for _ in range(rules - 1)]
    return objects.policy("default", f"policy-{number}", _subject(number), ingress=ingress)


def _range(number: int) -> str:
    return f"192.{168 + number // 256}.{number % 256}.0/24"


@dataclass(frozen=True)
class _Ovn:
    """A bare lab with OVN, and policies as OVN-Kubernetes makes them.

    Each has a port group of its pods, an address set for each rule's peers, and an ACL for each
    rule that refers to both. All pods are in the port group that denies what no ACL allows.
    """

    lab: Lab
    policies: int

    def prepare(self) -> None:
        """Start it, with a port of each application on each node, and all policies."""
        ovn.start(self.lab, NODES)
        logical: dict[str, tuple[str, IPv4Address]] = {}
        for node in self.lab.layout.nodes(NODES):
            for number in range(SUBJECTS):
                name, address = self._port(node, number), node.pod_cidr[10 + number]
                logical[name] = names.mac_of(address), address
                vsctl(
                    node,
                    *("add-port", names.INTEGRATION_BRIDGE, f"p{number}", "--", "set"),
                    *("Interface", f"p{number}", "type=internal", f"external_ids:iface-id={name}"),
                )
        ovn.add_ports(self.lab, logical)
        words = ["--", "pg-add", "deny", *logical]
        words += ["--", "acl-add", "deny", "to-lport", "1000", "outport == @deny && ip4", "drop"]
        for number in range(SUBJECTS):
            members = [a for port, (_, a) in logical.items() if port.endswith(f"-{number}")]
            words += self._address_set(f"app{number}", map(str, members))
        self._timed(words)
        for first in range(0, self.policies, 100):
            words = []
            for number in range(first, min(first + 100, self.policies)):
                ports = [port for port in logical if port.endswith(f"-{number % SUBJECTS}")]
                words += ["--", "pg-add", f"policy{number}", *ports]
                words += self._address_set(f"range{number}", [_range(number)])
                words += self._acl("acl-add", number, f"range{number}", 8080)
            self._timed(words)

    def update(self, number: int) -> float:
        """Seconds until every switch has one rule more of a policy; it is removed again."""
        rule = number, f"app{(number + 1) % SUBJECTS}", 9090
        time.sleep(PAUSE)
        seconds = self._timed(self._acl("acl-add", *rule))
        self._timed(self._acl("acl-del", *rule))
        return seconds

    @staticmethod
    def _port(node: NodeLayout, number: int) -> str:
        return f"{node.name}-{number}"

    @staticmethod
    def _address_set(name: str, addresses: Iterable[str]) -> list[str]:
        listed = ",".join(f'"{each}"' for each in addresses)
        return ["--", "create", "Address_Set", f"name={name}", f"addresses={listed}"]

    @staticmethod
    def _acl(verb: str, number: int, peers: str, port: int) -> list[str]:
        match = f"outport == @policy{number} && ip4.src == ${peers} && tcp.dst == {port}"
        words = ["--", verb, f"policy{number}", "to-lport", "1001", match]
        return [*words, "allow-related"] if verb == "acl-add" else words

    def _timed(self, words: Sequence[str]) -> float:
        began = time.monotonic()
        ovn.nbctl(self.lab, "--wait=hv", *words)
        return time.monotonic() - began


def _ref(of: NetworkPolicyObject) -> ObjectRef:
    return ObjectRef(of.kind, of.metadata.namespace, of.metadata.name)


def _flows(node: NodeLayout, table: int | None = None) -> list[str]:
    match = [] if table is None else [f"table={table}"]
    dump = ofctl(node, "--no-stats dump-flows", *match)
    return [line for line in dump.splitlines() if "priority=" in line]
