"""The programs of all switches: those that a controller keeps, or made for a question."""

from collections.abc import Iterable
from typing import Protocol

from flows.compile import COMPILER, Program
from flows.flow import Flow, Group
from flows.refs import Owners
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

    def of(self, node: str) -> dict[int, tuple[Flow, Owners]]:
        """By cookie, all flows of a node, with their owners."""


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
        known = node in self._view.nodes or node == CLUSTER_SCOPE
        return self._compiled(node) if known else Program(node)

    def nodes_with_programs(self) -> Iterable[str]:
        """As `Programs.nodes_with_programs`."""
        return list(self._view.nodes)

    def _compiled(self, scope: str) -> Program:
        if scope not in self._made:
            self._made[scope] = COMPILER.program(self._view, scope)
        return self._made[scope]

    def of(self, node: str) -> dict[int, tuple[Flow, Owners]]:
        """As `Programs.of`. Seals are left out: there is no switch that they say anything of."""
        return {**self.shared.cookies, **self.program(node).cookies}

    def groups_of(self, node: str) -> dict[int, tuple[Group, Owners]]:
        """By id, all groups of a node, with their owners."""
        return self.shared.groups_with_owners() | self.program(node).groups_with_owners()
