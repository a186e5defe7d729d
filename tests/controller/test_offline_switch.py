"""What a switch would do, computed from flows, compared with a real switch and the simulator."""

import asyncio
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from ipaddress import IPv4Address
from random import Random
from typing import NamedTuple

import msgspec
import pytest

from controller.offline.switch import FlowTables, OfflineSwitch, _number
from flows import names
from flows.compile import compile_scope
from flows.features.endpoints import MAX_DP_HASH_ENDPOINTS
from flows.flow import Group, ct_state
from flows.pipeline import BLOCKED, CT_ZONE, KNOWN
from flows.traced import Traced
from flows.view import CLUSTER_SCOPE
from node_agent import switch_trace
from tests.flows.test_service_trace import SERVICES, VIEW
from tests.flows.tracing import become
from tests.flows.worlds import CLUSTER
from tests.ovs import Ovs, running
from tests.policy.controlled import Controlled, ofport_of
from tests.policy.evaluator import Cluster, gateway, node_addresses
from tests.policy.generator import NODES, generate
from tests.policy.simulator import IN_PORT, Tables
from tests.policy.switches import Switches, switches_for
from wire.questions import Connection, Packet, SwitchTrace, TraceSwitch
from wire.tracing import TraceError
from wire.tracing.switch import Entry, PartOf, trace_switch

TCP, UDP, SCTP, ICMP, GRE = 6, 17, 132, 1, 47
OUTSIDE = IPv4Address("203.0.113.10")
TUNNEL_ID = 1
_COMPARED = re.compile(
    r"reg\d+|in_port|dl_(src|dst)|nw_(src|dst)|tp_(src|dst)|icmp_(type|code)|tun_(src|dst)"
)
CLUSTERS, PACKETS = 25, 12


class Place(NamedTuple):
    """Where a packet enters a switch."""

    in_port: int
    source: IPv4Address
    mac: str
    tunnel: tuple[IPv4Address, IPv4Address, int] | None = None


class Both:
    """A real switch and a computed one, which are asked the same."""

    def __init__(self, ovs: Ovs, offline: OfflineSwitch) -> None:
        self._ovs = ovs
        self._offline = offline
        self.differences: list[str] = []
        self.parts = 0

    def trace(self, question: TraceSwitch, known: Iterable[Connection] = ()) -> SwitchTrace:

        async def listed(_: int, __: Packet) -> Iterable[Connection]:
            return known

        return asyncio.run(trace_switch(question, self._part, listed))

    async def _part(self, entry: Entry) -> Traced:
        real = await switch_trace._part(self._ovs.directory, entry)
        if real.groups and real.resume is not None:
            # Which endpoint a real switch chooses depends on its hashes.
            entry = replace(entry, endpoint=real.resume.destination)
        said = await self._offline.part(entry)
        self.parts += 1
        if comparable(said) != comparable(real):
            self.differences.append(f"{entry}\n said {comparable(said)}\n real {comparable(real)}")
        return real


def comparable(traced: Traced) -> object:
    fields = {
        name: number
        for name, text in traced.fields.items()
        if _COMPARED.fullmatch(name) and (number := _number(name, text))
    }
    steps = [(each.table, each.cookie, each.priority, each.depth > 0) for each in traced.steps]
    return steps, fields, traced.resume, traced.outputs, traced.meters, traced.groups


def question(place: Place, packet: Packet, **more: object) -> TraceSwitch:
    return TraceSwitch(packet, place.in_port, place.mac, names.ROUTER_MAC, place.tunnel, **more)  # type: ignore[arg-type]


def packet(
    protocol: int, source: IPv4Address, destination: IPv4Address, port: int, *, reply: bool = False
) -> Packet:
    if protocol == ICMP:
        return Packet(protocol, source, destination, 0 if reply else 8, 0, reply)
    if protocol == GRE:
        return Packet(protocol, source, destination, is_reply=reply)
    ports = (port, 40_000) if reply else (40_000, port)
    return Packet(protocol, source, destination, *ports, reply)


# --- Services ---


@pytest.fixture(scope="module", params=["node1", "node3"])
def switch(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Both]]:
    with running(tmp_path_factory.mktemp("ovs")) as ovs:
        become(ovs, VIEW, request.param)
        yield request.param, Both(ovs, offline(request.param))


def offline(node: str) -> OfflineSwitch:
    programs = [compile_scope(VIEW, scope) for scope in (CLUSTER_SCOPE, node)]
    groups: Mapping[int, Group] = {k: v for each in programs for k, v in each.groups.items()}
    return OfflineSwitch([FlowTables(each.flows()) for each in programs], groups)


