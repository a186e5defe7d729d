"""ARP frames, and what the kernel lets through to the agent."""

import json
import os
import struct
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest
from scapy.layers.l2 import ARP, Ether

from node_agent import arp

from .conftest import needs_root, run

ADDRESS = IPv4Address("192.0.2.1")
OURS, THEIRS = bytes.fromhex("020000000001"), bytes.fromhex("020000000002")


def request(target: IPv4Address = ADDRESS, sender: str = "192.0.2.9") -> bytes:
    return bytes(
        Ether(src=arp.text_of(THEIRS), dst="ff:ff:ff:ff:ff:ff")
        / ARP(op=1, hwsrc=arp.text_of(THEIRS), psrc=sender, pdst=str(target))
    )


def test_request_is_answered_to_who_asked() -> None:
    asked = arp.parsed(request())
    assert asked is not None
    answer = Ether(arp.reply(asked, OURS))
    assert (answer.src, answer.dst) == (arp.text_of(OURS), arp.text_of(THEIRS))
    assert (answer[ARP].op, answer[ARP].psrc, answer[ARP].hwsrc) == (2, str(ADDRESS), answer.src)
    assert (answer[ARP].pdst, answer[ARP].hwdst) == ("192.0.2.9", arp.text_of(THEIRS))


def test_both_forms_of_an_announcement_say_the_same() -> None:
    for frame, operation in zip(arp.announcements(ADDRESS, OURS), (1, 2), strict=True):
        said = Ether(frame)
        assert said.dst == "ff:ff:ff:ff:ff:ff"
        assert said[ARP].op == operation
        assert said[ARP].psrc == said[ARP].pdst == str(ADDRESS)
        assert said[ARP].hwsrc == arp.text_of(OURS)


def test_probe_claims_nothing() -> None:
    said = Ether(arp.probe(ADDRESS, OURS))[ARP]
    assert (said.op, said.psrc, said.pdst) == (1, "0.0.0.0", str(ADDRESS))


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        request()[:41],
        request()[:12] + b"\x08\x00" + request()[14:],
        request()[:14] + b"\x00\x06" + request()[16:],
        request()[:18] + b"\x08\x04" + request()[20:],
        request()[:20] + b"\x00\x03" + request()[22:],
    ],
)
def test_what_is_no_arp_for_ipv4_is_ignored(frame: bytes) -> None:
    assert arp.parsed(frame) is None


def test_rate_has_a_burst_and_a_pace() -> None:
    rate = arp.AllowedRate(100, 10)
    assert [rate.take(5.0, 8), rate.take(5.0, 8), rate.take(5.0, 8)] == [8, 2, 0]
    assert rate.take(5.0625, 64) == 6
    assert rate.take(1000.0, 64) == 10


PASSED = """
import json, socket, sys, time
from ipaddress import IPv4Address
from node_agent import arp

wanted = [IPv4Address(each) for each in json.loads(sys.argv[1])]
frames = [bytes.fromhex(each) for each in json.loads(sys.argv[2])]
listening = arp.ArpSocket("v0")
listening.listen_for(wanted)
with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as far:
    far.bind(("v1", 0))
    for frame in frames:
        far.send(frame)
time.sleep(0.1)
found = list(listening.received(64))
print(json.dumps([[each.operation, str(each.sender), str(each.target)] for each in found]))
print(listening.mac.hex(":"))
"""


@pytest.fixture
def link() -> Iterator[str]:
    """A namespace with a veth pair."""
    name = f"sluice-test-arp-{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    for end in ("v0", "v1"):
        run("ip", "-n", name, "link", "set", end, "up")
    yield name
    run("ip", "netns", "del", name)


@needs_root
@pytest.mark.parametrize("count", [0, 1, 500, 1000])
def test_kernel_passes_what_is_about_our_addresses_alone(link: str, count: int) -> None:
    wanted = [IPv4Address("198.51.0.0") + 3 * number for number in range(count)]
    last = wanted[-1] if wanted else ADDRESS
    claim = bytes(
        Ether(src=arp.text_of(THEIRS)) / ARP(op=2, hwsrc=arp.text_of(THEIRS), psrc=str(last))
    )
    frames = [
        request(last),
        request(last + 1),
        claim,
        request(ADDRESS, sender=str(last)),
        bytes(Ether(src=arp.text_of(THEIRS)) / ARP(op=2, psrc="192.0.2.9", pdst=str(last))),
        request()[:30],
        struct.pack("!6s6sH", b"\xff" * 6, THEIRS, 0x0800) + bytes(50),
    ]
    addresses = json.dumps([str(each) for each in wanted])
    given = json.dumps([frame.hex() for frame in frames])
    said = run("ip", "netns", "exec", link, sys.executable, "-c", PASSED, addresses, given)
    expected = [
        [1, "192.0.2.9", str(last)], [2, str(last), "0.0.0.0"], [1, str(last), str(ADDRESS)]
    ]  # fmt: skip
    assert json.loads(said.splitlines()[0]) == (expected if count else [])


@needs_root
def test_of_more_addresses_than_a_filter_compares_every_request_is_passed(link: str) -> None:
    wanted = json.dumps([str(IPv4Address("198.51.0.0") + number) for number in range(4096)])
    frames = json.dumps([request().hex()])
    said = run("ip", "netns", "exec", link, sys.executable, "-c", PASSED, wanted, frames)
    assert json.loads(said.splitlines()[0]) == [[1, "192.0.2.9", str(ADDRESS)]]
