"""The messages that we encode ourselves, compared with pyroute2's."""

import socket
import struct
from collections.abc import Iterator
from contextlib import closing
from ipaddress import IPv4Address
from typing import Any

from pyroute2 import IPBatch
from pyroute2.netlink import NLM_F_ACK, NLM_F_CREATE, NLM_F_REQUEST
from pyroute2.netlink.nfnetlink import NFNL_SUBSYS_NFTABLES, nfgen_msg, nftsocket

from flows import names
from node_agent import netlink, nft
from node_agent.pod_messages import PodLink, inner_messages, pair_message

LINK = PodLink("eth0", "p0123456789abcd", IPv4Address("10.1.2.3"), 1450, userspace=True)
MAC = "0a:58:0a:01:02:03"


def content(data: bytes) -> dict[str, Any]:
    """Type, flags, fixed part and attributes of a message; order and sequence mean nothing."""
    length, kind, flags, _, _ = struct.unpack_from("=IHHII", data)
    assert length == len(data)
    fixed = {16: 16, 20: 8, 28: 12, 24: 12}.get(kind, 4)
    return {
        "type": kind,
        "flags": flags,
        "fixed": data[16 : 16 + fixed],
        "attributes": attributes(data[16 + fixed :]),
    }


def attributes(data: bytes) -> dict[int, Any]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


def theirs(call: str, *given: Any, **attrs: Any) -> dict[str, Any]:
    with closing(IPBatch()) as batch:
        getattr(batch, call)(*given, **attrs)
        return content(bytes(batch.batch))


def test_a_pair_is_requested_as_by_pyroute2() -> None:
    peer = {"ifname": "eth0", "net_ns_fd": 77, "address": MAC, "mtu": 1450}
    wanted = theirs(
        "link", "add", ifname=LINK.port, kind="veth", address=MAC, mtu=1450, state="up", peer=peer
    )
    assert content(pair_message(LINK, 77)) == wanted


def test_the_inside_is_requested_as_by_pyroute2() -> None:
    router = str(names.ROUTER_ADDRESS)
    wanted = [
        theirs("addr", "add", index=5, address="10.1.2.3", prefixlen=32),
        theirs("link", "set", index=1, state="up"),
        theirs("link", "set", index=5, state="up"),
        theirs("neigh", "add", dst=router, lladdr=names.ROUTER_MAC, ifindex=5, state=0x80),
        theirs("route", "add", dst=f"{router}/32", oif=5, scope=253),
        theirs("route", "add", dst="0.0.0.0/0", gateway=router, oif=5),
    ]
    assert [content(each) for each in inner_messages(LINK, 5)] == wanted


def table_message(kind: Any, number: int, attrs: list[tuple[str, Any]]) -> bytes:
    message = kind()
    message["nfgen_family"] = 5
    message["attrs"] = attrs
    creates = 0 if number == nftsocket.NFT_MSG_DELCHAIN else NLM_F_CREATE
    message["header"]["type"] = NFNL_SUBSYS_NFTABLES << 8 | number
    message["header"]["flags"] = NLM_F_REQUEST | NLM_F_ACK | creates
    message.encode()
    return bytes(message.data)


def bound(number: int) -> bytes:
    message = nfgen_msg()
    message["res_id"] = NFNL_SUBSYS_NFTABLES
    message["header"]["type"] = number
    message["header"]["flags"] = NLM_F_REQUEST
    message.encode()
    return bytes(message.data)


def table_messages(*changes: bytes) -> list[dict[str, Any]]:
    name = [("NFTA_TABLE_NAME", nft.TABLE)]
    table = table_message(nftsocket.nft_table_msg, nftsocket.NFT_MSG_NEWTABLE, name)
    return [content(each) for each in (bound(16), table, *changes, bound(17))]


def test_chains_are_requested_as_by_pyroute2() -> None:
    chain = nftsocket.nft_chain_msg
    named = [("NFTA_CHAIN_TABLE", nft.TABLE), ("NFTA_CHAIN_NAME", "v0")]
    hook = [("NFTA_HOOK_HOOKNUM", 0), ("NFTA_HOOK_PRIORITY", 0), ("NFTA_HOOK_DEV", "v0")]
    more = [
        *(("NFTA_CHAIN_TYPE", "filter"), ("NFTA_CHAIN_HOOK", {"attrs": hook})),
        ("NFTA_CHAIN_POLICY", 0),
    ]
    drop = table_message(chain, nftsocket.NFT_MSG_NEWCHAIN, [*named, *more])
    assert [content(each) for each in nft.drop_messages("v0")] == table_messages(drop)
    there = table_message(chain, nftsocket.NFT_MSG_NEWCHAIN, [*named])
    gone = table_message(chain, nftsocket.NFT_MSG_DELCHAIN, [*named])
    assert [content(each) for each in nft.allow_messages("v0")] == table_messages(there, gone)


class Kernel:
    """Answers in as many pieces as it is given."""

    def __init__(self, *pieces: bytes) -> None:
        self.sent = b""
        self._pieces = iter(pieces)

    def send(self, data: bytes) -> None:
        self.sent += data

    def recv(self, _: int) -> bytes:
        return next(self._pieces)


def answers(*errors: int) -> Iterator[bytes]:
    for error in errors:
        yield netlink.message(2, 0, struct.pack("=i", -error), bytes(16))


def test_each_message_has_its_own_error() -> None:
    asked = [netlink.message(16, netlink.CHANGE), netlink.message(16, netlink.Flags.REQUEST)]
    other = netlink.message(3, 0)
    kernel: Any = Kernel(other + b"".join(answers(17)), b"".join(answers(0, 19)))
    assert netlink.exchange(kernel, [asked[0], asked[1], *asked[:1] * 2]) == [17, 0, 19]
    assert kernel.sent == asked[0] + asked[1] + asked[0] * 2


def test_a_socket_of_the_kernel_answers_a_message_that_it_does_not_know() -> None:
    with netlink.route_socket() as opened:
        (error,) = netlink.exchange(opened, [netlink.message(0x7FF0, netlink.CHANGE, bytes(16))])
    assert error != 0
    assert opened.family == socket.AF_NETLINK
