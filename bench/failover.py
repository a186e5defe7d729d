"""How long an address of the link, or of egress, is without its node when that node goes away.

lb_failover_ms: the node's cable is pulled out, and its agent is killed; until another node says on
the link that the address is its own. lb_drain_ms: the same from when the Node is made
unschedulable. Somebody on the link asks every 10 ms, and if two nodes have the address at one
moment, the measurement fails.

egress_failover_ms: the gateway of an egress address dies in the same way; until a datagram of a
pod, which sends one every 10 ms, leaves through another node.
"""

import os
import time
from typing import Final

from bench.figures import Figure
from bench.nodes import unique
from lab import Lab, egress
from lab.link_addresses import POOL, drain, moved, owner, serve, set_link, watched

ROUNDS: Final = int(os.environ.get("SLUICE_FAILOVERS") or 9)
_ADDRESS: Final = "172.30.200.1"


def measure(*, rounds: int = ROUNDS) -> list[Figure]:
    """Kill the owner that many times, and drain it that many times."""
    with Lab(unique("failover")).running(nodes=3, tls=True) as lab:
        lab.apply(POOL)
        serve(lab, "web", "10.96.0.50", _ADDRESS)
        deaths = [1000 * _death(lab) for _ in range(rounds)]
        drains = [1000 * _drain(lab) for _ in range(rounds)]
        egress.set_up(lab, "node2", "node3")
        lab.pod_add(egress.NAMESPACE, "a", "node1")
        gateways = [1000 * _gateway(lab) for _ in range(rounds)]
    return [
        Figure("lb_failover_ms", "ms", deaths, at_most=2000),
        Figure("lb_drain_ms", "ms", drains, at_most=1000),
        Figure("egress_failover_ms", "ms", gateways, at_most=2000),
    ]


def _death(lab: Lab) -> float:
    """Seconds."""
    with watched(lab, _ADDRESS) as (node, watch):
        set_link(lab, node, "down")
        since = time.monotonic()
        lab.kill_daemon(node, "agent")
        owner(lab, _ADDRESS, other_than=node)
        time.sleep(0.3)
        took = moved(watch.stop(), since)
    set_link(lab, node, "up")
    lab.start_daemon(node, "agent")
    return took


def _drain(lab: Lab) -> float:
    """Seconds."""
    with watched(lab, _ADDRESS) as (node, watch):
        since = time.monotonic()
        drain(lab, node, unschedulable=True)
        owner(lab, _ADDRESS, other_than=node)
        time.sleep(0.3)
        took = moved(watch.stop(), since)
    drain(lab, node, unschedulable=False)
    return took


def _gateway(lab: Lab) -> float:
    """Seconds."""
    with egress.watched(lab, f"{egress.NAMESPACE}/a") as (node, watch):
        set_link(lab, node, "down")
        since = time.monotonic()
        lab.kill_daemon(node, "agent")
        owner(lab, egress.ADDRESS, other_than=node)
        time.sleep(1)
        took = moved(watch.stop(), since)
    set_link(lab, node, "up")
    lab.start_daemon(node, "agent")
    return took
