"""takeover_ms: how long no pod can be attached when the leading controller is killed.

Two controllers, an API server, two nodes. SIGKILL to the leader while an ADD begins every 100 ms;
the sample is the longest time between two ends of ADDs, beginning with the kill. So it is 100 ms
and more without any fault. Before the next round the killed controller runs again, and every switch
has a session with it.
"""

import os
import time

from bench.figures import Figure, percentile
from bench.nodes import unique
from lab import Lab
from lab.layout import NodeLayout
from lab.replicas import leader, wait_warm
from lab.runtime import Sandbox
from lab.steady_adds import adding, longest_gap, pods_to_add

ROUNDS = int(os.environ.get("SLUICE_TAKEOVERS") or 30)
BEFORE = 3
"""ADDs that have succeeded before a kill."""
AFTER = 5
"""The same after it."""


def measure(*, rounds: int = ROUNDS) -> list[Figure]:
    """Kill the leader that many times, each time the other one."""
    with (
        Lab(unique("takeover")).running(nodes=2, source="kube", controllers=2) as lab,
        pods_to_add(lab, lab.layout.node(1)) as pods,
    ):
        gaps = [1000 * _takeover(lab, lab.layout.node(1), pods) for _ in range(rounds)]
    return [
        Figure("takeover_ms", "ms", gaps),
        Figure("takeover_ms_p99", "ms", [percentile(gaps, 0.99)], at_most=1000),
    ]


def _takeover(lab: Lab, node: NodeLayout, pods: list[Sandbox]) -> float:
    """Seconds."""
    wait_warm(lab)
    victim = leader(lab)
    with adding(node, pods) as adds:
        adds.wait_for(BEFORE)
        killed = time.monotonic()
        lab.kill_daemon(victim, "controller")
        adds.wait_for(AFTER)
        until = time.monotonic()
        attempts = adds.stop()
    lab.start_daemon(victim, "controller")
    return longest_gap(attempts, killed, until)
