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
        last = highest_addresses(lab)
        for number in range(STARTS // AT_ONCE):
            last = start(lab, stations, pods, number, last)


def start(
    lab: Lab, stations: Stations, pods: Process, number: int, last: dict[str, int]
) -> dict[str, int]:
    """Start some pods, and end them when what is allowed has passed.

    `last` is by node the address that was handed out last; returns it as it is then.
    """
    names = [f"p{number}-{index}" for index in range(AT_ONCE)]
    numbers = dict(zip(names, stations.numbers(2 * AT_ONCE)[::2], strict=True))
    inside = {name: lab.layout.pod_netns("locked", name) for name in names}
    for place in OPEN:
        targets = [[at, port, 0] for at in following(last) for port in (FORBIDDEN, ALLOWED)]
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
    last = highest_addresses(lab)
    for name in names:
        pods.say(f'"{inside[name]}"\n')
        assert "forbidden" not in received[inside[name]]
        lab.pod_del("locked", name)
    return last


def highest_addresses(lab: Lab) -> dict[str, int]:
    found = dict.fromkeys(NODES, 0)
    for pod in lab.pods():
        found[pod.node] = max(found[pod.node], int(IPv4Address(pod.address)))
    return found


def following(last: dict[str, int]) -> list[str]:
    """The addresses that the next pods get: they are handed out in turn."""
    return [str(IPv4Address(at + 1 + i)) for at in last.values() for i in range(AT_ONCE // 2)]