@pytest.fixture
def both(switch: tuple[str, Both], monkeypatch: pytest.MonkeyPatch) -> Both:
    monkeypatch.setattr(names, "INTEGRATION_BRIDGE", "br0")
    switch[1].differences.clear()
    return switch[1]


def places(node: str) -> list[Place]:
    view = VIEW.nodes[node]
    pods = VIEW.attachments[node].values()
    peers = [each for each in VIEW.nodes.values() if each.name != node]
    found = [Place(each.ofport, each.address, each.mac) for each in pods]
    found += [
        Place(names.GATEWAY_OFPORT, source, names.GATEWAY_MAC)
        for source in (view.gateway, view.address, OUTSIDE, IPv4Address("198.51.100.9"))
    ]
    found += [
        Place(
            names.TUNNEL_OFPORT, each.address, names.ROUTER_MAC,
            (peer.address, view.address, TUNNEL_ID),
        )
        for peer in peers
        for each in VIEW.attachments[peer.name].values()
    ]  # fmt: skip
    # Nobody may send these.
    found.append(Place(names.FIRST_ATTACHMENT_OFPORT, OUTSIDE, "0a:58:00:00:00:01"))
    found.append(found[-2]._replace(source=OUTSIDE))
    return found


def destinations() -> list[tuple[IPv4Address, int]]:
    found = {
        (frontend.address or names.NODE_PORT_ADDRESS, frontend.port)
        for service in SERVICES
        for port in service.ports
        for frontend in port.frontends
    }
    found |= {
        (each.address, 8080)
        for attachments in VIEW.attachments.values()
        for each in attachments.values()
    }
    for node in VIEW.nodes.values():
        found |= {(node.address, 22), (node.address, 30443), (node.gateway, 22)}
    others = ("10.96.0.99", "10.244.1.99", "10.244.9.9", str(OUTSIDE), "169.254.1.17", "224.0.0.1")
    return sorted([*found, *((IPv4Address(each), 8443) for each in others)])  # type: ignore[arg-type]


@pytest.mark.parametrize("protocol", [TCP, UDP, SCTP, ICMP, GRE])
def test_every_kind_of_packet_and_its_reply_goes_as_in_a_real_switch(
    switch: tuple[str, Both], both: Both, protocol: int
) -> None:
    node = switch[0]
    for place in places(node):
        for destination, port in destinations():
            first = packet(protocol, place.source, destination, port)
            done = both.trace(question(place, first))
            last = done.packet
            answering = next(
                (
                    Place(each.ofport, each.address, each.mac)
                    for each in VIEW.attachments[node].values()
                    if each.ofport == done.out_port
                ),
                None,
            )
            if answering is not None:
                answer = packet(
                    protocol, last.destination, last.source, last.destination_port, reply=True
                )
                both.trace(question(answering, answer, assumed=done.assumed))
    assert both.parts > 0
    assert not both.differences, "\n".join(both.differences[:3])


def test_each_endpoint_can_be_chosen(switch: tuple[str, Both], both: Both) -> None:
    place = places(switch[0])[0]
    for service in SERVICES:
        for port in service.ports:
            for each in port.endpoints[:3]:
                at = next((f.address for f in port.frontends if f.address), None)
                if at is None:
                    continue
                asked = question(
                    place,
                    packet(port.protocol, place.source, at, port.frontends[0].port),  # type: ignore[arg-type]
                    endpoint=(each.address, each.port),
                )
                computed, real = (_answer(asked, part) for part in (both._offline.part, both._part))
                if port.affinity is not None or len(port.endpoints) > MAX_DP_HASH_ENDPOINTS:
                    # A real switch chooses one for each tuple of addresses and ports.
                    real = real if isinstance(real, SwitchTrace) else computed
                assert computed == real, (service.name, each)
    assert not both.differences, "\n".join(both.differences[:3])


def _answer(asked: TraceSwitch, part: PartOf) -> SwitchTrace | str:
    try:

        async def nothing(_: int, __: Packet) -> Iterable[Connection]:
            return ()

        found = asyncio.run(trace_switch(asked, part, nothing))
    except TraceError as error:
        return str(error)
    change = msgspec.structs.replace
    return change(
        found,
        parts=tuple(
            # How deep a step is in resubmits is counted differently in groups.
            change(part, steps=tuple(change(step, depth=min(step.depth, 1)) for step in part.steps))
            for part in found.parts
        ),
    )


# --- policies ---


@pytest.fixture(scope="module")
def ovs_of_policies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switches]:
    with switches_for(tmp_path_factory.mktemp("ovs"), NODES[:2]) as made:
        yield made


