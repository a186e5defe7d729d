"""The agent's ARP on a veth pair: who is answered, floods, other hosts with the same address."""

import os
import sys
from collections.abc import Iterator

import pytest

from .conftest import needs_root, run

pytestmark = needs_root

BEGIN = """
import asyncio, dataclasses, socket, threading, time
from ipaddress import IPv4Address
from pyroute2 import AsyncIPRoute
from node_agent import arp, arp_answers
from node_agent.address_holds import Hold, Holds
from node_agent.link_addresses import clock
from tests.node_agent.conftest import CONFIG

HELD, LOST, SILENT = (IPv4Address(f"172.30.9.{n}") for n in (1, 2, 3))
THEIRS = bytes.fromhex("020000000099")

def asks(address, mac=THEIRS, sender="172.30.0.9"):
    probe = bytearray(arp.probe(address, mac))
    probe[28:32] = IPv4Address(sender).packed
    return bytes(probe)

class Far:
    "The other end of the link."
    def __init__(self):
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
        self.socket.bind(("v1", 0x0806))
        self.socket.setblocking(False)
    def heard(self):
        found = []
        while True:
            try:
                frame = arp.parsed(self.socket.recv(64))
            except BlockingIOError:
                return found
            if frame.sender_mac != THEIRS:
                found.append(frame)

async def main():
    far = Far()
    holds = Holds(())
    now = clock()
    for address in (HELD, SILENT):
        holds.held[address] = Hold(1, now + 3600)
    holds.held[LOST] = Hold(2, now + 1.0)
    async with AsyncIPRoute() as netlink:
        answers = arp_answers.ArpAnswers(netlink, lambda: CONFIG, holds, clock)
        answers.announced = {HELD, LOST}
        task = asyncio.create_task(answers.run())
        while not answers._reading:
            await asyncio.sleep(0.01)
        await story(far, holds, answers)
        task.cancel()

"""
STORIES = {
    "answers": """
async def story(far, holds, answers):
    await asyncio.sleep(0.3)
    said = far.heard()
    assert {each.sender for each in said} == {HELD, LOST}, said
    assert {each.operation for each in said if each.sender == HELD} == {1, 2}
    for address in (HELD, LOST, SILENT, HELD + 10):
        far.socket.send(asks(address))
    await asyncio.sleep(0.2)
    answered = [each for each in far.heard() if str(each.target) == "172.30.0.9"]
    assert [each.sender for each in answered] == [HELD, LOST], answered
    # It is looked at when the answer is sent, not when the kernel's filter was made.
    await asyncio.sleep(1.0)
    far.heard()
    far.socket.send(asks(LOST))
    far.socket.send(asks(HELD))
    await asyncio.sleep(0.2)
    assert LOST not in {each.sender for each in far.heard()}
""",
    "stopped": """
async def story(far, holds, answers):
    holds.held[LOST].until = clock() + 1.0
    await asyncio.sleep(0.1)
    far.heard()
    far.socket.send(asks(LOST))
    time.sleep(1.5)  # the process is stopped, and the question waits in its socket
    await asyncio.sleep(0.2)
    assert LOST not in {each.sender for each in far.heard()}
""",
    "conflict": """
async def story(far, holds, answers):
    await asyncio.sleep(0.2)
    for frame in arp.announcements(HELD, THEIRS):
        far.socket.send(frame)
    far.socket.send(arp.announcements(SILENT, THEIRS)[0])
    far.heard()
    await asyncio.sleep(0.2)
    assert answers.conflicts(clock()) == {HELD: "02:00:00:00:00:99"}
    assert answers.conflicts(clock() + arp_answers.CONFLICT) == {}
    # It asks by itself, and does not fight.
    answers._conflicts.clear()
    answers._due.clear()
    answers._put(clock(), HELD, probes=True)
    answers._has_due.set()
    await asyncio.sleep(0.2)
    (probe,) = [each for each in far.heard() if each.is_probe]
    assert probe.target == HELD
    far.socket.send(arp.reply(probe, THEIRS))
    await asyncio.sleep(0.2)
    assert answers.conflicts(clock()) == {HELD: "02:00:00:00:00:99"}
    assert far.heard() == []
""",
    "flood": """
async def story(far, holds, answers):
    stop, sent = threading.Event(), [0]
    other = [asks(HELD + 1000 + number) for number in range(64)]
    def flood(frames):
        while not stop.is_set():
            for frame in frames:
                try:
                    far.socket.send(frame)
                    sent[0] += 1
                except OSError:
                    pass
    for frames, wanted in (([asks(HELD)] * 64, True), (other, False)):
        stop.clear()
        answers.answered = sent[0] = 0
        thread = threading.Thread(target=flood, args=(frames,))
        began = clock()
        thread.start()
        turns = 0
        while clock() < began + 1.0:
            await asyncio.sleep(0.01)
            turns += 1
        stop.set()
        thread.join()
        took = clock() - began
        await asyncio.sleep(1.0)  # what waits in the socket is looked at, too
        took += 1.0
        most = arp_answers.RATE * took + arp_answers._BURST
        assert sent[0] > 2 * most, sent
        assert turns > 10, "the event loop has its turns"
        assert answers.answered <= most
        assert bool(answers.answered) == wanted
    far.heard()
    far.socket.send(asks(HELD))
    await asyncio.sleep(0.3)
    assert HELD in {each.sender for each in far.heard()}
""",
    "proxy_arp": """
import pathlib
async def story(far, holds, answers):
    "The kernel answers for what is routed to another interface, as load balancer addresses are."
    assert answers.problem == ""
    pathlib.Path("/proc/sys/net/ipv4/conf/v0/proxy_arp").write_text("1")
    await answers._follow_uplink()
    assert "proxy_arp is set" in answers.problem
    pathlib.Path("/proc/sys/net/ipv4/conf/v0/proxy_arp").write_text("0")
    await answers._follow_uplink()
    assert answers.problem == ""
""",
    "link": """
import subprocess
async def story(far, holds, answers):
    "The interface goes down and up, and is made anew."
    for words in ("link set v0 down", "link set v0 up"):
        subprocess.run(["ip", *words.split()], check=True)
    async def is_answered():
        for _ in range(100):
            far.heard()
            far.socket.send(asks(HELD))
            await asyncio.sleep(0.1)
            if HELD in {each.sender for each in far.heard()}:
                return True
        return False
    assert await is_answered()
    for words in ("link del v0", "link add v0 type veth peer name v1", "link set v0 up",
                  "link set v1 up", "address add 172.30.0.1/16 dev v0"):
        subprocess.run(["ip", *words.split()], check=True)
    far.socket.close()
    far.__init__()
    assert await is_answered()
    assert answers.problem == ""
""",
}


@pytest.fixture
def link() -> Iterator[str]:
    """A namespace with a veth pair; the near end has the node's address."""
    name = f"sluice-test-arps-{os.getpid()}"
    run("ip", "netns", "add", name)
    run("ip", "-n", name, "link", "add", "v0", "type", "veth", "peer", "name", "v1")
    run("ip", "-n", name, "address", "add", "172.30.0.1/16", "dev", "v0")
    for end in ("v0", "v1"):
        run("ip", "-n", name, "link", "set", end, "up")
    yield name
    run("ip", "netns", "del", name)


@pytest.mark.parametrize("story", STORIES)
def test_arp(link: str, story: str) -> None:
    steps = f"{BEGIN}{STORIES[story]}\nasyncio.run(main())\n"
    run("ip", "netns", "exec", link, sys.executable, "-c", steps, timeout=60)
