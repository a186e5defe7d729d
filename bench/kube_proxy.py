"""service_update_vs_kube_proxy: an EndpointSlice written until the first connection that obeys it.

Each side has an API server of its own with the same Services, and one node with three pods: a
client and two servers. A Service has one server as its only endpoint; the other takes its place by
one PUT, while the client connects to the Service again and again and is told who serves it.
kube-proxy has the node's kernel and nftables, as it would have on a real one.
"""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from pathlib import Path

from bench import service_objects as objects
from bench.api_connection import ApiConnection
from bench.controller import Manifest
from bench.figures import Figure, versus
from bench.nodes import set_up_uplink, unique
from lab import Lab, LabError
from lab.commands import inside, run
from lab.control import ControlPlane, built, kubernetes_binaries
from lab.daemons import Daemons
from lab.layout import POD_RANGE, LabLayout, NodeLayout
from lab.network import configure, connect, create_namespace
from lab.processes import Process, running
from lab.programs import python

SERVERS = ("a", "b")
SERVER_PORT = 8000
PATIENCE = 60.0
PAUSE = 2.0
"""Seconds between two changes: kube-proxy makes none sooner than 1 s after the last."""
AT_ONCE = 4
"""Connections that fill an API server."""


SERVICES = "/api/v1/namespaces/default/services"
SLICES = "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices"


def measure(*, services: int = 1000, rounds: int = 9) -> list[Figure]:
    """Change the one Service's endpoint on both sides, in turns."""
    program = built("--rival") / "kube-proxy"
    ours: list[float] = []
    theirs: list[float] = []
    with ExitStack() as stack:
        sides = [
            stack.enter_context(_sluice()),
            stack.enter_context(_kube_proxy(program)),
        ]
        for side in sides:
            side.fill(services)
        for number in range(rounds + 1):
            for side, samples in zip(sides, (ours, theirs), strict=True):
                seconds = side.change(SERVERS[(number + 1) % 2])
                if number:  # the first is warm-up
                    samples.append(1000 * seconds)
    return versus("service_update_vs_kube_proxy", "ms", ours, ("kube_proxy", theirs), at_most=0.25)


class ProxySide:
    """A cluster of one node, with somebody who serves Services."""

    def __init__(
        self,
        api: ApiConnection,
        layout: LabLayout,
        client: str,
        servers: Mapping[str, tuple[str, str]],
    ) -> None:
        """`client` is a namespace, `servers` are namespaces and addresses by name."""
        self._api = api
        self._layout = layout
        self._client = client
        self._servers = servers
        self._node = layout.node(1)
        self._number = 0

    def fill(self, services: int) -> None:
        """Write so many Services, and one more that is changed; return when that one works."""
        nodes = [self._node]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            chunks = [range(first, services, AT_ONCE) for first in range(AT_ONCE)]
            for done in [pool.submit(_fill, self._layout, nodes, chunk) for chunk in chunks]:
                done.result()
        self._number = services
        self._api.send("POST", SERVICES, objects.service(services))
        self._api.send("POST", SLICES, self._slice(SERVERS[0]))
        with self._until(SERVERS[0]) as client:
            _line(client)

    def change(self, server: str) -> float:
        """Seconds from the PUT of a slice with only this server until it serves a connection."""
        with self._until(server) as client:
            _line(client)  # it is served by the other one
            time.sleep(PAUSE)
            began = time.monotonic()
            self._api.send("PUT", f"{SLICES}/{objects.name(self._number)}", self._slice(server))
            return float(_line(client)) - began

    def _slice(self, server: str) -> Manifest:
        _, address = self._servers[server]
        return objects.endpoint_slice(self._number, [(self._node, address)], SERVER_PORT)

    def _until(self, server: str) -> "AbstractContextManager[Process]":
        address = str(objects.cluster_ip(self._number))
        return _running(self._client, ["until", address, str(objects.PORT), server])


def _fill(layout: LabLayout, nodes: Sequence[NodeLayout], numbers: Iterable[int]) -> None:
    with closing(ApiConnection(layout)) as api:
        for number in numbers:
            service, its_slice = objects.both(nodes, number)
            api.send("POST", SERVICES, service)
            api.send("POST", SLICES, its_slice)


