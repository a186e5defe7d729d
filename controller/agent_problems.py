"""Problems that agents report: what can be seen only on the node itself."""

from typing import Final

from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind, Subject
from flows.refs import ObjectRef
from wire.documents import NodeProblems

SILENCE: Final = 150.0
"""Seconds after which an agent's report expires. The agent repeats lasting problems every 30 s."""


def take_problems(inventory: Inventory, node: str, given: NodeProblems) -> None:
    """Replace the problems that the agent of a known node reported before.

    Accepted are problems of its own node, of pods on it and of existing Services. A stolen node
    cannot report problems of other nodes' pods.
    """
    told: dict[Subject, str] = {}
    if given.node:
        told[ObjectRef.node(node)] = given.node
    for key, sentence in given.pods.items():
        namespace, _, name = key.partition("/")
        known = inventory.pod(namespace, name)
        if known is not None and known.spec.node_name == node:
            told[ObjectRef("Pod", namespace, name)] = sentence
    for key, sentence in given.services.items():
        if key in inventory.view.services:
            told[ObjectRef.namespaced("Service", key)] = sentence
    inventory.problems.replace_all(Reporter(ReporterKind.AGENT, node), told, lifetime=SILENCE)
