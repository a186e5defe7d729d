"""Which nodes the selectors of gateways select.

The cost of a changed Node depends on the number of selectors, not on that of Nodes.
"""

from collections.abc import Collection
from typing import TYPE_CHECKING

from controller.address_owners.claims import considered
from controller.policies.selectors import Labels, Selector, matches
from controller.policies.slices import Slices

if TYPE_CHECKING:
    from controller.inventory.nodes import Nodes


class Candidates:
    """By selector of gateways, the Nodes that it selects and that take part."""

    def __init__(self, nodes: "Nodes") -> None:
        self._nodes = nodes
        self._labels: dict[str, Labels] = {}
        """By Node, as they were seen last."""
        self._matching: dict[Selector, frozenset[str]] = {}

    def follow(self, name: str) -> bool:
        """A Node object was added, changed or removed. Returns whether its labels changed."""
        given = self._nodes.objects.get(name)
        labels = None if given is None else given.metadata.labels or {}
        if self._labels.get(name) == labels:
            return False
        if labels is None:
            del self._labels[name]
        else:
            self._labels[name] = labels
        return True

    def of(self, selector: Selector) -> frozenset[str]:
        """The nodes that one selector selects, as many as `considered` takes."""
        found = self._matching.get(selector)
        if found is None:
            accepted = self._nodes.accepted
            found = frozenset(name for name in accepted if self._is_selected(selector, name))
            self._matching[selector] = found
        return considered(found)

    def update(self, nodes: Collection[str], used: Collection[Selector]) -> Slices[set[Selector]]:
        """Look at these Nodes again, in steps. The result: the selectors that select others now.

        `used` are all selectors; others are forgotten.
        """
        moved = set()
        for selector in self._matching.keys() - used:
            del self._matching[selector]
        for selector, found in list(self._matching.items()):
            yield
            now = {name for name in nodes if self._is_selected(selector, name)}
            if found.intersection(nodes) != now:
                moved.add(selector)
                self._matching[selector] = found.difference(nodes) | now
        return moved

    def _is_selected(self, selector: Selector, node: str) -> bool:
        return node in self._nodes.accepted and matches(selector, self._labels.get(node, {}))
