"""The last connections that policy denied, as agents report them: for whoever asks."""

import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from controller.inventory import Inventory
from controller.policies.slices import Slices
from controller.policy_reports import words
from controller.policy_reports.denied import sentence_of
from controller.policy_reports.pods import Attached
from controller.references import Reference
from controller.reports.counters import DenialRow, Denials
from controller.sources.objects import PodObject
from flows.policy import Direction
from wire.documents import DeniedPair, NodeDenials

MOST: Final = 1_000
"""Pairs that are remembered, the latest of all nodes."""
MOST_TOLD: Final = 200
"""Pairs in one answer."""


class _Seen(NamedTuple):
    at: float
    node: str
    pair: DeniedPair


class RecentDenials:
    """The pairs that agents reported last."""

    def __init__(self, inventory: Inventory, clock: Callable[[], float] = time.time) -> None:
        self._inventory = inventory
        self._clock = clock
        self._seen: deque[_Seen] = deque(maxlen=MOST)
        self._left_out = 0

    def take(self, node: str, given: NodeDenials) -> None:
        """What the agent of a node has reported. An agent speaks of its own node's pods only."""
        if not self._inventory.view.cluster.log_denials:
            return
        self._left_out += given.left_out
        now = self._clock()
        self._seen += [
            _Seen(now, node, each)
            for each in given.pairs
            if denied_pod(self._inventory, node, each) is not None
        ]

    def report(self, since: float = 0.0) -> Slices[Denials]:
        """Those that were reported after a time (in seconds since 1970), newest first."""
        rows: list[DenialRow] = []
        for each in reversed([*self._seen]):
            if each.at <= since or len(rows) == MOST_TOLD:
                break
            yield
            if (row := self._row(each)) is not None:
                rows.append(row)
        return Denials(
            enabled=self._inventory.view.cluster.log_denials,
            denials=tuple(rows),
            left_out=self._left_out,
        )

    def _row(self, seen: _Seen) -> DenialRow | None:
        """None: the pod has gone."""
        inventory, pair = self._inventory, seen.pair
        attachment = inventory.view.attachments.get(seen.node, {}).get(pair.attachment)
        if attachment is None:
            return None
        group = inventory.policies.group(seen.node, pair.attachment)
        sentence = sentence_of(
            inventory,
            Attached(seen.node, attachment, group),
            pair.direction,
            pair.other_end,
            pair.ports,
            has_more=pair.more_ports,
        )
        return DenialRow(
            seen.at,
            seen.node,
            Reference.of(attachment.ref),
            words.DIRECTIONS[pair.direction],
            str(pair.other_end),
            sentence,
        )


def denied_pod(inventory: Inventory, node: str, given: DeniedPair) -> PodObject | None:
    """The pod that was denied; None: there is none that policies select in this direction."""
    isolation = inventory.view.isolations.get(node, {}).get(given.attachment)
    pod = inventory.pod_of(node, given.attachment)
    if isolation is None or pod is None:
        return None
    is_from_pod = given.direction is Direction.FROM_POD
    if (isolation.from_pod if is_from_pod else isolation.to_pod) is None:
        return None
    return pod
