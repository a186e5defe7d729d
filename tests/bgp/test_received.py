"""What peers announce is counted, and looked at for what should not be there."""

import json
from ipaddress import IPv4Network

import pytest

from bgp.received import Received
from bgp.relay import Lines
from tests.bgp.peers import OURS, THEIRS, update

OWN = [IPv4Network("10.244.0.0/16")]


def received() -> Received:
    return Received(OWN, OURS)


def body(*networks: str, path: tuple[int, ...] = (THEIRS,), more: bytes = b"") -> bytes:
    return update(networks, path, more)[19:]


def test_prefixes_are_counted() -> None:
    found = received()
    found.take(body("192.0.2.0/24", "198.51.100.0/25"))
    found.take(body("203.0.113.0/24"))
    assert (found.prefixes, found.default_route, found.claimed) == (3, False, [])


def test_a_default_route_is_noticed() -> None:
    found = received()
    found.take(body("0.0.0.0/0"))
    assert found.default_route


def test_a_range_of_ours_from_another_as_is_noticed_and_one_sent_back_is_not() -> None:
    found = received()
    found.take(body("10.244.1.0/24", path=(THEIRS, OURS)))
    assert found.claimed == []
    # ORIGINATOR_ID: a route reflector passes on what another controller told it.
    found.take(body("10.244.1.0/24", path=(), more=b"\x80\x09\x04\x01\x02\x03\x04"))
    assert found.claimed == []
    found.take(body("10.244.1.0/24", "10.0.0.0/8", "10.244.2.3/32"))
    assert found.claimed == ["10.244.1.0/24", "10.244.2.3/32"]


def test_few_prefixes_are_remembered_by_name() -> None:
    found = received()
    found.take(body(*(f"10.244.{n}.0/24" for n in range(100))))
    assert len(found.claimed) == 5


@pytest.mark.parametrize("cut", range(4, 40))
def test_any_text_is_survived(cut: int) -> None:
    whole = body("192.0.2.0/24", "10.244.0.0/24")
    for text in (whole[:cut], whole[cut:], bytes(cut), b"\xff" * cut):
        try:
            received().take(text)
        except ValueError:
            continue


def lines() -> Lines:
    return Lines(received())


def line_of(data: bytes) -> bytes:
    neighbor = {"message": {"category": 2, "body": "0x" + data.hex()}}
    return json.dumps({"type": "update", "neighbor": neighbor}).encode() + b"\n"


def test_updates_are_not_passed_on_but_counted() -> None:
    ours = lines()
    update_line = line_of(body("192.0.2.0/24"))
    assert ours.take(b"done\n" + update_line + b'{"type": "state"}\nerr') == (
        b'done\n{"type": "state"}\n'
    )
    assert ours.take(b"or\n") == b"error\n"
    assert json.loads(ours.report())["received"]["prefixes"] == 1
    assert ours.report() == b""


def test_a_new_session_counts_anew() -> None:
    ours = lines()
    ours.take(line_of(body("0.0.0.0/0")))
    negotiated = b'{ "type": "negotiated", "neighbor": { "negotiated": { "asn4": true } } }\n'
    assert ours.take(negotiated) == negotiated
    assert json.loads(ours.report())["received"] == {
        "prefixes": 0,
        "default_route": False,
        "claimed": [],
    }


def test_a_line_without_an_end_is_forgotten() -> None:
    ours = lines()
    for _ in range(40):
        ours.take(b"x" * 65_536)
    assert len(ours._unread) <= 1 << 20
