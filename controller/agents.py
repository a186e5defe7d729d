"""What the nodes' agents say is wrong, and nobody but them can see."""

import time
from collections.abc import Callable

from controller.inventory import Inventory
from wire.documents import NodeProblems

SILENCE = 150.0
"""Seconds after which an agent's word is out of date. It says again what is still so each 30 s."""


class AgentProblems:
    """By node, what its agent said last; believed of that node only, its pods and its Services."""

    def __init__(
        self, inventory: Inventory, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._inventory = inventory
        self._monotonic = monotonic
        self._said: dict[str, tuple[float, NodeProblems]] = {}

    def take(self, node: str, given: NodeProblems) -> None:
        """What is wrong on a node now, in place of what was."""
        self._said[node] = self._monotonic(), given

    def current(self) -> dict[str, str]:
        """Subject -> sentence, as in `Reconciler.problems`."""
        found: dict[str, str] = {}
        for node, (at, given) in list(self._said.items()):
            if self._monotonic() - at > SILENCE or not self._inventory.knows_node(node):
                del self._said[node]
                continue
            if given.node:
                found[f"agent of {node}"] = given.node
            for pod, sentence in given.pods.items():
                namespace, _, name = pod.partition("/")
                known = self._inventory.pod(namespace, name)
                # A stolen node has no say about others' pods. One that is gone needs no word.
                if known is not None and known.spec.node_name == node:
                    found[f"Pod {pod} on {node}"] = sentence
            for service, sentence in given.services.items():
                if service in self._inventory.view.services:
                    found[f"Service {service} on {node}"] = sentence
        return found
