"""The protocol in bytes: controllers and agents of different versions read the same documents."""

import re
import sys
import unicodedata
from ipaddress import IPv4Address, IPv4Interface, IPv4Network
from typing import Any

import msgspec
import pytest

from flows import names
from flows.policy import Direction
from openflow.digest import RANGES
from wire import documents
from wire.documents import (
    MAX_DENIED_PAIRS,
    MAX_DENIED_PORTS,
    DeniedPair,
    DeniedPort,
    NodeAddresses,
    NodeConfig,
    NodeDenials,
    NodeProblems,
    NodeServices,
    PeerRoutes,
    Refusal,
    SwitchDigest,
    Verdict,
    encode,
)
from wire.sentences import HIDDEN, MAX_SENTENCE, readable

CONFIG = NodeConfig(
    node="n1",
    uid="u",
    address=IPv4Address("172.30.1.2"),
    pod_cidr=IPv4Network("10.244.1.0/24"),
    pod_range=IPv4Network("10.244.0.0/16"),
    service_range=IPv4Network("10.96.0.0/16"),
    host_ranges=(IPv4Network("172.30.0.0/16"),),
    tunnel="geneve",
    tunnel_id=1,
    tunnel_port=6081,
    revision="r",
)
SERVICES = NodeServices(
    node="n1",
    node_ports=((6, 30080, "default/web"),),
    external_addresses=(IPv4Address("192.0.2.1"),),
    health_checks=((30090, "default/web", 2),),
    revision="r",
    own_addresses=((IPv4Address("172.30.1.2"), 6, 80, IPv4Address("169.254.1.16"), "default/web"),),
    source_complete=False,
    external_ports=(((IPv4Address("192.0.2.1"),), ((6, 80), (17, 53)), "default/web"),),
    protected_addresses=(IPv4Address("172.30.0.10"),),
    host_endpoints=((None, 6, 80, IPv4Address("172.30.1.2"), 8080, "default/web"),),
    balancer_addresses=(IPv4Address("192.0.2.1"),),
)
PORT = "pabcdefghij2345"
PAIR = DeniedPair(
    PORT, Direction.TO_POD, IPv4Address("10.244.1.5"), (DeniedPort(6, 80, 7), DeniedPort(1)), True
)
# Fixed for ever: a change here breaks agents or controllers of another version.
PINNED: list[tuple[Any, Any, bytes]] = [
    (
        CONFIG,
        documents.decode_config,
        b'{"node":"n1","uid":"u","address":"172.30.1.2","podCidr":"10.244.1.0/24",'
        b'"podRange":"10.244.0.0/16","serviceRange":"10.96.0.0/16","hostRanges":["172.30.0.0/16"],'
        b'"tunnel":"geneve","tunnelId":1,"tunnelPort":6081,"revision":"r","mtu":null,'
        b'"usesTunnel":true}',
    ),
    (
        PeerRoutes(((IPv4Network("10.244.1.0/24"), IPv4Address("172.30.1.1")),), "r", False),
        documents.decode_peer_routes,
        b'{"peers":[["10.244.1.0/24","172.30.1.1"]],"revision":"r","whole":false}',
    ),
    (
        NodeAddresses((IPv4Address("172.30.1.1"),), 1450, IPv4Interface("172.30.1.1/16")),
        documents.decode_addresses,
        b'{"addresses":["172.30.1.1"],"podMtu":1450,"uplink":"172.30.1.1/16"}',
    ),
    (
        SERVICES,
        documents.decode_services,
        b'{"node":"n1","nodePorts":[[6,30080,"default/web"]],"externalAddresses":["192.0.2.1"],'
        b'"healthChecks":[[30090,"default/web",2]],"revision":"r",'
        b'"ownAddresses":[["172.30.1.2",6,80,"169.254.1.16","default/web"]],"whole":false,'
        b'"externalPorts":[[["192.0.2.1"],[[6,80],[17,53]],"default/web"]],'
        b'"protectedAddresses":["172.30.0.10"],'
        b'"hostEndpoints":[[null,6,80,"172.30.1.2",8080,"default/web"]],'
        b'"balancerAddresses":["192.0.2.1"]}',
    ),
    (
        SwitchDigest(
            [2**64 - 1],
            [0, 1] * 128,
            meters=2,
            groups=3,
            foreign=4,
            datapath_flows=1024,
            generation=2**56 - 1,
            features=13,
        ),
        documents.decode_digest,
        b'{"seals":[18446744073709551615],"sums":['
        + b",".join([b"0,1"] * 128)
        + b'],"meters":2,"groups":3,"foreign":4,"datapathFlows":1024,'
        b'"generation":72057594037927935,"features":13}',
    ),
    (
        NodeProblems("a", {"default/p": "b"}, {"default/web": "c"}),
        documents.decode_problems,
        b'{"node":"a","pods":{"default/p":"b"},"services":{"default/web":"c"}}',
    ),
    (NodeProblems(), documents.decode_problems, b"{}"),
    (
        NodeDenials((PAIR,), 9),
        documents.decode_denials,
        b'{"pairs":[{"attachment":"pabcdefghij2345","direction":"to-pod","otherEnd":"10.244.1.5",'
        b'"ports":[{"protocol":6,"port":80,"rule":7},{"protocol":1}],"morePorts":true}],'
        b'"leftOut":9}',
    ),
    (NodeDenials(), documents.decode_denials, b"{}"),
]


