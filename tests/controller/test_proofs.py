"""How long ago each node's switch was proven to hold what it should."""

import asyncio

from prometheus_client.parser import text_string_to_metric_families

from controller.metrics import PROVEN_AGE
from controller.proofs import Proofs
from controller.work_budget import in_turns


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_age_counts_from_the_last_proof() -> None:
    clock, nodes = Clock(), {"node1", "node2"}
    proofs = Proofs(nodes, clock)
    proofs.proven("node1")
    clock.now += 7
    assert proofs.age("node1") == 7
    proofs.proven("node1")
    assert proofs.age("node1") == 0


def test_node_without_a_proof_ages_from_the_first_look() -> None:
    clock, nodes = Clock(), {"node1"}
    proofs = Proofs(nodes, clock)
    assert proofs.oldest == 0
    clock.now += 7
    assert proofs.oldest == 7
    nodes.clear()
    assert proofs.oldest == 0


def test_node_that_comes_back_has_no_proof() -> None:
    clock = Clock()
    proofs = Proofs({"node1"}, clock)
    proofs.proven("node1")
    clock.now += 7
    proofs.forget("node1")
    assert proofs.age("node1") == 0


def test_metric_of_many_nodes_is_made_in_steps() -> None:
    nodes = {f"node{number}": 0 for number in range(5_000)}
    proofs = Proofs(nodes, Clock())

    async def story() -> bytes:
        return await in_turns(PROVEN_AGE.text(await in_turns(proofs.ages())))

    text = asyncio.run(story()).decode()
    (family,) = text_string_to_metric_families(text)
    assert {sample.labels["node"] for sample in family.samples} == nodes.keys()
    steps = sum(1 for _ in proofs.ages()) + sum(1 for _ in PROVEN_AGE.text(nodes))
    assert steps == 2 * len(nodes)
