"""The condition NetworkUnavailable of Nodes: when it is patched, and to what.

"False" is for good: losing the controller, a session or an agent costs a node's pods no packet,
and a taint on every node at each restart of the controller would be worse than what it tells of.
Whether a node takes new pods just now, its kubelet learns by the CNI verb STATUS.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import msgspec

from controller.kubernetes_api import STRATEGIC, Write
from controller.reconciler import Reconciler
from controller.sources.objects import Node, NodeCondition

GRACE: Final = 15.0
"""Seconds that a new node has before it is said to have no network."""
AGAIN: Final = 10.0
"""Seconds until a condition is patched once more that does not show as patched."""

READY: Final = NodeCondition(
    "NetworkUnavailable", "False", "SluiceReady", "the node's switch holds the flows of its pods"
)


class Conditions:
    """Patches to make every Node say whether it has had a network."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._since: dict[str, float] = {}
        """When each Node without a network was first seen so."""
        self._patched: dict[str, float] = {}

    def due(self, now: float) -> Iterator[tuple[str, Write]]:
        """Nodes, and what to send for each. `now` is in seconds, of a clock that never jumps."""
        nodes = self._reconciler.inventory.nodes
        problems = self._reconciler.all_problems()
        self._since = {name: self._since.get(name, now) for name in nodes}
        self._patched = {
            n: at for n, at in self._patched.items() if n in nodes and now - at < AGAIN
        }
        for name, node in list(nodes.items()):
            shown = node.network_unavailable
            wanted = self._wanted(name, shown, problems, now)
            if wanted is not None and not _same(shown, wanted) and name not in self._patched:
                yield name, _patch(node, shown, wanted)

    def patched(self, name: str, now: float) -> None:
        """It was sent, and answered."""
        self._patched[name] = now

    def _wanted(
        self, name: str, shown: NodeCondition | None, problems: dict[str, str], now: float
    ) -> NodeCondition | None:
        """None: leave it as it is."""
        session = self._reconciler.sessions.get(name)
        if session is not None and session.was_synced:
            return READY
        if shown is not None and shown.status == "False":
            return None
        if now - self._since[name] < GRACE:
            return None
        for subject, reason in (
            (f"Node {name}", "NodeRefused"),
            (f"agent of {name}", "NodeNotSetUp"),
            (f"flows of {name}", "FlowsNotCompiled"),
        ):
            if sentence := problems.get(subject):
                return NodeCondition("NetworkUnavailable", "True", reason, sentence)
        if session is None:
            reason, sentence = "NotConnected", "the node's switch has not connected to Sluice yet"
        else:
            reason, sentence = "FlowsNotInstalled", "the node's switch has not taken its flows yet"
        return NodeCondition("NetworkUnavailable", "True", reason, sentence)


def _same(shown: NodeCondition | None, wanted: NodeCondition) -> bool:
    return shown is not None and wanted == msgspec.structs.replace(
        shown, last_transition_time=wanted.last_transition_time
    )


def _patch(node: Node, shown: NodeCondition | None, wanted: NodeCondition) -> Write:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stays = shown is not None and shown.status == wanted.status
    since = (shown.last_transition_time if shown and stays else None) or now
    condition = msgspec.to_builtins(msgspec.structs.replace(wanted, last_transition_time=since))
    body = {
        # A Node made anew meanwhile is another one, and the patch is refused.
        "metadata": {"uid": node.metadata.uid},
        # Conditions are merged by their type: nobody else's is touched.
        "status": {"conditions": [condition | {"lastHeartbeatTime": now}]},
    }
    return Write("PATCH", f"/api/v1/nodes/{quote(node.metadata.name)}/status", body, STRATEGIC)
