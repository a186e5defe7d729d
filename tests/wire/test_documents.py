"""The protocol in bytes: controllers and agents of different versions read the same documents."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
import pytest

from wire import documents
from wire.documents import (
    NodeConfig,
    NodeProblems,
    NodeServices,
    Refusal,
    SwitchDigest,
    Verdict,
    encode,
)

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
)
# Fixed for ever: a change here breaks agents or controllers of another version.
PINNED: list[tuple[Any, Any, bytes]] = [
    (
        CONFIG,
        documents.decode_config,
        b'{"node":"n1","uid":"u","address":"172.30.1.2","podCidr":"10.244.1.0/24",'
        b'"podRange":"10.244.0.0/16","serviceRange":"10.96.0.0/16","hostRanges":["172.30.0.0/16"],'
        b'"tunnel":"geneve","tunnelId":1,"tunnelPort":6081,"revision":"r","mtu":null}',
    ),
    (
        SERVICES,
        documents.decode_services,
        b'{"node":"n1","nodePorts":[[6,30080,"default/web"]],"externalAddresses":["192.0.2.1"],'
        b'"healthChecks":[[30090,"default/web",2]],"revision":"r",'
        b'"ownAddresses":[["172.30.1.2",6,80,"169.254.1.16","default/web"]],"whole":false,'
        b'"externalPorts":[[["192.0.2.1"],[[6,80],[17,53]],"default/web"]],'
        b'"protectedAddresses":["172.30.0.10"],'
        b'"hostEndpoints":[[null,6,80,"172.30.1.2",8080,"default/web"]]}',
    ),
    (
        SwitchDigest(seals=[2**64 - 1], sums=[0, 1], meters=2, groups=3, foreign=4),
        documents.decode_digest,
        b'{"seals":[18446744073709551615],"sums":[0,1],"meters":2,"groups":3,"foreign":4}',
    ),
    (
        NodeProblems("a", {"default/p": "b"}, {"default/web": "c"}),
        documents.decode_problems,
        b'{"node":"a","pods":{"default/p":"b"},"services":{"default/web":"c"}}',
    ),
    (NodeProblems(), documents.decode_problems, b"{}"),
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
    for field in ("ownAddresses", "whole", "externalPorts", "protectedAddresses", "hostEndpoints"):
        del older[field]
    read = documents.decode_services(msgspec.json.encode(older))
    assert (read.own_addresses, read.source_complete, read.external_ports) == ((), True, ())


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
