"""Facts of a host in, findings out: planted faults as data."""

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv4Network
from typing import Any

import msgspec
import pytest

from node_agent.checks.facts import (
    Certificate,
    Chain,
    CniFile,
    ControllerSession,
    Facts,
    HostAddress,
    HostRoute,
    Link,
    Listener,
    OpenVSwitch,
    PathMtu,
    Reached,
    Wanted,
)
from node_agent.checks.findings import findings
from wire.findings import MAX_FINDINGS, Finding, Peer, Severity
from wire.sentences import MAX_SENTENCE

NOW = datetime(2026, 11, 29, tzinfo=UTC)
DAY = timedelta(days=1)
PEER = Peer("node2", IPv4Address("192.0.2.2"), IPv4Address("10.244.2.1"))
BEFORE = Wanted(
    node="node1",
    installed=False,
    address=IPv4Address("192.0.2.1"),
    pod_range=IPv4Network("10.244.0.0/16"),
    service_range=IPv4Network("10.96.0.0/12"),
    controllers=("192.0.2.1",),
    peers=(PEER,),
)
AFTER = msgspec.structs.replace(BEFORE, installed=True)
# A Debian 12 with a kubelet, podman, Docker, a DNS cache and a firewall that knows Sluice.
HEALTHY = Facts(
    kernel="6.1.0-18-amd64",
    modules={"openvswitch": True, "geneve": True},
    python=(3, 11, 2),
    nft="1.0.6",
    chains=(
        Chain("ip", "mangle", "KUBE-IPTABLES-HINT"),
        Chain("ip", "mangle", "KUBE-KUBELET-CANARY"),
        Chain("ip", "nat", "KUBE-POSTROUTING"),
        Chain("ip", "filter", "KUBE-FIREWALL"),
        Chain("ip", "filter", "DOCKER"),
        Chain("ip", "filter", "FORWARD", "forward", "drop", names_gateway=True),
        Chain("inet", "fw", "in", "input", "drop"),
    ),
    tables=(("ip", "mangle"), ("ip", "nat"), ("ip", "filter"), ("inet", "fw")),
    open_vswitch=OpenVSwitch(version="3.1.0"),
    links=(Link("lo", mtu=65536), Link("eth0"), Link("docker0", "bridge"), Link("nodelocaldns")),
    addresses=(
        HostAddress(IPv4Address("127.0.0.1"), "lo"),
        HostAddress(IPv4Address("192.0.2.1"), "eth0"),
        HostAddress(IPv4Address("172.17.0.1"), "docker0"),
        HostAddress(IPv4Address("10.96.0.10"), "nodelocaldns"),
    ),
    routes=(
        HostRoute(IPv4Network("0.0.0.0/0"), "eth0"),
        HostRoute(IPv4Network("10.0.0.0/8"), "eth0"),
        HostRoute(IPv4Network("192.0.2.0/24"), "eth0"),
    ),
    cni_files=(CniFile("/etc/cni/net.d/87-podman-bridge.conflist", ("bridge", "firewall")),),
    certificates=(
        Certificate("/etc/sluice/tls.crt", NOW - 10 * DAY, NOW + 355 * DAY),
        Certificate("/etc/sluice/ca.crt", NOW - 365 * DAY, NOW + 3285 * DAY, is_ca=True),
    ),
    listeners=frozenset({Listener("TCP", 22), Listener("TCP", 10250)}),
    reached=(
        Reached("192.0.2.1", 6653, "connection refused", refused=True),
        Reached("192.0.2.1", 6654, "connection refused", refused=True),
    ),
    paths=(PathMtu(PEER, 1500, 1500),),
    clock_offset=0.8,
    now=NOW,
)
RUNNING = msgspec.structs.replace(
    HEALTHY,
    cni_files=(CniFile("/etc/cni/net.d/10-sluice.conflist", ("sluice",)), *HEALTHY.cni_files),
    links=(*HEALTHY.links, Link("sluice-gw"), Link("genev_sys_6081", "geneve", 65000, 6081)),
    addresses=(*HEALTHY.addresses, HostAddress(IPv4Address("10.244.1.1"), "sluice-gw")),
    routes=(*HEALTHY.routes, HostRoute(IPv4Network("10.244.0.0/16"), "sluice-gw"),
            HostRoute(IPv4Network("10.96.0.0/12"), "sluice-gw")),
    listeners=HEALTHY.listeners | {Listener("TCP", 10256), Listener("UDP", 6081)},
    reached=(Reached("192.0.2.1", 6653), Reached("192.0.2.1", 6654)),
    paths=(PathMtu(PEER, 1500, 1500), PathMtu(PEER, 1450, 1450, through_tunnel=True)),
)  # fmt: skip


