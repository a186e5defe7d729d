"""An EgressAddress that is used: its pods, and the nodes that may be its gateway."""

from ipaddress import IPv4Address
from typing import Final

from controller.egress.drafts import Draft
from controller.policies.pod_groups import Place, PodGroup, SelectionState
from flows.refs import ObjectRef

NOWHERE: Final = frozenset[str]()


class Rule:
    """An EgressAddress that is used."""

    __slots__ = ("address", "candidates", "draft", "hidden", "nodes", "places", "selection")

    def __init__(self, draft: Draft, address: IPv4Address) -> None:
        self.draft = draft
        self.address = address
        self.selection: SelectionState | None = None
        self.candidates = NOWHERE
        """The nodes that may be its gateway."""
        self.places: dict[Place, None] = {}
        """The attachments that leave from it."""
        self.nodes: dict[str, int] = {}
        """By node, how many of them it has."""
        self.hidden: dict[PodGroup, Rule] = {}
        """Groups that it selects, too, and the older rule that has them."""

    def add(self, place: Place) -> bool:
        """An attachment leaves from it. Returns whether it is the first of its node."""
        self.places[place] = None
        count = self.nodes.get(place.node, 0)
        self.nodes[place.node] = count + 1
        return not count

    def remove(self, place: Place) -> bool:
        """An attachment leaves from it no more. Returns whether it was the last of its node."""
        del self.places[place]
        count = self.nodes[place.node] - 1
        if count:
            self.nodes[place.node] = count
        else:
            del self.nodes[place.node]
        return not count

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef("EgressAddress", "", self.draft.name)
