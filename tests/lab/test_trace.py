"""`sluice trace` compared with real packets: each ends where the trace says."""

import itertools
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlencode

import msgspec
import pytest
from click.testing import CliRunner

from cli.main import main
from cli.offline import read_source
from controller.offline.trace import trace as offline_trace
from controller.reports.trace import TraceReport
from lab import Lab
from lab.processes import running
from tests.lab.pings import address
from tests.lab.served import (
    A1,
    A2,
    B1,
    NODE1,
    NODE2,
    NODES,
    answered,
    answering,
    ask,
    endpoints,
    serve,
    service,
    three_servers,
    wait_until_answered,
)
from tests.policy.manifests import network_policy

H1 = "default/h1"
HOST_PORT = 8081
OUTSIDE = "203.0.113.10"
RANDOM_CASES = 100
OFFLINE_CASES = 50
AT_ONCE = 8
"""Packets that are sent at the same time."""
ATTEMPTS = 3
CLIENTS = (A1, A2, B1, "node1", "node2", "outside")


class Case(NamedTuple):
    """A packet."""

    client: str
    to: str
    """As `sluice trace` takes it."""
    address: str
    """Where the client sends it."""
    port: int
    protocol: str
    source_port: int
    node: str = ""
    """Where it arrives from outside."""


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The lab of conftest.py with servers in pods, on a node and outside, Services and policies."""
    with ExitStack() as stack:
        stack.enter_context(three_servers(lab))
        mappings = [
            {"hostPort": HOST_PORT, "containerPort": 8080, "protocol": protocol}
            for protocol in ("tcp", "udp")
        ]
        lab.pod_add("default", "h1", "node1", port_mappings=mappings)
        for place, port in (("node1", 9000), ("outside", 9000), (H1, 8080)):
            stack.enter_context(answering(lab, place, port))
        both = [{"port": 80}, {"name": "UDP", "protocol": "UDP", "port": 80}]
        node_ports = [{**each, "nodePort": 30080} for each in both]
        local = [{**each, "nodePort": 30081} for each in both]
        serve(lab, "web", "10.96.0.10", A1, A2, B1, ports=node_ports, type="NodePort")
        serve(lab, "one", "10.96.0.11", B1, ports=both)
        serve(lab, "sticky", "10.96.0.12", A1, B1, ports=both, sessionAffinity="ClientIP")
        serve(lab, "empty", "10.96.0.13", ports=both)
        serve(
            lab, "local", "10.96.0.14", B1,
            ports=local, type="NodePort", externalTrafficPolicy="Local",
        )  # fmt: skip
        serve(
            lab, "narrow", "10.96.0.15", A2, ports=both, type="LoadBalancer",
            loadBalancerSourceRanges=[f"{NODE2}/32"],
            status={"loadBalancer": {"ingress": [{"ip": "192.0.2.15"}]}},
        )  # fmt: skip
        serve(lab, "wide", "10.96.0.16", A2, B1, ports=both, externalIPs=["192.0.2.16"])
        at_node = [{"name": p, "port": 9000, "protocol": p} for p in ("TCP", "UDP")]
        lab.apply(endpoints("hosts", [(NODE1, {"nodeName": "node1"})], at_node))
        named = [{"name": "TCP", **each} for each in both]
        lab.apply(service("hosts", "10.96.0.17", named))
        lab.apply(endpoints("onhost", [(NODE1, {"nodeName": "node1"})], at_node))
        onhost = [{**each, "nodePort": 30082} for each in named]
        lab.apply(
            service("onhost", "10.96.0.18", onhost, type="NodePort", externalTrafficPolicy="Local")
        )
        for at in ("192.0.2.15", "192.0.2.16"):
            lab.exec("fabric", ["ip", "route", "replace", f"{at}/32", "via", NODE1])
        for at, node in (("10.244.1.0/24", NODE1), ("10.244.2.0/24", NODE2)):
            lab.exec("fabric", ["ip", "route", "replace", at, "via", node])
        wait_until_answered(lab, (A1, "node1", "node2"), "10.96.0.17", 80)
        wait_until_answered(lab, ("outside",), "192.0.2.16", 80)
        wait_until_answered(lab, ("outside",), NODE2, 30081)
        wait_until_answered(lab, ("outside",), NODE1, 30082)
        yield lab


def _destinations(lab: Lab) -> list[tuple[str, str, int, str]]:
    """What to ask `sluice trace`, the address and port, and where it arrives from outside."""
    found = [(pod, address(lab, pod), 8080, "") for pod in (A1, A2, B1)]
    found += [
        (f"svc/default/{name}", f"10.96.0.{number}", 80, "")
        for number, name in enumerate(
            ("web", "one", "sticky", "empty", "local", "narrow", "wide", "hosts"), 10
        )
    ]
    addresses = [
        ("10.96.0.77", 80, ""),
        ("10.244.1.77", 8080, ""),
        ("10.244.2.77", 8080, ""),
        (NODE1, 9000, ""),
        (NODE2, 9000, ""),
        (NODE1, 30080, ""),
        (NODE2, 30080, ""),
        (NODE1, 30081, ""),
        (NODE2, 30081, ""),
        (NODE1, 30082, ""),
        (NODE2, 30082, ""),
        (NODE1, HOST_PORT, ""),
        (NODE2, HOST_PORT, ""),
        ("192.0.2.15", 80, "node1"),
        ("192.0.2.16", 80, "node1"),
        (OUTSIDE, 9000, ""),
    ]
    return found + [(at, at, port, node) for at, port, node in addresses]


def _cases(lab: Lab) -> list[Case]:
    """Every client with every destination, over TCP and UDP, each from a port of its own."""
    numbers = itertools.count(20_000)
    return [
        Case(client, to, at, port, protocol, next(numbers), node)
        for client in CLIENTS
        for to, at, port, node in _destinations(lab)
        for protocol in ("tcp", "udp", "icmp")
        if _is_possible(client, at) and (protocol != "icmp" or not _is_served(to))
    ]


def _is_served(to: str) -> bool:
    """Whether only Services make anything of it: nobody answers a ping there."""
    return to.startswith(("svc/", "192.0.2."))


def _is_possible(client: str, at: str) -> bool:
    """Outside knows no way to addresses of the Service range; a router is nobody's node."""
    if client == "outside":
        return not at.startswith("10.96.") and at != OUTSIDE
    return True


