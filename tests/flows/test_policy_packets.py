"""Policy and connections: packets through the datapath of a real switch."""

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from flows import names
from flows.pipeline import CT_ZONE
from flows.policy import EVERY_PORT, Direction
from flows.view import Attachment
from tests.flows import tracing, worlds
from tests.flows.policies import FROM_POD, TCP, TO_POD, UDP, Policies
from tests.ovs import Ovs, running
from tests.policy.switches import Control
from tests.waiting import wait_until

VIEW = worlds.view({1: ["default/a", "default/b", "default/c"]}, served=worlds.services())
CUT = replace(VIEW, cluster=replace(VIEW.cluster, cut_established=True))
A, B, C = VIEW.attachments["node1"].values()
SERVICE = "10.96.0.12"
"""Port 53 of both protocols, with one endpoint: port 8080 of `b`."""


class Packets:
    """The switch of node1: what it does with packets."""

    def __init__(self, switch: Ovs, control: Control) -> None:
        self.switch = switch
        self.control = control
        self.view = VIEW
        self.control.call("dpctl/flush-conntrack")
        self._source_port = 10_000

    def become(self, made: Policies) -> None:
        """Change to these policies, and wait until the datapath follows."""
        self.switch.ofctl("del-flows", str(self.switch.mgmt))
        self.switch.install(tracing.flows(made.on(self.view), "node1"))
        for _ in range(2):
            self.control.call("revalidator/wait")

    def connection(self, protocol: int, to: str = str(B.address), port: int = 8080) -> "Connection":
        """An established connection of `a`, and both sides have sent."""
        self._source_port += 1
        made = Connection(self, protocol, to, port, self._source_port)
        made.open()
        return made

    def sent(self, to: Attachment) -> int:
        """The packets that left by an attachment's port."""
        text = self.control.call("dpctl/show", "-s")
        found = re.search(rf": {to.port} .*?TX packets:(\d+)", text, re.DOTALL)
        assert found
        return int(found[1])

    def passes(self, sender: Attachment, receiver: Attachment, packet: str) -> bool:
        """Whether this packet comes out at the receiver."""
        before, marker = self.sent(receiver), self.sent(C)
        self._receive(sender, packet)
        # One packet after the other: once the second is out, the first is too.
        self._receive(C, ip_packet(C, str(C.address), UDP, 1, 2))
        wait_until(lambda: self.sent(C) == marker + 1)
        return self.sent(receiver) == before + 1

    def _receive(self, port: Attachment, packet: str) -> None:
        self.control.call("netdev-dummy/receive", port.port, packet)

    def entries(self) -> str:
        return self.control.call("dpctl/dump-conntrack", f"zone={CT_ZONE}")


def ip_packet(
    sender: Attachment, to: str, protocol: int, source: int, destination: int, flags: str = "ack"
) -> str:
    layer_4 = (
        f"tcp(src={source},dst={destination}),tcp_flags({flags})"
        if protocol == TCP
        else f"udp(src={source},dst={destination})"
    )
    return (
        f"in_port({sender.ofport}),eth(src={sender.mac},dst={names.ROUTER_MAC}),eth_type(0x0800),"
        f"ipv4(src={sender.address},dst={to},proto={protocol},tos=0,ttl=64,frag=no),{layer_4}"
    )


class Connection:
    """A connection of `a` to `b`, directly or through a Service."""

    def __init__(self, on: Packets, protocol: int, to: str, port: int, source: int) -> None:
        self._on = on
        self._protocol = protocol
        self._to = to
        self._port = port
        self._source = source

    def open(self) -> None:
        assert self.goes("syn")
        assert self.comes("syn|ack")
        assert self.goes()
        assert self.comes()

    def goes(self, flags: str = "ack") -> bool:
        """Whether a packet of `a` comes to `b`."""
        made = ip_packet(A, self._to, self._protocol, self._source, self._port, flags)
        return self._on.passes(A, B, made)

    def comes(self, flags: str = "ack") -> bool:
        """Whether a packet of `b` comes to `a`."""
        made = ip_packet(B, str(A.address), self._protocol, 8080, self._source, flags)
        return self._on.passes(B, A, made)


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    with running(tmp_path_factory.mktemp("ovs")) as made:
        tracing.become(made, VIEW, "node1")
        # The packets of these tests have no sequence numbers.
        made.appctl("dpctl/ct-disable-tcp-seq-chk")
        yield made


