"""What ExaBGP's API says, one line each (its JSON has the version 5.0.0)."""

from dataclasses import dataclass
from typing import Final, TypeAlias

import msgspec

NOTIFICATIONS: Final = {
    (1, 1): "connection not synchronized: what it sends is not BGP",
    (1, 2): "bad message length",
    (1, 3): "bad message type",
    (2, 1): "unsupported version number",
    (2, 2): "bad peer AS",
    (2, 3): "bad BGP identifier",
    (2, 6): "unacceptable hold time",
    (2, 7): "unsupported capability",
    (4, 0): "hold timer expired",
    (6, 1): "maximum number of prefixes reached",
    (6, 2): "administrative shutdown",
    (6, 3): "peer de-configured",
    (6, 4): "administrative reset",
    (6, 5): "connection rejected",
    (6, 6): "other configuration change",
    (6, 7): "connection collision resolution",
    (6, 8): "out of resources",
}
"""By code and subcode, as IANA names them (RFC 4271, RFC 4486)."""
CODES: Final = {
    1: "message header error",
    2: "OPEN message error",
    3: "UPDATE message error",
    4: "hold timer expired",
    5: "finite state machine error",
    6: "cease",
}


@dataclass(frozen=True, slots=True)
class StateChanged:
    """Of the finite state machine (RFC 4271, 8.2.2)."""

    state: str
    """`Established`, `OpenSent`..."""


@dataclass(frozen=True, slots=True)
class Negotiated:
    """Both have sent their OPEN."""

    add_path: bool
    """Whether the peer takes several paths of a prefix."""


@dataclass(frozen=True, slots=True)
class Up:
    """The session is established."""


@dataclass(frozen=True, slots=True)
class Down:
    """A connection that had been made has ended, whether the session was established or not."""

    reason: str


@dataclass(frozen=True, slots=True)
class Counted:
    """What the peer has announced in this session (`bgp.relay`)."""

    prefixes: int
    default_route: bool
    claimed: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a command, in the order of the commands."""

    done: bool


Event: TypeAlias = StateChanged | Negotiated | Up | Down | Counted | Answer


class _AddPath(msgspec.Struct, frozen=True):
    send: tuple[str, ...] = ()


class _Negotiated(msgspec.Struct, frozen=True):
    add_path: _AddPath = _AddPath()


class _Neighbor(msgspec.Struct, frozen=True):
    state: str = ""
    reason: str = ""
    negotiated: _Negotiated | None = None


class _Received(msgspec.Struct, frozen=True):
    prefixes: int = 0
    default_route: bool = False
    claimed: tuple[str, ...] = ()


class _Line(msgspec.Struct, frozen=True):
    type: str
    neighbor: _Neighbor = _Neighbor()
    received: _Received = _Received()


_DECODER: Final = msgspec.json.Decoder(_Line)
_NAMES: Final = {
    each.upper(): each
    for each in ("Idle", "Active", "Connect", "OpenSent", "OpenConfirm", "Established")
}


CLOSED: Final = "closing connection"
"""ExaBGP's reason for everything that is not a notification: no answer, a refusal, a lost one."""


def decode(line: bytes) -> Event | None:
    """A line; None if nothing depends on it."""
    if not line.startswith(b"{"):
        return {b"done": Answer(done=True), b"error": Answer(done=False)}.get(line.strip())
    try:
        given = _DECODER.decode(line)
    except (ValueError, RecursionError):
        return None
    return _event(given)


def _event(given: _Line) -> Event | None:
    about = given.neighbor
    match given.type, about.state:
        case "fsm", state if state in _NAMES:
            return StateChanged(_NAMES[state])
        case "state", "up":
            return Up()
        case "state", "down":
            return Down(reason_of(about.reason))
        case "negotiated", _ if about.negotiated is not None:
            return Negotiated(bool(about.negotiated.add_path.send))
        case "received", _:
            return Counted(*msgspec.structs.astuple(given.received))
    return None


def reason_of(text: str) -> str:
    """ExaBGP's reason for the end of a connection, for people.

    It has the numbers of a notification alone: `notification sent (2,2)`.
    """
    who, opens, numbers = text.partition(" (")
    if opens and who in {"notification sent", "notification received"}:
        code, _, subcode = numbers.rstrip(")").partition(",")
        if code.isdecimal() and subcode.isdecimal():
            pair = int(code), int(subcode)
            name = NOTIFICATIONS.get(pair) or CODES.get(pair[0], "unknown error")
            speaker = "we" if who.endswith("sent") else "the peer"
            return f"{speaker} sent the notification {pair[0]}/{pair[1]}: {name}"
    return text