@pytest.mark.parametrize(("document", "decode", "data"), PINNED)
def test_documents_have_fixed_bytes(document: Any, decode: Any, data: bytes) -> None:
    assert encode(document) == data
    assert decode(data) == document


@pytest.mark.parametrize(("document", "decode", "data"), PINNED)
def test_fields_of_a_newer_version_are_ignored(document: Any, decode: Any, data: bytes) -> None:
    newer = msgspec.json.encode(msgspec.json.decode(data) | {"new": {"er": [1]}})
    assert decode(newer) == document


def test_fields_that_came_later_may_be_absent() -> None:
    older = msgspec.json.decode(encode(SERVICES))
    for field in (
        *("ownAddresses", "whole", "externalPorts", "protectedAddresses", "hostEndpoints"),
        "balancerAddresses",
    ):
        del older[field]
    read = documents.decode_services(msgspec.json.encode(older))
    assert (read.own_addresses, read.source_complete, read.external_ports) == ((), True, ())
    digest = msgspec.json.decode(encode(SwitchDigest([1], [0] * 256, 2, 3, 4)))
    del digest["datapathFlows"], digest["generation"]
    decoded = documents.decode_digest(msgspec.json.encode(digest))
    assert (decoded.datapath_flows, decoded.generation) == (0, 0)


@pytest.mark.parametrize(
    ("verdict", "data"),
    [
        (Verdict.RIGHT, b'"right"'),
        (Verdict.SUPERSEDED, b'"moved on"'),
        (Verdict.DRIFT, b'"drift"'),
    ],
)
def test_verdicts_have_fixed_bytes(verdict: Verdict, data: bytes) -> None:
    assert msgspec.json.encode(verdict) == data
    assert documents.decode_verdict(data) is verdict


def test_verdict_of_a_later_version_is_read() -> None:
    assert documents.decode_verdict(b'"superseded"') is Verdict.SUPERSEDED
    with pytest.raises(msgspec.ValidationError):
        documents.decode_verdict(b'"unknown"')


def test_refusals_have_fixed_bytes() -> None:
    assert encode(Refusal("why")) == b'{"error":"why"}'
    assert documents.decode_refusal(b'{"error":"why","more":1}') == "why"


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b'{"error":1}', b"\xff"])
def test_unreadable_documents_raise_one_error(data: bytes) -> None:
    for decode in (
        documents.decode_config,
        documents.decode_services,
        documents.decode_digest,
        documents.decode_verdict,
        documents.decode_refusal,
    ):
        with pytest.raises(msgspec.MsgspecError):
            decode(data)


def test_largest_report_of_denials_is_read() -> None:
    ports = tuple(DeniedPort(17, number, 1) for number in range(MAX_DENIED_PORTS))
    whole = NodeDenials((msgspec.structs.replace(PAIR, ports=ports),) * MAX_DENIED_PAIRS, 2**32 - 1)
    data = encode(whole)
    assert documents.decode_denials(data) == whole
    assert len(data) < 1 << 17, "aiohttp takes no more than a megabyte"


