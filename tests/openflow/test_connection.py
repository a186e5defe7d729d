"""The state machine alone: bytes and times in, events and bytes out."""

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openflow.compat import ofproto
from openflow.connection import (
    Closed,
    Connection,
    ConnectionState,
    ErrorReply,
    HandshakeDone,
    Reply,
    Timeouts,
    Unhandled,
)
from openflow.messages import Port, PortReason, PortStatus

DPID = 0xAA
PORT = struct.pack("!IHxx6sxx16sII", 3, 72, b"\x0a\x58\0\0\0\x03", b"pod", 0, 0) + struct.pack(
    "!HHIIIIIII", 0, 32, 0, 0, 0, 0, 0, 0, 0
)
TIMEOUTS = Timeouts(handshake=10, idle=15, answer=30)


def message(kind: int, body: bytes = b"", xid: int = 0, version: int = 6) -> bytes:
    return struct.pack("!BBHI", version, kind, 8 + len(body), xid) + body


def multipart(kind: int, body: bytes, xid: int, more: bool = False) -> bytes:
    return message(19, struct.pack("!HHI", kind, more, 0) + body, xid)


def hello(*versions: int) -> bytes:
    bitmap = sum(1 << version for version in versions)
    return message(0, struct.pack("!HHI", 1, 8, bitmap), version=max(versions))


FEATURES = message(6, struct.pack("!QIBBxxII", DPID, 0, 254, 0, 0x24F, 0))
HANDSHAKE = hello(4, 5, 6) + FEATURES + multipart(13, PORT, xid=4)
READY = HandshakeDone(DPID, {3: Port(3, "pod", "0a:58:00:00:00:03")})


def sent(connection: Connection) -> list[tuple[int, int]]:
    """(type, xid) of what the connection wants to send."""
    data = connection.data_to_send()
    found = []
    while data:
        _, kind, length, xid = struct.unpack_from("!BBHI", data)
        found.append((kind, xid))
        data = data[length:]
    return found


def test_the_handshake_step_by_step():
    connection = Connection(0.0, TIMEOUTS)
    assert sent(connection) == [(0, 1)]
    assert connection.receive(hello(4, 5, 6), 0.0) == []
    assert (connection.state, sent(connection)) == (ConnectionState.IDENTIFYING, [(5, 2)])
    assert connection.receive(FEATURES, 0.0) == []
    assert connection.state is ConnectionState.LISTING
    config = connection.data_to_send()
    # SET_CONFIG with a miss_send_len that is not 0, then the request for the ports.
    assert config[:12] == message(9, struct.pack("!HH", 0, 0xFFFF), xid=3)
    assert config[12:20] == message(18, bytes(16), xid=4)[:8]
    assert connection.receive(multipart(13, PORT, xid=4), 0.0) == [READY]


@given(st.lists(st.integers(1, len(HANDSHAKE))))
def test_it_does_not_matter_how_the_bytes_are_cut(cuts):
    connection = Connection(0.0)
    events = []
    edges = sorted({0, *cuts, len(HANDSHAKE)})
    for start, end in pairwise(edges):
        events += connection.receive(HANDSHAKE[start:end], 0.0)
    assert events == [READY]


@pytest.mark.parametrize("offer", [hello(1, 4), message(0, version=4), hello(7)])
def test_a_peer_without_1_5_is_told_and_left(offer):
    connection = Connection(0.0)
    connection.data_to_send()
    (closed,) = connection.receive(offer, 0.0)
    assert isinstance(closed, Closed)
    assert "not 1.5" in closed.reason
    assert "OpenFlow15" in closed.reason
    answer = connection.data_to_send()
    assert answer[1] == ofproto.OFPT_ERROR
    assert struct.unpack_from("!HH", answer, 8) == (0, 0)  # HELLO_FAILED, INCOMPATIBLE


def test_a_higher_version_without_a_bitmap_comes_down_to_ours():
    connection = Connection(0.0)
    assert connection.receive(message(0, version=7), 0.0) == []
    assert connection.state is ConnectionState.IDENTIFYING


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"GET / HTTP/1.1\r\n\r\n" + b"x" * 70000, "before HELLO"),
        (b"\x06\x00\x00\x04" + bytes(4), "4 bytes long"),
        (FEATURES, "type 6 before HELLO"),
        (message(0, b"\0\1\0\0"), "HELLO element"),
        (hello(6) + message(6, b"short"), "malformed message of type 6"),
        (hello(6) + message(6, bytes(24), version=4), "wire version 4"),
        (hello(6) + message(1, struct.pack("!HH", 1, 5)), "refused by the peer during"),
        (hello(6) + FEATURES + multipart(13, PORT[:30], 4), "malformed message of type 19"),
        (
            hello(6) + FEATURES + multipart(13, PORT[:4] + b"\0\0" + PORT[6:], 4),
            "a port description that claims to be 0",
        ),
    ],
)
def test_nonsense_ends_the_connection(data, complaint):
    connection = Connection(0.0)
    (closed,) = connection.receive(data, 0.0)
    assert isinstance(closed, Closed)
    assert complaint in closed.reason
    assert connection.receive(HANDSHAKE, 1.0) == []
    assert connection.close("again") == []
    assert connection.deadline() == float("inf")


_BODIES = st.binary(max_size=120)


