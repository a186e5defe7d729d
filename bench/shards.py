"""50,000 nodes on several controllers, simulated with costs that are measured here. docs/shards.md.

    python -m bench.shards --nodes 50000

The real functions that a design needs are run (which replica owns which shard, after any replica's
end); what replicas spend is calculated from `bench.shard_costs`, and how long changes wait is
simulated round by round. Nothing of this is built.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from typing import Final

import click

from bench.figures import percentile
from bench.large_fleet import ENDPOINTS, PODS_OF_NODE, SERVICES_OF_NODE
from bench.shard_costs import Costs, measure

SHARDS: Final = 256
"""Fixed for ever: a node belongs to one shard whichever replicas there are."""
MOST_LOAD: Final = 1.1
"""A replica takes so many times its equal part of the shards at most."""
POD_CHANGES: Final = 0.02
"""A second and node: 100 a second for 5,000 nodes, as `fleet5k` has them."""
OF_ENDPOINTS: Final = 0.5
"""The part of those that change an EndpointSlice, too."""
TICK: Final = 0.005
"""Seconds for which changes are gathered at least."""
SECONDS: Final = 30.0
"""Of changes, simulated."""
NOTICED: Final = 0.1
"""Seconds until a replica's end is noticed (docs/two-controllers.md)."""
POD_JSON: Final = 4_600
"""Bytes of a Pod in a list (`bench.large_cluster`)."""
REPLICAS: Final = (1, 2, 4, 8, 16, 32)


def shard_of(node: str, shards: int = SHARDS) -> int:
    """The shard of a node."""
    return _weight(node, "") % shards


def preference(shard: int, replicas: Sequence[str]) -> list[str]:
    """The replicas in the order in which they should own a shard (rendezvous hash)."""
    return sorted(replicas, key=lambda replica: _weight(str(shard), replica), reverse=True)


