"""The programs of switches that an explanation looks into."""

from collections.abc import Iterable
from typing import Protocol

from flows.compile import COMPILER, Program
from flows.view import CLUSTER_SCOPE, ClusterView


class Programs(Protocol):
    """What the switches should hold; `controller.desired.Desired` is one."""

    @property
    def shared(self) -> Program:
        """What all nodes have."""

    def program(self, node: str) -> Program:
        """A node's own."""

    def nodes_with_programs(self) -> Iterable[str]:
        """The nodes that have a program of their own."""


class CompiledPrograms:
    """Programs that are compiled when they are first looked into, without any switch."""

    def __init__(self, view: ClusterView) -> None:
        """`view` must not change."""
        self._view = view
        self._made: dict[str, Program] = {}

    @property
    def shared(self) -> Program:
        """As `Programs.shared`."""
        return self._compiled(CLUSTER_SCOPE)

    def program(self, node: str) -> Program:
        """As `Programs.program`."""
        return self._compiled(node)

    def nodes_with_programs(self) -> Iterable[str]:
        """As `Programs.nodes_with_programs`."""
        return list(self._view.nodes)

    def _compiled(self, scope: str) -> Program:
        if scope not in self._made:
            self._made[scope] = COMPILER.program(self._view, scope)
        return self._made[scope]