def test_every_kind_of_packet_ends_where_the_trace_says(lab: Lab) -> None:
    assert "\n".join(_differences(lab, _cases(lab))) == ""


def test_random_packets_end_where_the_trace_says_while_policies_change(lab: Lab) -> None:
    chance = _chance()
    cases = chance.sample(_cases(lab), RANDOM_CASES)
    share = RANDOM_CASES // 4
    for number in range(4):
        _change_policies(lab, chance)
        some = cases[number * share : (number + 1) * share]
        some = [each._replace(source_port=each.source_port + 20_000) for each in some]
        assert "\n".join(_differences(lab, some)) == ""


def test_trace_from_a_bundle_goes_the_same_way(lab: Lab, tmp_path: Path) -> None:
    """With the policies of the test before. A bundle has no learned flows and no hostPorts."""
    path = tmp_path / "b.tar.zst"
    words = ["bundle", "--lab", lab.name, "--no-check", "--node", "node1", "-o", str(path)]
    assert CliRunner().invoke(main, words).exit_code == 0
    source = read_source(path)
    chance = _chance()
    cases = [
        each for each in _cases(lab) if each.to != "svc/default/sticky" and each.port != HOST_PORT
    ]
    found = []
    for sampled in chance.sample(cases, OFFLINE_CASES):
        # Of a port that no packet was sent from: a bundle knows of no connections.
        case = sampled._replace(source_port=sampled.source_port + 40_000)
        for endpoint in ("", f"{address(lab, A2)}:8080", f"{address(lab, B1)}:8080"):
            live = trace(lab, case, endpoint)
            if live is None or (
                not endpoint and any(CHOICE.search(h.text) for h in live.there.hops)
            ):
                continue  # What a Service chooses has to be the same.
            offline = offline_trace(source.inventory, source.programs, _query(case, endpoint))
            back = live.back is not None
            ways = _way(live, back=back), _way(offline, back=back)
            if ways[0] != ways[1]:
                found.append(f"{case}: {ways[0]}, offline {ways[1]}")
    assert "\n".join(found) == ""