@pytest.mark.parametrize("cuts", [False, True])
def test_random_packets_go_as_in_a_real_switch_and_in_the_simulator(
    ovs_of_policies: Switches, monkeypatch: pytest.MonkeyPatch, cuts: bool
) -> None:
    """`cuts`: policies cut established connections, and denials are reported."""
    settings = replace(CLUSTER, cut_established=cuts, log_denials=cuts)
    monkeypatch.setattr("tests.policy.controlled.CLUSTER", settings)
    switches, controlled = ovs_of_policies, Controlled()
    sent = 0
    for seed in range(CLUSTERS):
        cluster = generate(seed)
        controlled.become(cluster)
        for node, contents in controlled.contents(switches.nodes).items():
            if node not in cluster.nodes:
                continue
            switches.hold(node, contents)
            monkeypatch.setattr(names, "INTEGRATION_BRIDGE", switches._bridges[node])
            computed = OfflineSwitch([FlowTables(contents.flows.values())], {})
            both = Both(switches.ovs, computed)
            tables = switches.tables(node)
            chance = Random(seed)  # noqa: S311  no secret
            for _ in range(PACKETS):
                place = _place(chance, cluster, node)
                made = _random_packet(chance, cluster, place)
                done = both.trace(question(place, made))
                both.trace(question(place, made), [_established(chance, made)])
                assert "\n".join(both.differences) == "", seed
                assert _simulated(tables, place, made) == done.out_port, (seed, place, made)
                sent += done.out_port is not None
    assert 0 < sent < CLUSTERS * 2 * PACKETS


def _place(chance: Random, cluster: Cluster, node: str) -> Place:
    own = [each for each in cluster.attachments if each.node == node]
    others = [each for each in cluster.attachments if each.node != node]
    kind = chance.choice(("pod", "pod", "tunnel", "host"))
    if kind == "pod" and own:
        address = IPv4Address(chance.choice(own).address)
        return Place(ofport_of(str(address)), address, names.mac_of(address))
    if kind == "tunnel" and others:
        peer = chance.choice(others)
        outer = node_addresses(cluster.nodes[peer.node])[0]
        tunnel = IPv4Address(outer), IPv4Address(node_addresses(cluster.nodes[node])[0]), TUNNEL_ID
        return Place(names.TUNNEL_OFPORT, IPv4Address(peer.address), names.ROUTER_MAC, tunnel)
    source = chance.choice((gateway(cluster.nodes[node]), str(OUTSIDE)))
    return Place(names.GATEWAY_OFPORT, IPv4Address(source), names.GATEWAY_MAC)


def _random_packet(chance: Random, cluster: Cluster, place: Place) -> Packet:
    to = [each.address for each in cluster.attachments] * 3
    to += [*map(gateway, cluster.nodes.values()), str(OUTSIDE), "10.1.2.3", "192.0.2.77"]
    protocol = chance.choice((TCP, TCP, UDP, SCTP, ICMP, GRE))
    port = chance.choice((80, 443, 53, 8080, 1, 65_535, chance.randrange(1, 65_536)))
    return packet(protocol, place.source, IPv4Address(chance.choice(to)), port)


def _established(chance: Random, made: Packet) -> Connection:
    """A connection that conntrack has, which policies of before allowed or cut."""
    ends = made.source, made.source_port, made.destination, made.destination_port
    mark = chance.choice((KNOWN, KNOWN | BLOCKED))
    return Connection(
        CT_ZONE, made.protocol, *ends, *ends[2:], *ends[:2],
        mark=mark, label=hex(chance.getrandbits(64)), is_answered=chance.random() < 0.7,
    )  # fmt: skip


def _simulated(tables: Tables, place: Place, made: Packet) -> int | None:
    """The port that the simulator sends a new connection's packet out of."""
    fields = {
        "in_port": place.in_port,
        "dl_type": 0x0800,
        "dl_src": int(place.mac.replace(":", ""), 16),
        "dl_dst": int(names.ROUTER_MAC.replace(":", ""), 16),
        "nw_proto": made.protocol,
        "nw_src": int(made.source),
        "nw_dst": int(made.destination),
        "tp_src": made.source_port,
        "tp_dst": made.destination_port,
        "ct_state": ct_state("+trk+new")[0],
    }
    if place.tunnel is not None:
        fields |= {"tun_src": int(place.tunnel[0]), "tun_dst": int(place.tunnel[1])}
        fields["tun_id"] = place.tunnel[2]
    sent = tables.run(1, {name: {value: 1} for name, value in fields.items()}).sent
    (port,) = [port for port, packets in sent.items() if packets] or [None]
    return place.in_port if port == IN_PORT else port
