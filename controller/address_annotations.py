"""The annotation `sluice.dev/address` of Nodes: the uplink's address and prefix length.

A Node has no prefix length, and the way of a pair of nodes depends on it. So the agents report it,
and the leader writes it down: all controllers read the same, and people can see it.
"""

from typing import Final, NamedTuple
from urllib.parse import quote

from controller.inventory.nodes import Nodes
from controller.kubernetes_api import STRATEGIC, Write

ANNOTATION: Final = "sluice.dev/address"
AGAIN: Final = 30.0
"""Seconds after which a Node gets the same patch again, if it does not show its effect."""


class Annotating(NamedTuple):
    """The annotation that a Node should have, and the request for it."""

    node: str
    address: str
    write: Write


class AddressAnnotations:
    """The patches of the annotation of every Node."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._patched: dict[str, tuple[float, str]] = {}
        """When each Node was patched last, and to what."""

    def due(self, now: float) -> list[Annotating]:
        """What to send. `now` is in seconds, of a clock that never jumps."""
        due = []
        self._patched = {
            name: last for name, last in self._patched.items() if name in self._nodes.uplinks
        }
        for name, uplink in self._nodes.uplinks.items():
            node, accepted = self._nodes.objects.get(name), self._nodes.accepted.get(name)
            # An agent whose configuration is old may report another address.
            if node is None or accepted is None or accepted.address != uplink.ip:
                continue
            wanted = str(uplink)
            at, last = self._patched.get(name, (-AGAIN, ""))
            if node.own_address == wanted or (wanted == last and now - at < AGAIN):
                continue
            # With the uid, the patch fails if the Node was deleted and created again.
            body = {"metadata": {"uid": accepted.uid, "annotations": {ANNOTATION: wanted}}}
            path = f"/api/v1/nodes/{quote(name)}/status"
            due.append(Annotating(name, wanted, Write("PATCH", path, body, STRATEGIC)))
        return due

    def patched(self, annotating: Annotating, now: float) -> None:
        """It was sent, and answered."""
        self._patched[annotating.node] = now, annotating.address