def _way(report: TraceReport, *, back: bool) -> tuple[str, list[tuple[str, str, str]]]:
    """The end, and the flows that decide. Whether a process listens only a node itself knows."""
    end = _end(report)
    if "no process listens" in report.there.end:
        end = report.there.end.split(":")[0].removeprefix("refused by node ")
    ways = [report.there, *([report.back] if report.back and back else [])]
    hops = [hop for way in ways for hop in way.hops if hop.place == "switch"]
    return end, [(hop.node, hop.table, hop.cookie) for hop in hops]


def _chance() -> random.Random:
    seed = int(os.environ.get("SEED") or random.randrange(1 << 32))  # noqa: S311  no secret
    print("SEED", seed)
    return random.Random(seed)  # noqa: S311


def _change_policies(lab: Lab, chance: random.Random) -> None:
    """Policies of one, some, or all pods, which let some connections pass."""
    for number in range(3):
        peers = chance.sample([address(lab, A1), address(lab, B1), NODE1, NODE2, OUTSIDE], 2)
        rule: dict[str, Any] = {}
        if chance.random() < 0.8:
            rule = {"ports": [{"port": chance.choice((80, 8080, 9000))}]}
        blocks = [{"ipBlock": {"cidr": f"{peer}/32"}} for peer in peers]
        kinds = chance.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"]))
        lab.apply(
            network_policy(
                f"default/random-{number}",
                podSelector={} if chance.random() < 0.3 else {"matchLabels": {"app": f"{number}"}},
                policyTypes=kinds,
                ingress=[{**rule, "from": blocks}],
                egress=[{**rule, "to": blocks}],
            )
        )


def _differences(lab: Lab, cases: Sequence[Case]) -> list[str]:
    """Where trace and packet disagree, with what each says."""
    with ThreadPoolExecutor(AT_ONCE) as threads:
        found = threads.map(lambda case: _difference(lab, case), cases)
        return [each for each in found if each]


def _difference(lab: Lab, case: Case) -> str:
    """Empty if trace and packet agree; a change of policies may come between them."""
    for attempt in range(ATTEMPTS):
        tried = case._replace(source_port=case.source_port + 1_000 * attempt)
        if not (difference := _compared(lab, tried)):
            break
    return difference


def _compared(lab: Lab, case: Case) -> str:
    said = trace(lab, case)
    assert said is not None, case
    heard = _heard(lab, case)
    real = heard.split()[0] if answered(heard) else "refused" if "refused" in heard else "nothing"
    ways = [said]
    if any(CHOICE.search(hop.text) for hop in said.there.hops):
        # A Service chooses by a hash that the trace does not know: it is asked for each endpoint.
        ways = [way for at in _endpoints(lab, real) if (way := trace(lab, case, at)) is not None]
    if case.protocol == "icmp":
        is_alike = said.delivered == (heard == "answered")
    else:
        is_alike = real in map(_end, ways)
    back = said.back.end if said.back else ""
    text = f"{case}: trace {_end(said)}: {said.there.end} {back}; packet {heard}"
    return "" if is_alike else text


def _heard(lab: Lab, case: Case) -> str:
    if case.protocol == "icmp":
        ping = ["ping", "-n", "-q", "-c", "1", "-W", "2", case.address]
        code = lab.exec(case.client, ping, check=False).returncode
        return "nothing" if code else "answered"
    (heard,) = ask(
        lab, case.client, case.address, case.port, case.protocol,
        source=case.source_port, timeout=2,
    )  # fmt: skip
    return heard


