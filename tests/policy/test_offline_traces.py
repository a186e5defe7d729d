"""`sluice trace` from objects, of random clusters: what arrives is what the evaluator allows."""

from random import Random

from controller.offline.trace import trace
from controller.programs import CompiledPrograms
from tests.policy.conftest import packet_of
from tests.policy.controlled import Controlled
from tests.policy.evaluator import Evaluator
from tests.policy.generator import generate

CLUSTERS, PACKETS = 60, 20
OUTSIDE = "203.0.113.9"


def test_offline_traces_and_evaluator_agree_on_random_clusters() -> None:
    controlled = Controlled()
    delivered = 0
    for seed in range(CLUSTERS):
        cluster = generate(seed)
        controlled.become(cluster)
        view = controlled.inventory.view
        programs = CompiledPrograms(view)
        chance = Random(seed)  # noqa: S311  no secret
        pods = [each.pod for some in view.attachments.values() for each in some.values()]
        pods = [each for each in pods if each]
        for _ in range(PACKETS if pods else 0):
            source = chance.choice([*pods, *pods, *view.nodes, OUTSIDE])
            destination = chance.choice([*pods, *pods, *pods, OUTSIDE])
            if source == destination:
                continue
            protocol = chance.choice(("TCP", "UDP", "SCTP", "ICMP"))
            number = str(chance.choice((80, 443, 53, 8080, chance.randrange(1, 65_536))))
            port = "" if protocol == "ICMP" else number
            query = {"from": source, "to": destination, "port": port, "protocol": protocol}
            found = trace(controlled.inventory, programs, query | {"reply": ""})
            packet, _ = packet_of(cluster, f"{source} > {destination} {protocol} {port}")
            what = (seed, query, found.there.end)
            assert found.there.delivered == Evaluator(cluster).allows(packet), what
            assert found.back is None or found.back.delivered, (*what, found.back.end)
            delivered += found.there.delivered
    assert 0 < delivered < CLUSTERS * PACKETS
