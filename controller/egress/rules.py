"""An EgressAddress that is used: its pods, and the nodes that may be its gateway."""

from ipaddress import IPv4Address
from typing import Final

from controller.egress.drafts import Draft
from controller.policies.pod_groups import Place, PodGroup, SelectionState
from flows.refs import ObjectRef

NOWHERE: Final = frozenset[str]()


class Rule:
    """An EgressAddress that is used."""

    __slots__ = ("address", "candidates", "draft", "hidden", "places", "selection")

    def __init__(self, draft: Draft, address: IPv4Address) -> None:
        self.draft = draft
        self.address = address
        self.selection: SelectionState | None = None
        self.candidates = NOWHERE
        """The nodes that may be its gateway."""
        self.places: dict[Place, None] = {}
        """The attachments that leave from it."""
        self.hidden: dict[PodGroup, Rule] = {}
        """Groups that it selects, too, and the older rule that has them."""

    @property
    def ref(self) -> ObjectRef:
        """The object."""
        return ObjectRef("EgressAddress", "", self.draft.name)
