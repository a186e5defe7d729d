"""pods_vs_ovn: a hundred attachments at once over three nodes, against OVN.

For both everything else is there: the pods' objects (OVN's logical ports), their veths, and one
pod on each node. The clock starts when each node's `ovs-vsctl` is run, which adds all of that
node's ports in one transaction, and stops with the last flow that any of the three switches gets
for them.
"""

import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address

from bench import ovn
from bench.figures import Figure, steady_rounds, versus
from bench.nodes import bare_lab, ofctl, unique
from bench.observer import observing
from flows import names
from flows.pipeline import LAYOUT
from lab import Lab, LabError
from lab.layout import NodeLayout
from lab.network import configure
from lab.sources import DirectorySource

NODES = 3
GLANCE = 0.5
"""Seconds between looks at how far a switch is: looking costs it time too."""
PATIENCE = 60.0


@dataclass(frozen=True)
class BoundPort:
    """The end of a veth that becomes a port, and what else `ovs-vsctl` is told of it."""

    node: NodeLayout
    name: str
    mac: str
    column: str


@dataclass(frozen=True)
class PodSide:
    """Sluice or OVN, up and with all it needs but the ports.

    A switch gets a flow in each of `own_tables` for each port of its own, and one in each of
    `peer_tables` for each port elsewhere.
    """

    lab: Lab
    ports: Sequence[BoundPort]
    own_tables: Sequence[int]
    peer_tables: Sequence[int]


def measure(*, rounds: int = 5, pods: int = 100) -> list[Figure]:
    """Alternate between the two."""
    ours: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    with (
        Lab(unique("pods")).running(nodes=NODES) as lab,
        bare_lab("ovn", NODES) as rival,
    ):
        sides = _sluice(lab, pods + NODES), _ovn(rival, pods + NODES)
        for side in sides:
            _make_links(side)
            _bind(side, side.ports[:NODES])
        for _ in steady_rounds(ratios, rounds):
            for side, seconds in zip(sides, (ours, theirs), strict=True):
                seconds.append(_bind(side, side.ports[NODES:]))
                _unbind(side, side.ports[NODES:])
            ratios.append(ours[-1] / theirs[-1])
    return versus("pods_vs_ovn", "s", ours, ("ovn", theirs), at_most=0.5)


def _sluice(lab: Lab, pods: int) -> PodSide:
    source = DirectorySource(lab.layout.cluster)
    ports = []
    for number in range(pods):
        node, address = _place(lab, number)
        uid = source.add_pod("default", f"p{number}", node.name, {})
        name = names.port_name("default", f"p{number}", uid, "eth0", uid)
        ofport = names.FIRST_ATTACHMENT_OFPORT + number
        ports.append(BoundPort(node, name, names.mac_of(address), f"ofport_request={ofport}"))
    # They come in one bundle with all others of the pod.
    return PodSide(lab, ports, (LAYOUT.tables["Classifier"].number,), ())


def _ovn(lab: Lab, pods: int) -> PodSide:
    ovn.start(lab, NODES)
    logical = {}
    ports = []
    for number in range(pods):
        node, address = _place(lab, number)
        name = f"p{number}"
        logical[name] = names.mac_of(address), address
        ports.append(BoundPort(node, name, names.mac_of(address), f"external_ids:iface-id={name}"))
    ovn.add_ports(lab, logical)
    return PodSide(lab, ports, (ovn.CLASSIFYING, ovn.LOCAL_OUTPUT), (ovn.REMOTE_OUTPUT,))


def _place(lab: Lab, number: int) -> tuple[NodeLayout, IPv4Address]:
    """A pod's node, in turns, and its address there."""
    node = lab.layout.node(1 + number % NODES)
    return node, node.pod_cidr[100 + number // NODES]


def _make_links(side: PodSide) -> None:
    for node in side.lab.layout.nodes(NODES):
        lines: list[str] = []
        for number, port in enumerate(side.ports):
            if port.node == node:
                peer = f"peer{number}"
                lines += [
                    f"link add {port.name} address {port.mac} type veth peer name {peer}",
                    f"link set {port.name} up",
                    f"link set {peer} up",
                ]
        configure(node.netns, lines)


def _bind(side: PodSide, ports: Sequence[BoundPort]) -> float:
    """Seconds until every switch holds the flows of these ports."""
    nodes = side.lab.layout.nodes(NODES)
    wanted = _counts(side)
    for node, table in wanted:
        own = table in side.own_tables
        wanted[node, table] += sum((port.node == node) == own for port in ports)
    tables = (*side.own_tables, *side.peer_tables)
    with observing({node.mgmt: tables for node in nodes}, nodes[0].netns) as seen:
        began = time.monotonic()
        _configure(
            side,
            ports,
            lambda port: [
                *("--", "add-port", names.INTEGRATION_BRIDGE, port.name),
                *("--", "set", "Interface", port.name, port.column),
            ],
        )
        _wait(side, wanted)
    return max(flow.at for flow in seen.flows) - began


def _unbind(side: PodSide, ports: Sequence[BoundPort]) -> None:
    """Take them away again, and wait until nothing of them is left."""
    wanted = _counts(side)
    for node, table in wanted:
        own = table in side.own_tables
        wanted[node, table] -= sum((port.node == node) == own for port in ports)
    _configure(side, ports, lambda port: ["--", "del-port", port.name])
    _wait(side, wanted, gone=True)


def _configure(
    side: PodSide, ports: Sequence[BoundPort], words: Callable[[BoundPort], Sequence[str]]
) -> None:
    """Run `ovs-vsctl` for all nodes at once."""
    running = []
    for node in side.lab.layout.nodes(NODES):
        said = [word for port in ports if port.node == node for word in words(port)]
        command = ["ovs-vsctl", f"--db=unix:{node.ovsdb}", "--no-wait", "--timeout=30", *said]
        running.append(subprocess.Popen(command))
    ended = [process.wait(timeout=60) for process in running]
    if any(ended):
        raise LabError("ovs-vsctl failed; see above")


def _counts(side: PodSide) -> dict[tuple[NodeLayout, int], int]:
    return {
        (node, table): len(ofctl(node, "--no-stats dump-flows", f"table={table}").splitlines())
        for node in side.lab.layout.nodes(NODES)
        for table in (*side.own_tables, *side.peer_tables)
    }


def _wait(
    side: PodSide, wanted: Mapping[tuple[NodeLayout, int], int], *, gone: bool = False
) -> None:
    deadline = time.monotonic() + PATIENCE
    while True:
        time.sleep(GLANCE)
        found = _counts(side)
        # The first ports bring a few flows that are no port's.
        if found == wanted or (not gone and all(found[at] >= n for at, n in wanted.items())):
            return
        if time.monotonic() > deadline:
            off = {(n.name, t): (found[n, t], w) for (n, t), w in wanted.items()}
            raise LabError(f"{side.lab.name}: flows there and wanted, by node and table: {off}")