@contextmanager
def _sluice() -> Iterator[ProxySide]:
    with Lab(unique("svcapi")).running(nodes=1, source="kube") as lab, ExitStack() as stack:
        pods = {name: lab.pod_add("default", name, "node1") for name in (*SERVERS, "client")}
        servers = {name: (pods[name].netns, str(pods[name].address)) for name in SERVERS}
        _serve(stack, servers)
        api = stack.enter_context(closing(ApiConnection(lab.layout)))
        yield ProxySide(api, lab.layout, pods["client"].netns, servers)


@contextmanager
def _kube_proxy(program: Path) -> Iterator[ProxySide]:
    """The same without Sluice and without Open vSwitch."""
    lab = Lab(unique("kproxy"))
    try:
        lab.layout.directory.mkdir(parents=True)
        node = lab.layout.node(1)
        plane = start_api(lab, [node])
        pods = {name: _plug(lab, name, index) for index, name in enumerate((*SERVERS, "client"))}
        servers = {name: pods[name] for name in SERVERS}
        daemons = start_proxy(plane, node, program)
        with ExitStack() as stack:
            _serve(stack, servers)
            api = stack.enter_context(closing(ApiConnection(lab.layout)))
            yield ProxySide(api, lab.layout, pods["client"][0], servers)
            daemons.check()
    finally:
        lab.down()


def start_api(lab: Lab, nodes: Sequence[NodeLayout]) -> ControlPlane:
    """Nodes that route, without pods and Open vSwitch, and an API server that has their Nodes."""
    connect(lab.layout, nodes, "system")
    for node in nodes:
        set_up_uplink(node)
        run(["sysctl", "-qw", "net.ipv4.ip_forward=1"], netns=node.netns)
    plane = ControlPlane(lab.layout, "geneve", kubernetes_binaries(), False, tls=False)
    plane.start_api(lambda _: None)
    for node in nodes:
        plane.source.add_node(node)
    return plane


def start_proxy(plane: ControlPlane, node: NodeLayout, program: Path) -> Daemons:
    """kube-proxy on a node; what `Daemons.check` says is whether it still runs."""
    daemons = Daemons(node.netns, node.logs)
    daemons.start(
        "kube-proxy",
        [
            str(program),
            f"--kubeconfig={plane.kubeconfig}",
            "--proxy-mode=nftables",
            f"--hostname-override={node.name}",
            f"--cluster-cidr={POD_RANGE}",
            # It is the machine's, not the namespace's.
            "--conntrack-max-per-core=0",
        ],
        {"NO_PROXY": "*"},
    )
    return daemons


def _plug(lab: Lab, name: str, index: int) -> tuple[str, str]:
    """A pod on the node, by a veth that the node routes to; its namespace and its address."""
    node, pod = lab.layout.node(1), lab.layout.pod_netns("default", name)
    address = node.pod_cidr[100 + index]
    gateway = node.pod_cidr[1]
    create_namespace(pod)
    configure(
        node.netns,
        [
            f"link add pod-{name} type veth peer name eth0 netns {pod}",
            f"addr add {gateway}/32 dev pod-{name}",
            f"link set pod-{name} up",
            f"route add {address} dev pod-{name}",
        ],
    )
    configure(
        pod,
        [
            "link set eth0 up",
            f"addr add {address}/32 dev eth0",
            f"route add {gateway} dev eth0",
            f"route add default via {gateway} dev eth0",
        ],
    )
    return pod, str(address)


def _serve(stack: ExitStack, servers: Mapping[str, tuple[str, str]]) -> None:
    for name, (namespace, _) in servers.items():
        # Their ports come round again.
        run(["sysctl", "-qw", "net.ipv4.tcp_max_tw_buckets=0"], netns=namespace)
        words = ["serve", str(SERVER_PORT), name]
        _line(stack.enter_context(_running(namespace, words)))


@contextmanager
def _running(namespace: str, words: Sequence[str]) -> Iterator[Process]:
    """A `bench.served` in a namespace, until the end of the context."""
    command = inside(namespace, python("bench.served", *words))
    with running(command) as process:
        yield process


def _line(process: Process) -> str:
    """What it says next. Raises `LabError` where that takes too long."""
    try:
        line = process.line(PATIENCE)
    except TimeoutError as error:
        raise LabError(f"no connection in {PATIENCE:.0f} s: {error}") from None
    if not line:
        raise LabError(f"it has ended: {process.popen.args!r}")
    return line