def found(facts: Facts, wanted: Wanted) -> tuple[Finding, ...]:
    return findings(facts, wanted).findings


def test_healthy_node_has_no_findings() -> None:
    assert found(HEALTHY, BEFORE) == ()
    assert found(RUNNING, AFTER) == ()


def but(**replaced: Any) -> Facts:
    """The healthy node with other facts."""
    return msgspec.structs.replace(HEALTHY, **replaced)


def plus(field: str, value: Any) -> Facts:
    """The healthy node with one more value in a field."""
    old = getattr(HEALTHY, field)
    return but(**{field: (*old, value) if isinstance(old, tuple) else old | {value}})


FAULTS: dict[str, tuple[Facts, str, str]] = {
    "kernel": (but(kernel="4.19.0-5-amd64"), "kernel 4.19.0-5-amd64", "older than 5.6"),
    "module of Open vSwitch": (
        but(modules={"openvswitch": False, "geneve": True}),
        "kernel module openvswitch",
        "does not have it",
    ),
    "module of the tunnel": (
        but(modules={"openvswitch": True, "geneve": False}),
        "kernel module geneve",
        "does not have it",
    ),
    "ovsdb-server": (
        but(open_vswitch=OpenVSwitch("No such file or directory", version="3.1.0")),
        "ovsdb-server",
        "does not answer: No such file",
    ),
    "ovs-vswitchd": (
        but(open_vswitch=OpenVSwitch(switch="Connection refused")),
        "ovs-vswitchd",
        "does not answer: Connection refused",
    ),
    "version of Open vSwitch": (
        but(open_vswitch=OpenVSwitch(version="2.17.9")),
        "Open vSwitch 2.17.9",
        "older than 3.1",
    ),
    "owner of the bridge": (
        but(open_vswitch=OpenVSwitch(version="3.1.0", other_owner="OVN")),
        "bridge br-int",
        "belongs to OVN",
    ),
    "nft is absent": (but(nft=""), "nft", "is not there"),
    "nft is old": (but(nft="0.9.0"), "nft 0.9.0", "older than 0.9.4"),
    "nft is not tested": (but(nft="0.9.8"), "nft 0.9.8", "not tested"),
    "nf_tables": (
        but(nft_problem="Operation not supported"),
        "nf_tables",
        "Operation not supported",
    ),
    "python": (but(python=(3, 7, 3)), "/usr/bin/python3", "3.7.3"),
    "no python": (but(python=()), "/usr/bin/python3", "not there"),
    "address of the node": (
        but(addresses=HEALTHY.addresses[:1] + HEALTHY.addresses[2:]),
        "address 192.0.2.1",
        "no interface has it",
    ),
    "route in the pod range": (
        plus("routes", HostRoute(IPv4Network("10.244.7.0/24"), "eth0")),
        "route 10.244.7.0/24 on eth0",
        "cluster.podRange 10.244.0.0/16",
    ),
    "route in the Service range": (
        plus("routes", HostRoute(IPv4Network("10.100.0.0/16"), "wg0")),
        "route 10.100.0.0/16 on wg0",
        "cluster.serviceRange 10.96.0.0/12",
    ),
    "address in the pod range": (
        plus("addresses", HostAddress(IPv4Address("10.244.0.1"), "docker0")),
        "address 10.244.0.1 on docker0",
        "cluster.podRange",
    ),
    "kube-proxy, iptables": (
        plus("chains", Chain("ip", "nat", "KUBE-SERVICES")),
        "chain KUBE-SERVICES of table ip nat",
        "nft shows",
    ),
    "kube-proxy, legacy iptables": (
        plus("chains", Chain("ip", "nat", "KUBE-SVC-X", program="iptables-legacy")),
        "chain KUBE-SVC-X of table ip nat",
        "iptables-legacy shows",
    ),
    "kube-proxy, nftables": (
        plus("tables", ("ip", "kube-proxy")),
        "table ip kube-proxy",
        "Services",
    ),
    "kube-proxy, ipvs": (
        plus("links", Link("kube-ipvs0", "dummy")),
        "interface kube-ipvs0",
        "mode ipvs",
    ),
    "kube-proxy runs": (
        plus("listeners", Listener("TCP", 10256)),
        "port 10256/TCP",
        "agent.healthzPort",
    ),
    "port of the tunnel": (plus("listeners", Listener("UDP", 6081)), "port 6081/UDP", "the tunnel"),
    "port of the controller": (
        plus("listeners", Listener("TCP", 6653)),
        "port 6653/TCP",
        "controller.openflow",
    ),
    "other tunnel": (
        plus("links", Link("flan0", "geneve", 1450, 6081)),
        "interface flan0",
        "tunnel's port 6081/UDP",
    ),
    "Flannel's interface": (
        plus("links", Link("flannel.1", "vxlan", 1450, 8472)),
        "interface flannel.1",
        "Flannel",
    ),
    "Calico's interface": (plus("links", Link("cali12ab")), "interface cali12ab", "Calico"),
    "Cilium's interface": (plus("links", Link("cilium_host")), "interface cilium_host", "Cilium"),
    "bridge of a CNI plugin": (plus("links", Link("cni0", "bridge")), "interface cni0", "bridge"),
    "Antrea's interface": (plus("links", Link("antrea-gw0")), "interface antrea-gw0", "Antrea"),
    "OVN-Kubernetes": (
        plus("links", Link("ovn-k8s-mp0")),
        "interface ovn-k8s-mp0",
        "OVN-Kubernetes",
    ),
    "Weave's chain": (
        plus("chains", Chain("ip", "filter", "WEAVE-NPC")),
        "chain WEAVE-NPC of table ip filter",
        "Weave Net",
    ),
    "CNI file that is used before ours": (
        plus("cni_files", CniFile("/etc/cni/net.d/05-cilium.conflist", ("cilium-cni",))),
        "/etc/cni/net.d/05-cilium.conflist",
        "and not Sluice",
    ),
    "CNI file of another network": (
        plus("cni_files", CniFile("/etc/cni/net.d/10-weave.conflist", ("weave-net",))),
        "/etc/cni/net.d/10-weave.conflist",
        "network of Weave Net",
    ),
    "firewall": (
        plus("chains", Chain("inet", "fw", "fwd", "forward", "drop")),
        "chain fwd of table inet fw",
        "no NodePort",
    ),
    "MTU of the uplink": (but(links=(Link("eth0", mtu=1280),)), "interface eth0", "MTU is 1280"),
    "MTU of the path": (
        plus("paths", PathMtu(PEER, 1500, 1400)),
        "Node node2 (192.0.2.2)",
        "`cluster.mtu: 1350`",
    ),
    "port that is blocked": (
        plus("reached", Reached("192.0.2.9", 6654, "no answer within 3 s")),
        "controller 192.0.2.9, port 6654/TCP",
        "no answer within 3 s",
    ),
    "clock ahead": (but(clock_offset=61.0), "clock", "61 s ahead of"),
    "clock behind": (but(clock_offset=-61.0), "clock", "61 s behind"),
    "certificate near its end": (
        plus("certificates", Certificate("t.crt", NOW - 364 * DAY, NOW + DAY)),
        "t.crt",
        "expires on",
    ),
    "certificate that expired": (
        plus("certificates", Certificate("t.crt", NOW - 365 * DAY, NOW - DAY)),
        "t.crt",
        "it expired",
    ),
    "certificate of tomorrow": (
        plus("certificates", Certificate("t.crt", NOW + DAY, NOW + 365 * DAY)),
        "t.crt",
        "not valid",
    ),
    "CA near its end": (
        plus("certificates", Certificate("ca.crt", NOW - 3650 * DAY, NOW + 30 * DAY, is_ca=True)),
        "ca.crt",
        "expires on 2026-12-29",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_found_and_nothing_else(name: str) -> None:
    facts, subject, words = FAULTS[name]
    (one,) = found(facts, BEFORE)
    assert one.subject == subject
    assert words in f"{one.text} {one.cure}"
    assert one.cure


def test_blocked_tunnel_is_found_when_sluice_runs() -> None:
    facts = msgspec.structs.replace(
        RUNNING,
        paths=(PathMtu(PEER, 1500, 1500), PathMtu(PEER, 1450, None, through_tunnel=True)),
    )
    (one,) = found(facts, AFTER)
    assert one.subject == "Node node2 (192.0.2.2)"
    assert "UDP port 6081" in one.cure


def test_small_path_inside_the_tunnel_is_found_when_sluice_runs() -> None:
    facts = msgspec.structs.replace(
        RUNNING, paths=(PathMtu(PEER, 1450, 1404, through_tunnel=True),)
    )
    (one,) = found(facts, AFTER)
    assert "cluster.mtu: 1404" in one.cure


def test_small_path_is_one_finding_though_the_tunnel_shows_it_too() -> None:
    facts = msgspec.structs.replace(
        RUNNING,
        paths=(PathMtu(PEER, 1500, 1400), PathMtu(PEER, 1450, 1348, through_tunnel=True)),
    )
    (one,) = found(facts, AFTER)
    assert "cluster.mtu: 1350" in one.cure


def test_controller_that_does_not_run_is_found_when_sluice_runs() -> None:
    facts = msgspec.structs.replace(RUNNING, reached=HEALTHY.reached)
    assert [each.cure for each in found(facts, AFTER)] == ["start the controller"] * 2


def test_datapath_in_userspace_needs_no_modules() -> None:
    wanted = msgspec.structs.replace(BEFORE, datapath="netdev")
    assert found(but(modules={"openvswitch": False, "geneve": False}), wanted) == ()


def test_what_could_not_be_read_is_no_finding_but_said() -> None:
    facts = msgspec.structs.replace(
        HEALTHY,
        modules={},
        python=None,
        nft=None,
        links=(),
        addresses=(),
        routes=(),
        paths=(PathMtu(PEER, 1500, None),),
        clock_offset=None,
        unchecked=("interfaces: Operation not permitted",),
    )
    made = findings(facts, BEFORE)
    assert made.findings == ()
    assert made.unchecked == ("interfaces: Operation not permitted",)


def test_errors_come_before_warnings() -> None:
    facts = msgspec.structs.replace(
        HEALTHY, links=(*HEALTHY.links, Link("cni0"), Link("kube-ipvs0"))
    )
    assert [each.severity for each in found(facts, BEFORE)] == [Severity.ERROR, Severity.WARNING]


def test_ten_thousand_chains_and_routes_are_few_findings() -> None:
    facts = msgspec.structs.replace(
        HEALTHY,
        chains=tuple(Chain("ip", "nat", f"KUBE-SVC-{n}") for n in range(10_000)),
        routes=tuple(
            HostRoute(IPv4Network((0x0AF40000 + n, 32)), "x" * 5000) for n in range(10_000)
        ),
    )
    made = findings(facts, BEFORE)
    assert len(made.findings) == MAX_FINDINGS
    assert made.left_out == 10_001 - MAX_FINDINGS
    assert all(len(each.subject) <= MAX_SENTENCE for each in made.findings)
    (chains,) = (each for each in found(plus("chains", Chain("ip", "nat", "KUBE-SVC-1")), BEFORE))
    assert "more" not in chains.text


CONNECTED = ControllerSession("ssl:192.0.2.1:6653", True, "ACTIVE")
SILENT = ControllerSession("ssl:192.0.2.1:6653", False, "Connection timed out")
OTHER = ControllerSession("ssl:192.0.2.9:6653", True, "ACTIVE")
AWAY = ControllerSession("ssl:192.0.2.9:6653", False, "Connection refused")


@pytest.mark.parametrize(
    ("sessions", "severity"),
    [
        ((CONNECTED, OTHER), None),
        ((SILENT, OTHER), Severity.WARNING),
        ((SILENT, AWAY), Severity.ERROR),
        # Of this one the attempt to connect to it says more.
        ((CONNECTED, AWAY), None),
    ],
)
def test_controller_without_a_session_of_the_switch(
    sessions: tuple[ControllerSession, ...], severity: Severity | None
) -> None:
    facts = msgspec.structs.replace(
        RUNNING, open_vswitch=OpenVSwitch(version="3.1.0", sessions=sessions)
    )
    assert [each.severity for each in found(facts, AFTER)] == ([severity] if severity else [])
    if severity:
        (each,) = found(facts, AFTER)
        assert each.subject == "controller 192.0.2.1, port 6653/TCP"
        assert "the switch has no session with it: Connection timed out" in each.text
        assert ("another controller serves this node" in each.text) == (OTHER in sessions)