@pytest.fixture
def packets(switch: Ovs) -> Iterator[Packets]:
    (path,) = switch.directory.glob("ovs-vswitchd.*.ctl")
    control = Control(path)
    yield Packets(switch, control)
    control.close()


def allowing(direction: Direction, *ports: int) -> Policies:
    """`a` may send to these ports, or `b` may get packets at them, from `a` alone."""
    made = Policies()
    pod, peer = (A, B) if direction is FROM_POD else (B, A)
    rule = (
        made.peers(direction, peer),
        made.ports(*((protocol, port) for protocol in (TCP, UDP) for port in ports)),
    )
    made.isolate(pod, direction, made.walk(f"only {ports}", direction, *([rule] if ports else [])))
    return made


def test_established_connection_is_kept(packets: Packets) -> None:
    for protocol in (TCP, UDP):
        for direction in Direction:
            packets.become(allowing(direction, 8080))
            kept = packets.connection(protocol)
            packets.become(allowing(direction))
            assert kept.goes()
            assert kept.comes()
            with pytest.raises(AssertionError):
                packets.connection(protocol)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("direction", list(Direction))
@pytest.mark.parametrize("through", [str(B.address), SERVICE])
def test_established_connection_is_cut_in_both_directions(
    packets: Packets, protocol: int, direction: Direction, through: str
) -> None:
    packets.view = CUT
    packets.become(allowing(direction, 8080))
    port = 53 if through == SERVICE else 8080
    one, other = (packets.connection(protocol, through, port) for _ in range(2))
    # An equivalent policy cuts nothing, and neither does one that allows more.
    packets.become(allowing(direction, 8080, 81))
    assert one.goes()
    assert one.comes()
    packets.become(allowing(direction, 81))
    assert not one.goes()
    assert not one.comes()
    assert not one.goes()
    # Replies pass until the next packet of who opened the connection.
    assert other.comes()
    packets.become(allowing(direction, 8080))
    assert one.goes()
    assert one.comes()
    assert other.goes()


def test_pods_without_policies_keep_their_connections(packets: Packets) -> None:
    packets.view = CUT
    packets.become(Policies())
    free = packets.connection(TCP)
    made = Policies()
    made.isolate(C, TO_POD)
    packets.become(made)
    assert free.goes()
    assert free.comes()


def test_member_that_leaves_a_set_loses_its_connections(packets: Packets) -> None:
    packets.view = CUT
    made = allowing(TO_POD, 8080)
    packets.become(made)
    held = packets.connection(TCP)
    for members in made.members.values():
        members.clear()
    packets.become(made)
    assert not held.goes()
    assert not held.comes()


def test_conntrack_knows_the_rules_that_allowed_a_connection(packets: Packets) -> None:
    made = Policies()
    out = made.walk("out", FROM_POD, (None, EVERY_PORT))
    into = made.walk("in", TO_POD, (made.peers(TO_POD, A), EVERY_PORT))
    made.isolate(A, FROM_POD, out)
    made.isolate(B, TO_POD, into)
    packets.become(made)
    for to, port in ((str(B.address), 8080), (SERVICE, 53)):
        packets.connection(UDP, to, port)
        entry = next(
            line
            for line in packets.entries().splitlines()
            if f"sport={packets._source_port}" in line
        )
        label = made.rule(out) | made.rule(into) << 32
        assert f"labels={label:#x}" in entry
