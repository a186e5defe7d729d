"""What the switches of a cluster without switches should hold."""

from functools import cached_property

from controller.inventory import Inventory
from flows.compile import Program, compile_scope
from flows.flow import Flow, Group
from flows.refs import Owners
from flows.view import CLUSTER_SCOPE


class OfflinePrograms:
    """Compiles what is asked for (`controller.flow_choice.Programs`)."""

    def __init__(self, inventory: Inventory) -> None:
        self._view = inventory.view
        self._own: dict[str, Program] = {}

    @cached_property
    def shared(self) -> Program:
        """What all nodes share."""
        return compile_scope(self._view, CLUSTER_SCOPE)

    def program(self, node: str) -> Program:
        """A node's own; empty for one that is refused."""
        if node not in self._own:
            known = node in self._view.nodes
            self._own[node] = compile_scope(self._view, node) if known else Program(node)
        return self._own[node]

    def of(self, node: str) -> dict[int, tuple[Flow, Owners]]:
        """By cookie, all flows of a node, with their owners. Seals are left out."""
        return {**self.shared.cookies, **self.program(node).cookies}

    def flow(self, node: str, cookie: int) -> tuple[Flow, Owners] | None:
        """The flow of a node that has this cookie."""
        return self.shared.cookies.get(cookie) or self.program(node).cookies.get(cookie)

    def groups_of(self, node: str) -> dict[int, tuple[Group, Owners]]:
        """By id, all groups of a node, with their owners."""
        return self.shared.groups_with_owners() | self.program(node).groups_with_owners()
