"""What a node says of its BGP sessions: a stolen node says anything."""

import msgspec
import pytest

from wire.bgp import NodeSessions, Session
from wire.documents import decode_sessions, encode
from wire.sentences import MAX_SENTENCE

SESSION = Session("leaf", "Established", 1.7e9, add_path=True, told=3, claimed=("10.244.0.0/16",))


def document(**changes: object) -> bytes:
    return encode(NodeSessions((msgspec.structs.replace(SESSION, **changes),)))


def test_sessions_survive_the_way() -> None:
    assert decode_sessions(document()).sessions == (SESSION,)


@pytest.mark.parametrize(
    "changes",
    [
        {"state": "x" * 1_000_000},
        {"state": "\x1b[2J"},
        {"peer": "leaf\nleaf"},
        {"reason": "\x1b]0;owned\x07"},
        {"reason": "x" * (MAX_SENTENCE + 1)},
        {"claimed": ("10.244.0.0/16\n" * 1000,)},
        {"claimed": ("\u202e",)},
        {"since": 1e300},
        {"since": -1.0},
        {"told": -1},
    ],
)
def test_text_that_people_cannot_trust_is_refused(changes: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        decode_sessions(document(**changes))