@given(
    st.lists(
        st.builds(message, st.integers(0, 40), _BODIES, st.integers(0, 6))
        | st.builds(multipart, st.integers(0, 20), _BODIES, st.integers(0, 6), st.booleans())
        | _BODIES,
        max_size=8,
    )
)
def test_whatever_a_peer_says_gives_events_and_no_exception(pieces):
    connection = Connection(0.0)
    connection.receive(HANDSHAKE, 0.0)
    connection.request_flows()
    connection.request_meters()
    for piece in pieces:
        for event in connection.receive(piece, 0.0):
            assert not isinstance(event, Closed) or connection.closed


def test_the_handshake_has_a_deadline():
    connection = Connection(100.0, TIMEOUTS)
    connection.receive(hello(6), 105.0)
    assert connection.deadline() == 110.0
    assert connection.tick(109.9) == []
    (closed,) = connection.tick(110.0)
    assert closed == Closed("handshake not done in time: waiting for the datapath id")


def ready_session() -> Connection:
    connection = Connection(0.0, TIMEOUTS)
    assert connection.receive(HANDSHAKE, 0.0) == [READY]
    connection.data_to_send()
    return connection


def test_echoes_are_answered_with_their_payload():
    connection = ready_session()
    assert connection.receive(message(2, b"payload", xid=99), 1.0) == []
    assert connection.data_to_send() == message(3, b"payload", xid=99)


def test_a_silent_peer_is_asked_and_then_cut():
    connection = ready_session()
    assert connection.deadline() == 15.0
    assert connection.tick(14.9) == []
    assert sent(connection) == []
    assert connection.tick(15.0) == []
    ((kind, xid),) = sent(connection)
    assert kind == 2
    assert connection.deadline() == 45.0
    assert connection.receive(message(3, xid=xid), 40.0) == [Reply(xid, None)]
    assert connection.deadline() == 55.0
    connection.tick(55.0)
    assert connection.tick(84.9) == []
    (closed,) = connection.tick(85.0)
    assert closed == Closed("silent for 45 s")


def test_our_own_pause_is_not_held_against_the_peer():
    connection = ready_session()
    assert connection.tick(1000.0) == []
    assert connection.deadline() == 1030.0


def test_half_a_message_is_no_sign_of_life():
    connection = ready_session()
    connection.receive(message(3)[:4], 14.0)
    assert connection.deadline() == 15.0


def test_port_status():
    connection = ready_session()
    body = struct.pack("!B7x", 1) + PORT
    expected = PortStatus(PortReason.DELETE, Port(3, "pod", "0a:58:00:00:00:03"))
    assert connection.receive(message(12, body), 1.0) == [expected]


def test_errors_and_unknown_messages_are_events():
    connection = ready_session()
    events = connection.receive(
        message(1, struct.pack("!HH", 5, 1), xid=7) + message(35, b"?", xid=8), 1.0
    )
    refused, unhandled = events
    assert isinstance(refused, ErrorReply)
    assert refused.xid == 7
    assert str(refused.error) == "OFPET_FLOW_MOD_FAILED(5), OFPFMFC_TABLE_FULL(1)"
    assert unhandled == Unhandled(35, 8)


def test_a_dump_in_parts_is_one_reply():
    connection = ready_session()
    xid = connection.request_meters()

    def meter(number: int) -> bytes:
        return struct.pack("!HHIHHII4x", 24, 6, number, 1, 16, 100, 200)

    assert connection.receive(multipart(10, meter(1), xid, more=True), 1.0) == []
    (reply,) = connection.receive(multipart(10, meter(2), xid), 1.0)
    assert reply.xid == xid
    assert [(m.id, m.rate, m.burst) for m in reply.value.values()] == [(1, 100, 200), (2, 100, 200)]
    # It is over: another part belongs to nothing.
    assert connection.receive(multipart(10, meter(3), xid), 1.0) == [Unhandled(19, xid)]


def test_a_dump_without_end_is_cut(monkeypatch):
    monkeypatch.setattr("openflow.connection.MAX_REPLY", 1 << 20)
    connection = ready_session()
    xid = connection.request_meters()
    part = multipart(10, struct.pack("!HHI", 8, 0, 1) * 1000, xid, more=True)
    events = []
    for _ in range(20):
        events += connection.receive(part, 1.0)
    assert events == [Closed("protocol error: replies of more than 1 MiB")]


def test_all_unfinished_dumps_of_a_connection_have_one_bound(monkeypatch):
    monkeypatch.setattr("openflow.connection.MAX_REPLY", 1 << 20)
    connection = ready_session()
    events = []
    for _ in range(3):
        xid = connection.request_meters()
        part = multipart(10, struct.pack("!HHI", 8, 0, 1) * 1000, xid, more=True)
        # Each by itself stays below it.
        for _ in range(3):
            events += connection.receive(part, 1.0)
    assert events == [Closed("protocol error: replies of more than 1 MiB")]


def test_a_refused_dump_is_forgotten():
    connection = ready_session()
    xid = connection.request_meters()
    connection.receive(message(1, struct.pack("!HH", 1, 5), xid), 1.0)
    assert connection._multiparts == {}


def test_numbers_of_requests_stay_below_those_of_batches():
    connection = ready_session()
    connection._xids = iter([0x4000_0000, 0x4000_0001])
    assert connection.request_echo() == 0
    assert connection.request_echo() == 1
