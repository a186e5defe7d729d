"""Pods under default-deny that send, and are sent to, from their first instruction."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Lab
from lab.patience import PATIENCE
from lab.processes import Process, running
from tests.lab.policy_objects import applied
from tests.lab.stations import Stations
from tests.policy.manifests import namespace, network_policy
from tests.waiting import wait_until

PROGRAM = Path(__file__).with_name("first_instruction.py")
FORBIDDEN, ALLOWED = 8001, 8000
STARTS = 200
AT_ONCE = 10
RESTARTS = {4, 9, 14}
"""In these rounds of starts the controller is killed and started again."""
NODES = ("node1", "node2")
OPEN = ("open/t1", "open/t2")
POLICY = network_policy(
    "locked/deny",
    podSelector={},
    egress=[{"ports": [{"protocol": "UDP", "port": ALLOWED}]}],
    ingress=[{"ports": [{"protocol": "UDP", "port": ALLOWED}]}],
    policyTypes=["Ingress", "Egress"],
)
PAUSE = 0.001 * PATIENCE


@pytest.mark.timeout(900)
def test_no_packet_passes_that_the_policies_of_a_new_pod_forbid(lab: Lab) -> None:
    for name in ("open", "locked"):
        lab.apply(namespace(name))
    for pod, node in zip(OPEN, NODES, strict=True):
        lab.pod_add(*pod.split("/"), node)
    with (
        Stations.at(lab, OPEN) as stations,
        applied(lab, POLICY),
        running([sys.executable, "-I", str(PROGRAM)]) as pods,
    ):
        assert pods.line() == "ready"
        for number in range(STARTS // AT_ONCE):
            start(lab, stations, pods, number)


def start(lab: Lab, stations: Stations, pods: Process, number: int) -> None:
    """Start some pods, and end them when what is allowed has passed."""
    names = [f"p{number}-{index}" for index in range(AT_ONCE)]
    numbers = dict(zip(names, stations.numbers(2 * AT_ONCE)[::2], strict=True))
    inside = {name: lab.layout.pod_netns("locked", name) for name in names}
    for place in OPEN:
        targets = [[at, port, 0] for at in next_addresses(lab) for port in (FORBIDDEN, ALLOWED)]
        stations.say(place, "stream", targets=targets, pause=PAUSE)
    for name in names:
        pods.say(json.dumps([inside[name], numbers[name], [*map(stations.addresses.get, OPEN)]]))
        pods.say("\n")

    def add(index: int) -> None:
        lab.pod_add("locked", names[index], NODES[index % len(NODES)])

    with ThreadPoolExecutor(4) as pool:
        added = pool.map(add, range(AT_ONCE))
        if number in RESTARTS:
            lab.kill_daemon("control", "controller")
            lab.start_control()
        list(added)

    received: dict[str, dict[str, int]] = {}

    def all_have_received() -> bool:
        received.update(json.loads(pods.ask("")))
        return all(received[inside[name]].get("allowed", 0) for name in names)

    wait_until(all_have_received)
    for place in OPEN:
        stations.say(place, "end", word="", to=[], pause=0)
        stations.answer(place)
        stations.answer(place)
    forbidden, allowed = set(numbers.values()), {one + 1 for one in numbers.values()}
    for place in OPEN:
        seen = set()

        def all_are_seen(place: str = place, seen: set[int] = seen) -> bool:
            seen.update(stations.ask(place, "collect", words=[]))
            return seen >= allowed

        wait_until(all_are_seen)
        assert not seen & forbidden
    for name in names:
        pods.say(f'"{inside[name]}"\n')
        assert "forbidden" not in received[inside[name]]
        lab.pod_del("locked", name)


def next_addresses(lab: Lab) -> list[str]:
    """Those that the next pods get: addresses are handed out in turn."""
    found = []
    for node in NODES:
        given = [int(IPv4Address(pod.address)) for pod in lab.pods() if pod.node == node]
        found += [str(IPv4Address(max(given) + 1 + index)) for index in range(AT_ONCE // 2)]
    return found
