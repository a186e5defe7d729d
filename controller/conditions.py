"""The condition NetworkUnavailable of Nodes: when it is patched, and to what.

"False" is final: pods lose no packets when the controller, a session or an agent is lost, and a
taint on every node at each restart of the controller would do more harm. Whether a node accepts new
pods now, its kubelet learns by the CNI verb STATUS.
"""

from datetime import UTC, datetime
from operator import itemgetter
from typing import Final, NamedTuple
from urllib.parse import quote

import msgspec

from controller.kubernetes_api import STRATEGIC, Write
from controller.problems import INVENTORY, Reporter, ReporterKind
from controller.reconciler import Reconciler
from controller.sources.objects import NodeCondition, NodeObject
from flows.refs import ObjectRef

GRACE: Final = 15.0
"""Seconds that a new node has before it is said to have no network."""
AGAIN: Final = 30.0
"""Seconds after which a Node gets the same patch again, if it does not show its effect."""

READY: Final = NodeCondition(
    "NetworkUnavailable", "False", "SluiceReady", "the node's switch holds the flows of its pods"
)


class Patch(NamedTuple):
    """The condition that a Node should have, and the request for it."""

    node: str
    condition: NodeCondition
    write: Write


class Conditions:
    """The patches of the condition of every Node."""

    def __init__(self, reconciler: Reconciler) -> None:
        self._reconciler = reconciler
        self._since: dict[str, float] = {}
        """When each Node was first seen without a network."""
        self._patched: dict[str, tuple[float, NodeCondition]] = {}
        """When each Node was patched last, and to what."""

    def due(self, now: float) -> list[Patch]:
        """What to send, those Nodes first that were patched the longest ago.

        `now` is in seconds, of a clock that never jumps.
        """
        inventory = self._reconciler.inventory
        # An excluded Node uses another network, which sets the condition itself.
        nodes = {
            name: node
            for name, node in inventory.node_objects.items()
            if not inventory.nodes.exclusion(name)
        }
        self._since = {name: self._since.get(name, now) for name in nodes}
        self._patched = {name: last for name, last in self._patched.items() if name in nodes}
        due = []
        for name, node in nodes.items():
            shown = node.network_unavailable
            wanted = self._wanted(name, shown, now)
            if wanted is None or _same(shown, wanted):
                continue
            at, last = self._patched.get(name, (-AGAIN, None))
            if wanted != last or now - at >= AGAIN:
                due.append((at, Patch(name, wanted, _patch(node, shown, wanted))))
        return [patch for _, patch in sorted(due, key=itemgetter(0))]

    def patched(self, patch: Patch, now: float) -> None:
        """It was sent, and answered."""
        self._patched[patch.node] = now, patch.condition

    def _wanted(self, name: str, shown: NodeCondition | None, now: float) -> NodeCondition | None:
        """None: leave it as it is."""
        session = self._reconciler.sessions.get(name)
        if session is not None and session.was_synced:
            return READY
        if shown is not None and shown.status == "False":
            return None
        if now - self._since[name] < GRACE:
            return None
        problems = self._reconciler.problems
        # A Node that takes part may have a problem too, but it does not wait because of that.
        takes_part = name in self._reconciler.inventory.view.nodes
        for reporter, reason in (
            (INVENTORY, "NodeRefused"),
            (Reporter(ReporterKind.AGENT, name), "NodeNotSetUp"),
            (Reporter(ReporterKind.COMPILER, name), "FlowsNotCompiled"),
        ):
            if reporter is INVENTORY and takes_part:
                continue
            if sentence := problems.text(reporter, ObjectRef.node(name)):
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


def _patch(node: NodeObject, shown: NodeCondition | None, wanted: NodeCondition) -> Write:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    stays = shown is not None and shown.status == wanted.status
    since = (shown.last_transition_time if shown and stays else None) or now
    condition = msgspec.to_builtins(msgspec.structs.replace(wanted, last_transition_time=since))
    body = {
        # With the uid, the patch fails if the Node was deleted and created again.
        "metadata": {"uid": node.metadata.uid},
        # Conditions are merged by their type: nobody else's is touched.
        "status": {"conditions": [condition | {"lastHeartbeatTime": now}]},
    }
    return Write("PATCH", f"/api/v1/nodes/{quote(node.metadata.name)}/status", body, STRATEGIC)
