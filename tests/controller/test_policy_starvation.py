"""Policies that change all the time do not keep other changes from the switches."""

import asyncio

from controller.inventory import Inventory
from controller.reconciler import Reconciler
from flows.kinds import ISOLATION
from flows.view import Key
from tests.controller.events import node_object
from tests.controller.policies.clusters import bridge_port, namespace, pod, policy
from tests.flows.worlds import CLUSTER

RULES = 200
"""More than one turn can take in."""


def _hostile(number: int) -> object:
    rules = [
        {"from": [{"podSelector": {"matchLabels": {"app": f"v{number}-{each}"}}}]}
        for each in range(RULES)
    ]
    return policy("evil/bad", podSelector={}, ingress=rules)


def test_policy_that_changes_all_the_time_does_not_stop_others() -> None:
    async def story() -> None:
        inventory = Inventory(CLUSTER)
        reconciler = Reconciler(inventory)
        reconciler.update(
            [
                node_object("node1", "10.244.1.0/24", "172.30.1.1"),
                namespace("shop"),
                namespace("evil"),
                pod("shop/web", "node1"),
                pod("evil/pod", "node1"),
            ],
            [],
        )
        ports = {path: bridge_port(path, f"10.244.1.{n}") for n, path in enumerate(PODS, 5)}
        inventory.set_ports("node1", ports.values())
        await reconciler.compilation.compiled("node1")
        program = reconciler.desired.program("node1")
        key = Key("node1", ISOLATION.name, ports["shop/web"].name)
        reconciler.update([_hostile(0), policy("shop/deny", podSelector={})], [])
        numbers = iter(range(1, TURNS))
        while key not in program.fragments:
            # The watch brings the next state before the last one is worked through.
            reconciler.update([_hostile(next(numbers))], [])
            await asyncio.sleep(0)

    asyncio.run(story())


PODS = ("shop/web", "evil/pod")
TURNS = 500
