"""The simulation of several controllers, with costs that are not measured."""

import math
from collections import Counter
from dataclasses import fields

from bench.shard_costs import Cost, Costs
from bench.shards import SHARDS, owners, shard_of, simulate

COSTS = Costs(**{each.name: Cost(1e-4, 1000.0, 500.0) for each in fields(Costs)})
CHEAP = Costs(**{each.name: Cost(1e-9, 1.0, 1.0) for each in fields(Costs)})


def test_a_node_has_one_shard_whichever_replicas_there_are():
    assert shard_of("node1") == shard_of("node1")
    sizes = Counter(shard_of(f"node{number}") for number in range(SHARDS * 200))
    assert len(sizes) == SHARDS
    assert max(sizes.values()) < 1.3 * 200


def test_owner_and_successor_differ_and_nobody_has_much_more_than_its_part():
    found = owners([f"replica-{number}" for number in range(8)])
    assert all(owner != successor for owner, successor in found.values())
    assert max(Counter(owner for owner, _ in found.values()).values()) <= 1.1 * SHARDS / 8 + 1


def test_the_end_of_a_replica_moves_little_more_than_its_own_shards():
    names = [f"replica-{number}" for number in range(8)]
    before = owners(names)
    after = owners(names[1:])
    moved = sum(before[shard][0] != after[shard][0] for shard in before)
    assert SHARDS / 8 * 0.7 <= moved <= SHARDS / 8 * 2


def test_more_replicas_need_less_each_but_never_less_than_what_is_shared():
    few, many = simulate(COSTS, 1_000, 2), simulate(COSTS, 1_000, 16)
    assert many.memory_gb < few.memory_gb
    assert many.start_s < few.start_s
    assert many.endpoint_ms < few.endpoint_ms
    assert many.failover_s < few.failover_s
    shared = 1_000 * 1000 + 2_000 * 1000 + 30_000 * 2000
    assert many.memory_gb > shared / 1e9


def test_changes_that_cost_more_than_the_time_there_is_wait_longer_and_longer():
    assert simulate(COSTS, 50_000, 1).churn_ms_p99 == math.inf
    cheap = simulate(CHEAP, 1_000, 2)
    assert cheap.churn_load < 1
    assert cheap.churn_ms_p99 < 1_000
