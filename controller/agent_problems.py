"""What the nodes' agents tell of their nodes: problems that only a node can see."""

from typing import Final

from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind, Subject
from flows.refs import ObjectRef
from wire.documents import NodeProblems

SILENCE: Final = 150.0
"""Seconds after which an agent's report is out of date. It repeats what lasts every 30 s."""


def take_problems(inventory: Inventory, node: str, given: NodeProblems) -> None:
    """Replace what the agent of a known node told before.

    An agent is believed about its own node, the pods on it and existing Services. A stolen node has
    no say about others' pods.
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
