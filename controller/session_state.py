"""The states of a session, and the events that lead from one to another, as data.

A session is idle, or has something to do (`PENDING`), or is doing it (`WORKING`). Events may come
at any time, also during work: the table has the next state for each.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final


class State(Enum):
    """What is known of a switch, and what is to be done about it."""

    UNKNOWN = "what the switch holds is unknown: it has to be compared"
    RETRY = "what the switch rejected has to be tried again, after a comparison"
    COMPARING = "it is being compared"
    SUSPECT = "an audit found drift: it has to be repaired"
    REPAIRING = "it is being repaired"
    BEHIND = "what it holds is known, and older than the programs"
    UPDATING = "it is being sent what is missing"
    IN_SYNC = "it holds both programs, and their seals"
    INCOMPLETE = "some flows are missing: they were rejected, or the source is not complete"
    PAUSED = "its Node is refused or gone: it keeps its flows"
    STANDBY = "another controller writes to it"


class Event(Enum):
    """What happens to a session."""

    CHANGED = "a program changed"
    INVALIDATED = "what the switch holds may differ from what is recorded"
    RETRIED = "what the switch rejected may be accepted now"
    DRIFTED = "a digest differs"
    STARTED = "a round begins"
    FOUND = "the comparison or the repair is done"
    SENT = "the switch acknowledged everything"
    SENT_PARTLY = "the same, except what was rejected or is not read yet"
    FAILED = "the round ended early, by a rejection or an error"
    NODE_LOST = "the Node is refused or gone"
    FOLLOW = "another controller writes from now on"
    LEAD = "this controller writes from now on"


S, E = State, Event

TRANSITIONS: Final[Mapping[tuple[State, Event], State]] = {
    # A round begins with a comparison or repair, if one is due. Then it sends what is missing.
    (S.UNKNOWN, E.STARTED): S.COMPARING,
    (S.RETRY, E.STARTED): S.COMPARING,
    (S.SUSPECT, E.STARTED): S.REPAIRING,
    (S.BEHIND, E.STARTED): S.UPDATING,
    (S.COMPARING, E.FOUND): S.UPDATING,
    (S.REPAIRING, E.FOUND): S.UPDATING,
    (S.UPDATING, E.SENT): S.IN_SYNC,
    (S.UPDATING, E.SENT_PARTLY): S.INCOMPLETE,
    # A change is sent in the next round.
    (S.IN_SYNC, E.CHANGED): S.BEHIND,
    (S.INCOMPLETE, E.CHANGED): S.BEHIND,
    # A change during an update also needs a next round: this one may have missed it.
    (S.UPDATING, E.CHANGED): S.BEHIND,
    # A change before the update is not missed: the programs are read after the comparison.
    (S.COMPARING, E.CHANGED): S.COMPARING,
    (S.REPAIRING, E.CHANGED): S.REPAIRING,
    # Nor is a change before a round, which will read the programs anyway.
    (S.UNKNOWN, E.CHANGED): S.UNKNOWN,
    (S.RETRY, E.CHANGED): S.RETRY,
    (S.SUSPECT, E.CHANGED): S.SUSPECT,
    (S.BEHIND, E.CHANGED): S.BEHIND,
    # The program of a Node that was gone was not kept up to date, so the content is unknown.
    (S.PAUSED, E.CHANGED): S.UNKNOWN,
    # Needs a comparison that begins after the event; RETRY includes one.
    (S.UNKNOWN, E.INVALIDATED): S.UNKNOWN,
    (S.COMPARING, E.INVALIDATED): S.UNKNOWN,
    (S.SUSPECT, E.INVALIDATED): S.UNKNOWN,
    (S.REPAIRING, E.INVALIDATED): S.UNKNOWN,
    (S.BEHIND, E.INVALIDATED): S.UNKNOWN,
    (S.UPDATING, E.INVALIDATED): S.UNKNOWN,
    (S.IN_SYNC, E.INVALIDATED): S.UNKNOWN,
    (S.INCOMPLETE, E.INVALIDATED): S.UNKNOWN,
    (S.PAUSED, E.INVALIDATED): S.UNKNOWN,
    (S.RETRY, E.INVALIDATED): S.RETRY,
    # Not within a round: its batches would seal a program of which flows are missing.
    (S.UNKNOWN, E.RETRIED): S.RETRY,
    (S.RETRY, E.RETRIED): S.RETRY,
    (S.COMPARING, E.RETRIED): S.RETRY,
    (S.SUSPECT, E.RETRIED): S.RETRY,
    (S.REPAIRING, E.RETRIED): S.RETRY,
    (S.BEHIND, E.RETRIED): S.RETRY,
    (S.UPDATING, E.RETRIED): S.RETRY,
    (S.IN_SYNC, E.RETRIED): S.RETRY,
    (S.INCOMPLETE, E.RETRIED): S.RETRY,
    (S.PAUSED, E.RETRIED): S.RETRY,
    # A digest says something only about a switch that acknowledged everything.
    (S.IN_SYNC, E.DRIFTED): S.SUSPECT,
    # An event came during the round: it ends, and the next one begins.
    (S.UNKNOWN, E.FOUND): S.UNKNOWN,
    (S.RETRY, E.FOUND): S.RETRY,
    (S.UNKNOWN, E.SENT): S.UNKNOWN,
    (S.RETRY, E.SENT): S.RETRY,
    (S.BEHIND, E.SENT): S.BEHIND,
    (S.UNKNOWN, E.SENT_PARTLY): S.UNKNOWN,
    (S.RETRY, E.SENT_PARTLY): S.RETRY,
    (S.BEHIND, E.SENT_PARTLY): S.BEHIND,
    # It is unknown which part of a failed batch was applied.
    (S.COMPARING, E.FAILED): S.UNKNOWN,
    (S.REPAIRING, E.FAILED): S.UNKNOWN,
    (S.UPDATING, E.FAILED): S.UNKNOWN,
    (S.UNKNOWN, E.FAILED): S.UNKNOWN,
    (S.BEHIND, E.FAILED): S.UNKNOWN,
    (S.RETRY, E.FAILED): S.RETRY,
    # Instead of a round: there is no program that the switch should hold.
    (S.UNKNOWN, E.NODE_LOST): S.PAUSED,
    (S.RETRY, E.NODE_LOST): S.PAUSED,
    (S.SUSPECT, E.NODE_LOST): S.PAUSED,
    (S.BEHIND, E.NODE_LOST): S.PAUSED,
    # What another controller has done to it is unknown.
    (S.STANDBY, E.LEAD): S.UNKNOWN,
    **{(state, E.FOLLOW): S.STANDBY for state in S},
    # The end of a round that began before, and all that does not matter now.
    **{(S.STANDBY, event): S.STANDBY for event in E if event not in {E.LEAD, E.STARTED, E.DRIFTED}},
}
"""Whatever is not here cannot happen: a `KeyError` would be a fault in this table's user."""

PENDING: Final = frozenset({S.UNKNOWN, S.RETRY, S.SUSPECT, S.BEHIND})
WORKING: Final = frozenset({S.COMPARING, S.REPAIRING, S.UPDATING})
EXTERNAL: Final = frozenset({E.CHANGED, E.INVALIDATED, E.RETRIED, E.FOLLOW})
"""Events that may come in any state."""