CHOICE = re.compile(r"one of \d+ endpoints")


def _endpoints(lab: Lab, server: str) -> list[str]:
    """The endpoint that answered; if none did, all that there are."""
    pods = [server] if server in NODES else [*NODES]
    return [f"{address(lab, pod)}:8080" for pod in pods]


def _end(report: TraceReport) -> str:
    """The server that answers; `refused`, or `nothing`."""
    if report.delivered:
        text = report.there.end
        if "the network outside" in text:
            return "outside"
        found = re.match(r"delivered to (?:pod|node) (\S+)", text)
        assert found is not None, text
        return found[1]
    return "refused" if report.there.end.startswith("refused") else "nothing"


def trace(lab: Lab, case: Case, endpoint: str = "") -> TraceReport | None:
    """What the controller answers; None: it refuses the question."""
    answer = lab.ask(f"/v1/trace?{urlencode(_query(case, endpoint))}")
    return None if answer is None else msgspec.convert(answer, TraceReport)


def _query(case: Case, endpoint: str) -> dict[str, str]:
    query = {
        "from": OUTSIDE if case.client == "outside" else case.client,
        "to": case.to,
        "port": "" if case.protocol == "icmp" else str(case.port),
        "protocol": case.protocol,
        "sourcePort": str(case.source_port),
        "reply": "",
    }
    if case.node and case.client == "outside":
        query["node"] = case.node
    if endpoint:
        query["endpoint"] = endpoint
    return query


def test_capture_has_the_packets_of_a_pod(lab: Lab, tmp_path: Path) -> None:
    file = tmp_path / "pod.pcap"
    words = ["--filter", "udp port 9999", "--packets", "3", "--seconds", "20", "-o", str(file)]
    with running(lab.command(A1, [sys.executable, "-c", TALKER, address(lab, A2)])) as talker:
        assert talker.line() == "ready"
        done = CliRunner().invoke(main, ["capture", A1, "--lab", lab.name, *words])
    assert (done.exit_code, done.output) == (0, "3 packets\n")
    listed = subprocess.run(
        ["tcpdump", "-n", "-r", file], capture_output=True, text=True, check=True, timeout=20
    )
    pattern = rf"IP {address(lab, A1)}\.\d+ > {address(lab, A2)}\.9999: UDP, length 500"
    assert len(re.findall(pattern, listed.stdout)) == 3
    # Of each packet, the beginning.
    assert file.stat().st_size <= 24 + 3 * (16 + 256)


TALKER = """
import socket, sys, time
print("ready", flush=True)
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
    for _ in range(400):
        client.sendto(bytes(500), (sys.argv[1], 9999))
        time.sleep(0.05)
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([A1, "--filter", "no such language"], "tcpdump: "),
        ([A1, "--filter", "-w/tmp/x"], "tcpdump: "),
        (["default/nobody"], "there is no Pod default/nobody"),
        (["nobody"], "pod: 'nobody' is not of the form NAMESPACE/NAME"),
        ([A1, "--filter", "a" * 201], "filter: not a text of at most 200 characters"),
    ],
)
def test_capture_that_is_impossible_says_why(lab: Lab, words: list[str], said: str) -> None:
    done = CliRunner().invoke(
        main, ["capture", "--lab", lab.name, "-o", os.devnull, "--seconds", "1", *words]
    )
    assert done.exit_code == 1
    assert said in done.output


def test_capture_of_a_quiet_pod_ends_in_time(lab: Lab) -> None:
    words = ["--filter", "tcp port 1", "--seconds", "1", "-o", os.devnull]
    done = CliRunner().invoke(main, ["capture", A1, "--lab", lab.name, *words])
    assert (done.exit_code, done.output) == (0, "0 packets\n")
