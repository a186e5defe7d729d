"""How it stands with one peer, from what its speaker says. Time is an argument."""

from collections import deque
from typing import Final

from bgp.events import CLOSED, Counted, Down, Event, Negotiated, StateChanged, Up
from wire.bgp import FLAP_SECONDS, MAX_CLAIMED, Session
from wire.sentences import MAX_SENTENCE, readable

RESTLESS_SECONDS: Final = 60.0
RESTLESS_SESSIONS: Final = 10
"""Sessions that end in `RESTLESS_SECONDS`, after which the speaker rests."""
MOST_REMEMBERED: Final = 100
"""Ended sessions."""


class SessionState:
    """Takes events, gives reports."""

    def __init__(self, peer: str, now: float) -> None:
        """`peer` is the name of the BGPPeer; `now` in seconds since 1970, here and below."""
        self.add_path: bool | None = None
        self.told = 0
        """Routes that the peer was told; whoever tells it sets this."""
        self._peer = peer
        self._state = "Idle"
        self._since = now
        self._reason = ""
        self._ended: deque[float] = deque(maxlen=MOST_REMEMBERED)
        self._counted = Counted(0, default_route=False, claimed=())

    @property
    def is_established(self) -> bool:
        """Whether routes are exchanged."""
        return self._state == "Established"

    def take(self, event: Event, now: float) -> None:
        """What the speaker said."""
        match event:
            case StateChanged("Established"):
                pass  # `Up` follows, and then routes are sent
            case StateChanged(state):
                self._leave(now)
                self._state = state
            case Negotiated(add_path):
                self.add_path = add_path
            case Up():
                self._state, self._since = "Established", now
                self._reason = ""
                self._counted = Counted(0, default_route=False, claimed=())
            case Down(reason):
                # Without a session before it says nothing: perhaps nobody has answered.
                lost = "the connection was lost" if self.is_established else ""
                self._leave(now)
                if reason != CLOSED:
                    self.say(reason)
                elif lost or not self._reason:
                    self.say(lost)
            case Counted():
                self._counted = event

    def say(self, reason: str) -> None:
        """Why there is no session."""
        self._reason = readable(reason)[:MAX_SENTENCE]

    def stopped(self, reason: str, now: float) -> None:
        """The speaker has ended, and with it the session."""
        self._leave(now)
        self._state = "Idle"
        self.told = 0
        self.say(reason)

    def _leave(self, now: float) -> None:
        if self._state == "Established":
            self._state, self._since = "Idle", now
            self._ended.append(now)
            self.add_path = None
            self._counted = Counted(0, default_route=False, claimed=())

    def is_restless(self, now: float) -> bool:
        """Whether so many sessions have ended of late that a pause is due."""
        return sum(each > now - RESTLESS_SECONDS for each in self._ended) >= RESTLESS_SESSIONS

    def report(self, now: float) -> Session:
        """For the controller."""
        return Session(
            peer=self._peer,
            state=self._state,
            since=self._since,
            add_path=self.add_path,
            told=self.told if self.is_established else 0,
            reason=self._reason,
            ended=sum(each > now - FLAP_SECONDS for each in self._ended),
            received=self._counted.prefixes,
            default_route=self._counted.default_route,
            claimed=self._counted.claimed[:MAX_CLAIMED],
        )