def owners(replicas: Sequence[str], shards: int = SHARDS) -> dict[int, tuple[str, str]]:
    """By shard its owner and its successor.

    The first in its order that has room. Without that bound the fullest of 8 replicas has 1.3
    times its part.
    """
    most = -(-int(MOST_LOAD * 1000) * shards // (1000 * len(replicas)))
    owned: Counter[str] = Counter()
    followed: Counter[str] = Counter()
    found = {}
    for shard in range(shards):
        order = preference(shard, replicas)
        owner = next(each for each in order if owned[each] < most)
        owned[owner] += 1
        rest = [each for each in order if each != owner] or [owner]
        successor = next((each for each in rest if followed[each] < most), rest[0])
        followed[successor] += 1
        found[shard] = owner, successor
    return found


def _weight(first: str, second: str) -> int:
    return int.from_bytes(blake2b(f"{first}/{second}".encode(), digest_size=8).digest())


@dataclass(frozen=True)
class Result:
    """Of a number of replicas; of the replica that has most to do."""

    replicas: int
    owned: int
    """Nodes that it writes to."""
    followed: int
    """Nodes that it would take over."""
    start_s: float
    """Seconds of CPU from its start until all its switches are compared, which hold their flows."""
    fill_s: float
    """The same, with empty switches."""
    memory_gb: float
    endpoint_ms: float
    """From an endpoint's change until the last switch has it, without other changes."""
    pods_load: float
    """The part of its time that changes of pods take; 1 and more: they wait longer and longer."""
    pods_ms_p99: float
    """From a pod's change until its switch has its flows."""
    churn_load: float
    """The same if half of these pods are endpoints of Services."""
    churn_ms_p99: float
    moved: int
    """Nodes that a survivor takes over at most, when one replica ends."""
    failover_s: float
    """Until the last of them is compared. The successor has compiled its flows."""
    failover_cold_s: float
    """The same, if it has not."""
    shards_moved: float
    """The part of all shards that change their owner, when one replica ends."""


def simulate(costs: Costs, nodes: int, replicas: int, *, services: int | None = None) -> Result:
    """What `replicas` controllers do for a cluster."""
    services = SERVICES_OF_NODE * nodes if services is None else services
    names = [f"replica-{number}" for number in range(replicas)]
    size = Counter(shard_of(f"node{number}") for number in range(1, nodes + 1))
    before = owners(names)
    owned, followed = _loads(before, size)
    fullest = max(names, key=lambda name: owned[name] + followed[name])
    own, standby = owned[fullest], followed[fullest] if replicas > 1 else 0
    pods = nodes * PODS_OF_NODE
    shared_wire = nodes * costs.node.wire + services * costs.service.wire
    read = (
        nodes * costs.node.seconds
        + services * costs.service.seconds
        + pods * (costs.pod.seconds + costs.port.seconds)
    )
    connected = (own + standby) * (costs.own.seconds + costs.session.seconds)
    fill = own * (shared_wire + costs.own.wire) * costs.byte.seconds
    memory = (
        nodes * costs.node.memory
        + services * costs.service.memory
        + pods * (costs.pod.memory + costs.port.memory)
        + (own + standby) * (costs.own.memory + costs.session.memory)
    )
    endpoint = costs.endpoint.seconds + own * _of_switch(costs, 1)
    pods_load, pods_delay = _changes(costs, nodes, own, 0.0)
    churn_load, churn_delay = _changes(costs, nodes, own, OF_ENDPOINTS)
    moved, part = _moved(before, names, size)
    take = costs.session.seconds
    return Result(
        replicas, own, standby, read + connected, read + connected + fill, memory / 1e9,
        1000 * endpoint, pods_load, 1000 * pods_delay, churn_load, 1000 * churn_delay, moved,
        NOTICED + moved * take, NOTICED + moved * (take + costs.own.seconds), part,
    )  # fmt: skip


def _loads(
    found: dict[int, tuple[str, str]], size: Counter[int]
) -> tuple[Counter[str], Counter[str]]:
    owned: Counter[str] = Counter()
    followed: Counter[str] = Counter()
    for shard, (owner, successor) in found.items():
        owned[owner] += size[shard]
        followed[successor] += size[shard]
    return owned, followed


def _moved(
    before: dict[int, tuple[str, str]], names: Sequence[str], size: Counter[int]
) -> tuple[int, float]:
    """Nodes that one survivor takes over at most, and the part of shards that move at most."""
    if len(names) == 1:
        return sum(size.values()), 1.0
    worst, most = 0, 0
    for ended in names:
        taken: Counter[str] = Counter()
        for shard, (owner, successor) in before.items():
            if owner == ended:
                taken[successor] += size[shard]
        worst = max(worst, *taken.values())
        after = owners([name for name in names if name != ended])
        most = max(most, sum(before[shard][0] != after[shard][0] for shard in before))
    return worst, most / len(before)


def _of_switch(costs: Costs, changes: float) -> float:
    """Seconds that changes of shared endpoints take at one more switch, gathered into one."""
    return (costs.update.seconds + changes * costs.endpoint.wire * costs.byte.seconds) * (
        changes > 0
    )


def _changes(costs: Costs, nodes: int, own: int, of_endpoints: float) -> tuple[float, float]:
    """The load of changes of pods, and the p99 of what they wait, in seconds.

    Changes come evenly. Those that come during a round are the next round. The load is that of
    very long rounds, which cost least.
    """
    rate = POD_CHANGES * nodes
    of_change = (
        costs.pod.seconds
        + costs.port.seconds
        + of_endpoints * costs.endpoint.seconds
        + own / nodes * (costs.attached.seconds + costs.update.seconds)
    )
    of_bytes = of_endpoints * own * costs.endpoint.wire * costs.byte.seconds
    load = rate * (of_change + of_bytes)
    if load >= 1:
        return load, math.inf
    now, taken, delays = 0.0, 0, []
    while now < SECONDS:
        waiting = int(now * rate) - taken
        if not waiting:
            now += TICK
            continue
        spent = max(TICK, waiting * of_change + own * _of_switch(costs, waiting * of_endpoints))
        delays += [now - (taken + number) / rate + spent for number in range(waiting)]
        taken, now = taken + waiting, now + spent
    return load, percentile(delays, 0.99)


@click.command()
@click.option("--nodes", default=50_000, show_default=True)
@click.option("--services", type=int, help="Two for each node by default.")
def main(nodes: int, services: int | None) -> None:
    """Measure the costs, and print what they mean for so many nodes."""
    costs = measure()
    click.echo(f"{'piece':10}{'CPU µs':>12}{'bytes':>12}{'wire bytes':>12}")
    for each in fields(costs):
        cost = getattr(costs, each.name)
        click.echo(
            f"{each.name:10}{1e6 * cost.seconds:12,.4f}{cost.memory:12,.0f}{cost.wire:12,.0f}"
        )
    pods = nodes * PODS_OF_NODE
    count = SERVICES_OF_NODE * nodes if services is None else services
    shared = nodes * costs.node.wire + count * costs.service.wire
    click.echo(
        f"\n{nodes:,} nodes, {pods:,} pods, {count:,} Services with {ENDPOINTS} endpoints;"
        f" shared flows: {shared / 1e6:,.0f} MB to each switch;"
        f" a list of all Pods: {pods * POD_JSON / 1e9:.1f} GB\n"
    )
    names = [each.name for each in fields(Result)]
    click.echo(" ".join(f"{name:>12}" for name in names))
    for replicas in REPLICAS:
        result = simulate(costs, nodes, replicas, services=count)
        values = (getattr(result, name) for name in names)
        click.echo(
            " ".join(
                f"{_shown(value):>{max(12, len(name))}}"
                for name, value in zip(names, values, strict=True)
            )
        )


def _shown(value: float) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    if math.isinf(value):
        return "grows"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


if __name__ == "__main__":
    main()