@pytest.mark.parametrize(
    "change",
    [
        {"attachment": "pabcdefghij234"},
        {"attachment": "pabcdefghij2345\n"},
        {"attachment": "cabcdefghij2345"},
        {"attachment": "default/a"},
        {"direction": "sideways"},
        {"otherEnd": "10.244.1.0/24"},
        {"otherEnd": "fd00::1"},
        {"otherEnd": ["10.244.1.5"]},
        {"otherEnd": {}},
        {"ports": []},
        {"ports": [{"protocol": 6, "port": number} for number in range(10_000)]},
        {"ports": [{"protocol": 256}]},
        {"ports": [{"protocol": 6, "port": 65_536}]},
        {"ports": [{"protocol": 6, "port": -1}]},
        {"ports": [{"protocol": 6, "rule": 0}]},
        {"ports": [{"protocol": 6, "rule": 2**32}]},
    ],
)
def test_invalid_denied_pair_is_refused(change: dict[str, Any]) -> None:
    valid = msgspec.json.decode(encode(NodeDenials((PAIR,))))
    given = {"pairs": [valid["pairs"][0] | change]}
    with pytest.raises(msgspec.ValidationError):
        documents.decode_denials(msgspec.json.encode(given))


def test_too_many_denials_are_refused() -> None:
    for given in (NodeDenials((PAIR,) * (MAX_DENIED_PAIRS + 1)), NodeDenials(left_out=2**32)):
        with pytest.raises(msgspec.ValidationError):
            documents.decode_denials(encode(given))


def test_denied_attachment_has_the_name_of_a_pods_port() -> None:
    name = names.port_name("default", "a", "u", "eth0", "sandbox")
    given = NodeDenials((msgspec.structs.replace(PAIR, attachment=name),))
    assert documents.decode_denials(encode(given)) == given


@pytest.mark.parametrize("count", [0, 1, 255, 257])
def test_digest_has_a_sum_for_every_range(count: int) -> None:
    """A shorter one would pass for a switch whose other ranges nobody has looked at."""
    given = SwitchDigest(seals=[1], sums=[0] * count, meters=2, groups=3, foreign=4)
    with pytest.raises(msgspec.ValidationError):
        documents.decode_digest(encode(given))
    assert RANGES == documents.RANGES


@pytest.mark.parametrize(
    "text", ["\u202e", "\u2028", "\u2029", "\x85", "\x9b", "\x1b[2J", "a\n", "\xad"]
)
def test_sentence_with_a_hidden_character_is_refused(text: str) -> None:
    for given in (
        NodeProblems(text),
        NodeProblems(pods={"default/a": f"a{text}b"}),
        NodeProblems(services={"default/web": text}),
    ):
        with pytest.raises(msgspec.ValidationError):
            documents.decode_problems(encode(given))
        made = NodeProblems(
            readable(given.node),
            {k: readable(v) for k, v in given.pods.items()},
            {k: readable(v) for k, v in given.services.items()},
        )
        assert documents.decode_problems(encode(made)) == made


def test_hidden_characters_are_those_of_unicode() -> None:
    hidden = re.compile(f"[{HIDDEN}]")
    for number in range(sys.maxunicode + 1):
        category = unicodedata.category(chr(number))
        if category != "Cn":
            expected = category in {"Cc", "Cf", "Cs", "Zl", "Zp"}
            assert bool(hidden.fullmatch(chr(number))) == expected, hex(number)


def test_sentence_made_of_any_text_is_bounded() -> None:
    for text in ("\u202e" * 5000, "x" * 5000, "\n" * MAX_SENTENCE, "€" * (MAX_SENTENCE + 1)):
        made = NodeProblems(readable(text))
        assert documents.decode_problems(encode(made)) == made
    assert readable("x" * MAX_SENTENCE) == "x" * MAX_SENTENCE


@pytest.mark.parametrize(
    "name", sorted(name for name in vars(documents) if name.startswith("decode_"))
)
def test_document_that_is_nested_too_deep_is_refused(name: str) -> None:
    deep = b'{"node": "n1", "more": ' + b"[" * 5_000 + b"]" * 5_000 + b"}"
    with pytest.raises(msgspec.MsgspecError):
        getattr(documents, name)(deep)
