"""Grants of addresses in bytes: controllers and agents of different versions read the same."""

from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest

from wire.address_grants import (
    LIFETIME,
    MAX_ADDRESSES,
    RENEWAL,
    AddressDuties,
    Granted,
    GrantRequest,
    decode_duties,
    decode_granted,
    decode_request,
    encode,
)

A, B = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
REQUEST = GrantRequest(
    held=((A, 5),), wanted=(B,), released=((B, (1 << 63) - 1),),
    conflicts=((A, "02:00:00:00:00:07"),),
)  # fmt: skip
GRANTED = Granted("x", leads=True, leader="x", granted=((A, 5),))
DUTIES = AddressDuties("n1", "1", leads=True, generation=3, addresses=((A, True),), gated=(B,))
IN_BYTES: list[tuple[Any, Any, bytes]] = [
    (REQUEST, decode_request,
     b'{"held":[["192.0.2.1",5]],"wanted":["192.0.2.2"],'
     b'"released":[["192.0.2.2",9223372036854775807]],'
     b'"conflicts":[["192.0.2.1","02:00:00:00:00:07"]]}'),
    (GRANTED, decode_granted,
     b'{"controller":"x","leads":true,"leader":"x","granted":[["192.0.2.1",5]]}'),
    (DUTIES, decode_duties,
     b'{"node":"n1","revision":"1","leads":true,"generation":3,'
     b'"addresses":[["192.0.2.1",true]],"gated":["192.0.2.2"]}'),
]  # fmt: skip


@pytest.mark.parametrize(("document", "decode", "data"), IN_BYTES)
def test_documents_in_bytes(document: Any, decode: Any, data: bytes) -> None:
    assert encode(document) == data
    assert decode(data) == document
    assert decode(data[:-1] + b',"later":[1]}') == document


@pytest.mark.parametrize(
    "data",
    [
        b"[]",
        b'{"held":[["192.0.2.1"]]}',
        b'{"held":[["192.0.2.1",0]]}',
        b'{"held":[["192.0.2.1",-1]]}',
        b'{"held":[["192.0.2.1",1.5]]}',
        b'{"held":[["192.0.2.1",18446744073709551616]]}',
        b'{"held":[["::1",1]]}',
        b'{"wanted":["192.0.2.256"]}',
        b'{"conflicts":[["192.0.2.1","02:00:00:00:00:07\\n"]]}',
        b'{"wanted":[' + b'"192.0.2.1",' * MAX_ADDRESSES + b'"192.0.2.1"]}',
        b"[" * 100_000,
    ],
)
def test_bad_requests_are_refused(data: bytes) -> None:
    with pytest.raises((msgspec.MsgspecError, ValueError)):
        decode_request(data)


def test_a_lost_answer_or_two_end_no_grant() -> None:
    assert LIFETIME >= 4 * RENEWAL


def test_largest_documents_fit_into_a_request() -> None:
    every = tuple(IPv4Address("255.255.0.0") + number for number in range(MAX_ADDRESSES))
    largest = GrantRequest(held=tuple((each, (1 << 63) - 1) for each in every), wanted=every)
    # aiohttp takes bodies of up to 1 MiB.
    assert len(encode(largest)) < 1 << 19
