"""Denied packets as lines of the agent's log, from a real switch."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from structlog.testing import capture_logs

from flows.flow import ApplyMeter
from flows.policy import EVERY_PORT, Walks
from node_agent.cni_call import Pod
from node_agent.denials import Denial, Denials, denial
from node_agent.denied_pairs import DeniedPairs
from node_agent.leases import Lease
from openflow.messages import PacketIn
from openflow.watch import FlowWatch, connect
from tests.flows import tracing, worlds
from tests.flows.policies import DENY, FROM_POD, TO_POD, Policies
from tests.flows.test_policy_packets import A, B, C, ip_packet
from tests.openflow.conftest import eventually
from tests.ovs import Ovs, running
from tests.policy.switches import Control
from wire.documents import DeniedPair, DeniedPort

TCP, UDP = 6, 17
VIEW = worlds.view({1: ["default/a", "default/b", "default/c"]})
LOGGED = replace(VIEW, cluster=replace(VIEW.cluster, log_denials=True))
LEASES = [
    Lease("x", "eth0", A.port, IPv4Address(str(A.address)), A.ofport, None, Pod("ns", "a", "u")),
    Lease("y", "eth0", B.port, IPv4Address(str(B.address)), B.ofport, None, Pod("ns", "b", "v")),
]


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    with running(tmp_path_factory.mktemp("ovs")) as made:
        tracing.become(made, LOGGED, "node1")
        yield made


def policies() -> Policies:
    """`a` may send nothing, and nobody to `b`, where `c` is denied by a rule."""
    made = Policies()
    made.isolate(A, FROM_POD)
    walk = made.walk("deny", TO_POD, (made.peers(TO_POD, C), EVERY_PORT, DENY))
    made.select(B, to_pod=Walks(admin=(walk,), isolated=True))
    return made


def test_switch_reports_denied_packets_to_the_agent_alone(switch: Ovs) -> None:
    made = policies()
    switch.ofctl("del-flows", str(switch.mgmt))
    switch.install(tracing.flows(made.on(LOGGED), "node1"))
    (path,) = switch.directory.glob("ovs-vswitchd.*.ctl")
    control = Control(path)
    others: list[PacketIn] = []
    pairs = DeniedPairs()

    async def main() -> None:
        denials = Denials(lambda: LEASES, pairs)
        watch = FlowWatch(switch.mgmt, 0, denials.packet)
        async with watch, connect(switch.mgmt, on_packet=others.append) as other:
            await eventually(lambda: watch.connected)
            for pod, to, protocol, port, denied in (
                (A, B, TCP, 80, 1), (C, B, UDP, 53, 2), (B, B, TCP, 80, 2), (B, C, TCP, 80, 2),
            ):  # fmt: skip
                packet = ip_packet(pod, str(to.address), protocol, 4000, port, "syn")
                control.call("netdev-dummy/receive", pod.port, packet)
                # One after another: the switch may report two packets in either order.
                await eventually(lambda denied=denied: len(lines) == denied)
            await other.dump_meters()

    with capture_logs() as captured:
        lines = _Denied(captured)
        asyncio.run(main())
    control.close()
    (rule,) = {made.rule(walk) for walk in made.walks}
    common = {"event": "denied by policy", "log_level": "info"}
    assert list(lines) == [
        {
            **common, "direction": "from-pod", "pod": "ns/a", "source": "10.244.1.2",
            "destination": "10.244.1.3", "protocol": "tcp", "port": 80,
            "reason": "no rule allows it",
        },
        {
            **common, "direction": "to-pod", "pod": "ns/b", "source": "10.244.1.4",
            "destination": "10.244.1.3", "protocol": "udp", "port": 53,
            "reason": f"rule {rule:#x} denies it",
        },
    ]  # fmt: skip
    assert others == []
    assert pairs.due().pairs == (
        DeniedPair(A.port, FROM_POD, B.address, (DeniedPort(TCP, 80),)),
        DeniedPair(B.port, TO_POD, C.address, (DeniedPort(UDP, 53, rule),)),
    )


class _Denied:
    """The lines about denials among all that are captured."""

    def __init__(self, captured: list[dict[str, object]]) -> None:
        self._captured = captured

    def __iter__(self) -> Iterator[dict[str, object]]:
        return (line for line in self._captured if line["event"] == "denied by policy")

    def __len__(self) -> int:
        return sum(1 for _ in self)


def test_reports_are_metered_and_off_by_default() -> None:
    made = policies()
    logged, silent = (
        [
            f
            for f in tracing.flows(made.on(view), "node1")
            if f.reason.startswith("denied by the policies")
        ]
        for view in (LOGGED, VIEW)
    )
    assert len(logged) == len(silent) == 2
    assert all(isinstance(flow.actions[0], ApplyMeter) for flow in logged)
    assert not any(flow.actions for flow in silent)


def test_ends_of_a_frame() -> None:
    start = bytes(12) + b"\x08\x00"
    one, two = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    for protocol, fragment, rest, expected in (
        ("06", "0000", "0fa00050", Denial(one, two, TCP, 80)),
        ("11", "2000", "0fa00035", Denial(one, two, UDP, 53)),
        ("11", "0010", "0fa00035", Denial(one, two, UDP, None)),  # a later fragment
        ("06", "0000", "0fa0", Denial(one, two, TCP, None)),
        ("01", "0000", "08000000", Denial(one, two, 1, None)),
        ("2f", "0000", "", Denial(one, two, 47, None)),
    ):
        text = f"4500002000 00{fragment}40{protocol}0000 0a000001 0a000002{rest}"
        assert denial(start + bytes.fromhex(text)) == expected
    assert denial(start) is None
    assert denial(bytes(12) + b"\x08\x06" + bytes(40)) is None
    assert denial(start + bytes([0x60]) + bytes(40)) is None


def test_container_without_a_pod_has_only_a_line_in_the_log() -> None:
    pairs = DeniedPairs()
    lease = Lease("x", "eth0", A.port, A.address, A.ofport)
    frame = bytes.fromhex("00" * 12 + "0800 4500002000000000 40060000 0a000001 0a000002 0fa00050")
    with capture_logs() as captured:
        Denials(lambda: [lease], pairs).packet(PacketIn(92, 0, A.ofport, {}, frame))
    assert [line["pod"] for line in captured] == ["x"]
    assert pairs.due().pairs == ()


def test_packet_from_another_table_is_ignored() -> None:
    with capture_logs() as captured:
        Denials(list, DeniedPairs()).packet(PacketIn(80, 0, 16, {}, bytes(100)))
    assert captured == []
