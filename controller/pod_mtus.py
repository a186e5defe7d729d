"""Which MTU pods get on each node: if they differ, large packets are lost silently.

The tunnel of a node with large frames sends packets that another node's network cannot carry, and
nothing answers with an ICMP error. So a node that differs from most others is reported.
"""

from collections import Counter
from collections.abc import Callable
from typing import Final

from controller.problems import Problems, Reporter, ReporterKind
from flows.refs import ObjectRef

REPORTER: Final = Reporter(ReporterKind.AGENT)
_LIFETIME: Final = 300.0
"""Seconds without a report after which a node's problem ends. Agents report every minute."""


class PodMtus:
    """Takes the reports of agents, and reports a node whose MTU differs from most others."""

    def __init__(self, problems: Problems, is_known: Callable[[str], bool]) -> None:
        """`is_known` says whether a Node of this name exists."""
        self._problems = problems
        self._is_known = is_known
        self._of_node: dict[str, int] = {}
        self._nodes_with: Counter[int] = Counter()
        self._reports = 0

    def report(self, node: str, mtu: int) -> None:
        """The MTU that a node's agent gives its pods; 0: unknown."""
        self._forget(node)
        # Once in as many reports as there are nodes, so a report costs the same with many nodes.
        self._reports += 1
        if self._reports > len(self._of_node):
            self._reports = 0
            for gone in [name for name in self._of_node if not self._is_known(name)]:
                self._forget(gone)
        if mtu:
            self._of_node[node] = mtu
            self._nodes_with[mtu] += 1
        self._problems.set(
            REPORTER, ObjectRef("Node", "", node), self._problem(mtu), lifetime=_LIFETIME
        )

    def _forget(self, node: str) -> None:
        before = self._of_node.pop(node, 0)
        if before:
            self._nodes_with[before] -= 1
            if not self._nodes_with[before]:
                del self._nodes_with[before]

    def _problem(self, mtu: int) -> str:
        if not mtu:
            return ""
        # If two are equally common, the smaller one: every node can carry it.
        usual = min(self._nodes_with, key=lambda each: (-self._nodes_with[each], each))
        if mtu == usual:
            return ""
        return (
            f"pods of this node get an MTU of {mtu}, those of most nodes {usual}: large packets "
            f"between them may be lost; set cluster.mtu to {min(mtu, usual)}"
        )
