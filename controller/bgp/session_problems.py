"""What is wrong with the sessions of a BGPPeer, in sentences that do not change all the time."""

import time
from collections.abc import Callable, Sequence
from typing import Final

from controller.bgp.peers import PeerDraft
from wire.bgp import FLAP_SECONDS, Session

PATIENCE: Final = 30.0
"""Seconds without a session after which that is reported."""
FLAPS: Final = 3
"""Sessions that end in `FLAP_SECONDS`, after which that is reported."""
MAX_NAMED: Final = 3
"""Nodes that a sentence names."""


def problem_of(
    peer: PeerDraft,
    sessions: Sequence[tuple[str, Session]],
    left_out: int,
    clock: Callable[[], float] = time.time,
) -> str:
    """A sentence; empty: nothing is wrong.

    `sessions`: with the node that has it, empty: this controller. `left_out`: routes that are too
    many for one peer.
    """
    now = clock()
    by_sentence: dict[str, list[str]] = {}
    for node, session in sessions:
        for sentence in _of_session(peer, session, now):
            by_sentence.setdefault(sentence, []).append(node)
    found = [f"{_places(nodes)}{sentence}" for sentence, nodes in by_sentence.items()]
    if left_out:
        found.append(f"{left_out} routes are too many, and not announced")
    return "; ".join(found)


def _places(nodes: Sequence[str]) -> str:
    named = [node for node in nodes if node]
    if not named:
        return ""
    more = f" and {len(named) - MAX_NAMED} more" if len(named) > MAX_NAMED else ""
    return f"from {', '.join(named[:MAX_NAMED])}{more}: "


def _of_session(peer: PeerDraft, session: Session, now: float) -> list[str]:
    found = []
    if session.ended >= FLAPS:
        minutes = round(FLAP_SECONDS / 60)
        found.append(
            f"the session does not last: it ended {FLAPS} times or more in {minutes} minutes"
            f"{_because(session.reason)}"
        )
    elif not session.is_established and now - session.since >= PATIENCE:
        reason = (
            session.reason
            or f"{peer.address} port {peer.port} does not answer, or closes connections"
        )
        hint = (
            "; where both sides do not have the same password, it looks the same"
            if peer.password is not None and not session.reason
            else ""
        )
        found.append(f"no session: {reason}{hint}")
    if session.default_route:
        found.append("it announces a default route, which is not used")
    if session.claimed:
        more = " and others" if len(session.claimed) > 1 else ""
        found.append(
            f"it announces {session.claimed[0]}{more} of the cluster's own ranges, which is not"
            " used; other routers may use it"
        )
    return found


def _because(reason: str) -> str:
    return f"; the last reason: {reason}" if reason else ""
