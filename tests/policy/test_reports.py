"""What `sluice policy` and `sluice what-if` say is what the evaluator says, for any cluster."""

from itertools import product
from random import Random

import pytest

from controller.inventory import Inventory
from controller.offline.from_manifests import Offline
from controller.policies.slices import complete
from controller.policy_reports.verdict import verdict
from controller.sources.objects import from_manifest, ref
from controller.what_if.run import what_if
from tests.flows.worlds import CLUSTER
from tests.policy.controlled import ports_of as ports_on
from tests.policy.evaluator import Attachment, Cluster, End, Evaluator, Packet, gateway
from tests.policy.generator import generate

POLICIES = ("NetworkPolicy", "ClusterNetworkPolicy")
OUTSIDE = ("203.0.113.7", "203.0.113.200", "198.51.100.1", "8.8.8.8")


def inventory_of(cluster: Cluster) -> Inventory:
    made = Inventory(CLUSTER)
    for each in cluster.objects:
        made.set_object(from_manifest(each))
    made.settle()
    for node in cluster.nodes:
        made.set_ports(node, ports_on(cluster, node))
    made.settle()
    return made


def pods_of(cluster: Cluster) -> list[Attachment]:
    """Attached pods, each once."""
    found = {each.pod: each for each in cluster.attachments if each.pod}
    twice = [each.pod for each in cluster.attachments]
    return [each for name, each in found.items() if twice.count(name) == 1]


def ports_of(cluster: Cluster) -> list[tuple[str, int | None]]:
    """The ends of all ranges of ports that could matter."""
    numbers = {1, 65_535}
    text = str(cluster.objects).replace(",", " ").replace("}", " ").replace("{", " ")
    for word in text.split():
        if word.isdecimal() and 1 <= int(word) <= 65_535:
            numbers |= {int(word), min(int(word) + 1, 65_535), max(int(word) - 1, 1)}
    pairs: list[tuple[str, int | None]] = [("ICMP", None)]
    return pairs + list(product(("TCP", "UDP", "SCTP"), sorted(numbers)))


@pytest.mark.parametrize("seed", range(60))
def test_verdict_is_that_of_the_evaluator(seed: int) -> None:
    cluster = generate(seed)
    inventory = inventory_of(cluster)
    evaluator = Evaluator(cluster)
    chance = Random(seed)  # noqa: S311 - no secret
    ends = [End(each.address, each.pod, each.node) for each in pods_of(cluster)]
    nodes = [End(gateway(node), "", name) for name, node in cluster.nodes.items()]
    ends += [*nodes, *map(End, OUTSIDE)]
    ports = ports_of(cluster)
    for source, target in product(ends, repeat=2):
        if not source.pod and not target.pod:
            continue
        for protocol, port in chance.sample(ports, min(6, len(ports))):
            asked = source.pod or source.node or source.address, target.pod or target.address
            text = "" if port is None else str(port)
            told = complete(verdict(inventory, asked, text, protocol))
            packet = Packet(source, target, protocol, port)
            assert told.accepted == evaluator.allows(packet), (asked, protocol, port)
            for case in told.cases:
                for judgement in case.judgements:
                    assert sum(step.decides for step in judgement.steps) <= 2
                    for step in judgement.steps:
                        assert step.decides or not (step.peer_matched and step.port_matched)


@pytest.mark.parametrize("seed", range(60))
def test_what_if_is_the_difference_of_two_evaluators(seed: int) -> None:
    cluster = generate(seed)
    chance = Random(seed)  # noqa: S311 - no secret
    policies = [each for each in cluster.objects if each["kind"] in POLICIES]
    others = [each for each in cluster.objects if each["kind"] not in POLICIES]
    new = [each for each in generate(seed + 5_000).objects if each["kind"] in POLICIES]
    delete = bool(policies) and chance.random() < 0.3
    change = chance.sample(policies, 1) if delete else new
    identities = {ref(from_manifest(each)) for each in change}
    after = [each for each in policies if ref(from_manifest(each)) not in identities]
    changed = Cluster([*others, *after, *([] if delete else change)], cluster.attachments)
    inventory = inventory_of(cluster)
    made = [from_manifest(each) for each in change]
    found = what_if(Offline(inventory), [] if delete else made, identities if delete else ())
    told = {
        lost: {
            (source.workload.ref, target.workload.ref)
            for row in rows
            for source, target in product(row.sources, row.destinations)
        }
        for lost, rows in ((True, found.loses), (False, found.gains))
    }
    old, now = Evaluator(cluster), Evaluator(changed)
    ports = ports_of(Cluster([*cluster.objects, *change], cluster.attachments))
    pods = [each for each in pods_of(cluster) if each.pod in cluster.pods]
    for one, other in product(pods, repeat=2):
        if one == other:
            continue
        ends = End(one.address, one.pod, one.node), End(other.address, other.pod, other.node)
        packets = [Packet(*ends, protocol, port) for protocol, port in ports]
        pair = tuple(ref(from_manifest(dict(cluster.pods[each.pod]))) for each in (one, other))
        for lost, first, second in ((True, old, now), (False, now, old)):
            differs = any(first.allows(p) and not second.allows(p) for p in packets)
            assert (pair in told[lost]) == differs, (pair, lost)
