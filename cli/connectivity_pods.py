"""The pods of `sluice connectivity`: what is made, what they try, and that all goes away again."""

import json
import secrets
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self

import msgspec
from kubernetes import client
from kubernetes.stream import stream

from cli.cluster import LONGEST_WAIT, Kubernetes, asking, existing
from cli.controller import Cluster, RequestError
from cli.own_namespace import LABEL, OwnNamespace
from wire.sentences import readable

OWNER: Final = "sluice-connectivity"
LIFE: Final = 900
"""Seconds after which the pods end whatever happens to this program."""
PORT: Final = 8080
HOST_PORTS: Final = range(18_000, 19_000)
"""Of the servers in the nodes' own network, one by chance: two runs at once do not collide."""
LARGE: Final = 4_000
"""Bytes of a datagram that takes several packets at each usual MTU."""
DEFAULT_NODES: Final = 2
TRIES: Final = 3
"""Of each probe, where an answer is expected."""
LONGEST_PROBE: Final = 10.0
"""Seconds for all tries of one probe."""

SERVER: Final = """
import os, selectors, socket, sys
name, port, until = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
tcp = socket.create_server(("", port), backlog=128)
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("", port))
chosen = selectors.DefaultSelector()
for each in (tcp, udp):
    chosen.register(each, selectors.EVENT_READ)
while True:
    for key, _ in chosen.select():
        try:
            if key.fileobj is tcp:
                peer, _ = tcp.accept()
                peer.settimeout(3)
                with peer:
                    got = 0
                    size = int(peer.recv(16).decode() or 0)
                    while got < size:
                        got += len(peer.recv(65536)) or size
                    peer.sendall(name.encode())
            else:
                data, address = udp.recvfrom(65536)
                udp.sendto(name.encode(), address)
        except (OSError, ValueError):
            pass
"""

CLIENT: Final = """
import json, socket, sys, time
found = []
for kind, host, port, size, tries in json.loads(sys.argv[1]):
    said = ""
    for _ in range(tries):
        try:
            if kind == "dns":
                said = "ok " + socket.gethostbyname(host)
                break
            type = socket.SOCK_DGRAM if kind == "udp" else socket.SOCK_STREAM
            with socket.socket(socket.AF_INET, type) as client:
                client.settimeout(2)
                client.connect((host, port))
                if kind == "connect":
                    said = "ok connected"
                    break
                if kind == "udp":
                    client.send(bytes(size or 1))
                else:
                    client.sendall(str(size).encode().ljust(16) + bytes(size))
                said = "ok " + client.recv(200).decode()
                break
        except TimeoutError:
            said = "no answer"
        except OSError as error:
            said = error.strerror or str(error)
    found.append(said)
print(json.dumps(found))
"""


@dataclass(frozen=True, slots=True)
class Probe:
    """One try of one client."""

    kind: str
    pod: str
    """That runs the client."""
    source: str
    """The client, for people."""
    destination: str
    protocol: str
    """`tcp`, `udp`, `connect` (TCP without a word) or `dns`."""
    host: str
    port: int
    size: int = 0
    expected: tuple[str, ...] = ()
    """The servers that may answer; empty: anybody."""
    is_denied: bool = False
    """Whether policy denies it."""
    trace_from: str = ""
    trace_to: str = ""

    @property
    def ends(self) -> dict[str, str]:
        """The question about it for `/v1/trace`."""
        protocol = "UDP" if self.protocol in ("udp", "dns") else "TCP"
        port = "53" if self.protocol == "dns" else str(self.port)
        return {"from": self.trace_from, "to": self.trace_to, "port": port, "protocol": protocol}


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of it."""

    probe: Probe
    said: str

    @property
    def passed(self) -> bool:
        """Whether it is as it should be."""
        if self.probe.is_denied:
            return not self.said.startswith("ok ")
        server = self.said.removeprefix("ok ")
        is_right = not self.probe.expected or server in self.probe.expected
        return self.said.startswith("ok ") and is_right


def answers_in(output: str) -> list[str]:
    """What a client has printed; none if that is anything else."""
    try:
        given = msgspec.json.decode(output, type=list[str])
    except (ValueError, RecursionError):
        return []
    return [readable(each[:200]) for each in given]


class Testbed:
    """A namespace with pods on some nodes; `with` removes it, also after Ctrl-C and SIGTERM."""

    def __init__(self, cluster: Cluster, *, keep: bool) -> None:
        self._kubernetes = Kubernetes(cluster)
        self._core = client.CoreV1Api(self._kubernetes.api)
        self._system = cluster.namespace
        self._own = OwnNamespace(self._core, OWNER, keep=keep)
        self._name = self._own.name
        self._host_port = HOST_PORTS[secrets.randbelow(len(HOST_PORTS))]
        self._nodes: list[str] = []
        self._node_addresses: dict[str, str] = {}
        self._addresses: dict[str, str] = {}
        """By pod."""
        self._service: Any = None

    def __enter__(self) -> Self:
        self._own.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Remove what was made."""
        try:
            self._own.__exit__(kind, error, at)
        finally:
            self._kubernetes.close()

    def make(self, nodes: Sequence[str], image: str | None) -> None:
        """Make everything. Raises `RequestError`."""
        image = image or self._image()
        self._choose(nodes)
        self._own.make()
        with asking("create pods, services, networkpolicies", self._name, absent="it has gone"):
            for number, node in enumerate(self._nodes):
                for body in _pods(number, node, image, self._host_port):
                    self._core.create_namespaced_pod(
                        self._name, body, _request_timeout=LONGEST_WAIT
                    )
            self._service = self._core.create_namespaced_service(
                self._name, _SERVICE, _request_timeout=LONGEST_WAIT
            )
            client.NetworkingV1Api(self._kubernetes.api).create_namespaced_network_policy(
                self._name, _POLICY, _request_timeout=LONGEST_WAIT
            )

    def wait(self, seconds: float) -> None:
        """Return when all pods run. Raises `RequestError` after so many seconds."""
        end = time.monotonic() + seconds
        while True:
            with asking("list pods", self._name, absent="it has gone"):
                pods = self._core.list_namespaced_pod(
                    self._name, _request_timeout=LONGEST_WAIT
                ).items
            waiting = [pod for pod in pods if not _is_running(pod)]
            if failed := [pod for pod in pods if pod.status.phase == "Failed"]:
                raise RequestError(f"a pod has ended: {_why(failed)}")
            if pods and not waiting:
                self._addresses = {pod.metadata.name: pod.status.pod_ip for pod in pods}
                # The endpoints of the Service follow the pods.
                time.sleep(2)
                return
            if time.monotonic() >= end:
                raise RequestError(f"not all pods run after {seconds:g} s: {_why(waiting)}")
            time.sleep(1)

    def probe(self) -> Iterator[Answer]:
        """Every probe of every client, one client after the other. Raises `RequestError`."""
        for number, node in enumerate(self._nodes):
            for pod in (f"client-{number}", f"friend-{number}", f"host-{number}"):
                probes = [each for each in self._probes(number, node) if each.pod == pod]
                yield from self._run(pod, probes)

    def _run(self, pod: str, probes: Sequence[Probe]) -> Iterator[Answer]:
        words = [
            [each.protocol, each.host, each.port, each.size, 1 if each.is_denied else TRIES]
            for each in probes
        ]
        command = ["python3", "-c", CLIENT, json.dumps(words)]
        with asking("create pods/exec", self._name, absent=f"Pod {pod} has gone"):
            running = stream(
                self._core.connect_get_namespaced_pod_exec, pod, self._name,
                command=command, container="pod", stdout=True, stderr=True, stdin=False, tty=False,
                _preload_content=False, _request_timeout=LONGEST_WAIT,
            )  # fmt: skip
        try:
            running.run_forever(timeout=LONGEST_PROBE * len(probes))
            output, errors = running.read_stdout(), running.read_stderr()
        finally:
            running.close()
        answers = answers_in(output)
        if len(answers) != len(probes):
            said = readable((errors or output).strip()[-200:]) or "it says nothing"
            raise RequestError(f"Pod {self._name}/{pod}: {said}")
        yield from map(Answer, probes, answers)

    def _probes(self, number: int, node: str) -> Iterator[Probe]:
        servers = tuple(f"server-{other}" for other in range(len(self._nodes)))
        service = self._service.spec
        node_port = service.ports[0].node_port
        for kind, pod, is_host in (("pod", f"client-{number}", False),
                                   ("node", f"host-{number}", True)):  # fmt: skip
            source = node if is_host else f"pod on {node}"
            begin = node if is_host else f"{self._name}/{pod}"

            def one(
                what: str, to: str, protocol: str, host: str, port: int, *expected: str,
                size: int = 0, trace_to: str = "",
                kind: str = kind, pod: str = pod, source: str = source, begin: str = begin,
            ) -> Probe:  # fmt: skip
                return Probe(
                    f"{kind} to {what}", pod, source, to, protocol, host, port, size, expected,
                    trace_from=begin, trace_to=trace_to or host,
                )  # fmt: skip

            for other, its_node in enumerate(self._nodes):
                server = f"server-{other}"
                address = self._addresses[server]
                to = f"pod on {its_node}"
                at = f"{self._name}/{server}"
                yield one("pod, TCP", to, "tcp", address, PORT, server, trace_to=at)
                yield one("pod, UDP", to, "udp", address, PORT, server, trace_to=at)
                yield one("pod, 1 MB", to, "tcp", address, PORT, server, size=1 << 20, trace_to=at)
                yield one("pod, 4 KB datagram", to, "udp", address, PORT, server, size=LARGE,
                          trace_to=at)  # fmt: skip
                at = self._node_addresses[its_node]
                if not (is_host and its_node == node):
                    yield one("node", its_node, "tcp", at, self._host_port, f"host-{other}")
                yield one("NodePort", its_node, "tcp", at, node_port, *servers)
            address = service.cluster_ip
            at = f"svc/{self._name}/servers"
            yield one("Service, TCP", "servers", "tcp", address, PORT, *servers, trace_to=at)
            yield one("Service, UDP", "servers", "udp", address, PORT, *servers, trace_to=at)
            if not is_host:
                yield from self._system_probes(one)
        yield from self._policy_probes(number, node)

    def _system_probes(self, one: Any) -> Iterator[Probe]:
        """The API server by its Service, and DNS where it is served."""
        with asking("get services", "default", absent="there is no Service kubernetes"):
            api = self._core.read_namespaced_service(
                "kubernetes", "default", _request_timeout=LONGEST_WAIT
            ).spec
        yield one("API server", "default/kubernetes", "connect", api.cluster_ip, api.ports[0].port)
        dns = existing(
            self._core.read_namespaced_service, "get services", "kube-system", "kube-dns"
        )
        if dns is not None and dns.spec.cluster_ip:
            yield one("DNS", "kube-system/kube-dns", "dns", "kubernetes.default.svc", 53,
                      api.cluster_ip, trace_to="svc/kube-system/kube-dns")  # fmt: skip

    def _policy_probes(self, number: int, node: str) -> Iterator[Probe]:
        for other, its_node in enumerate(self._nodes):
            guarded = f"guarded-{other}"
            for pod, is_denied in ((f"friend-{number}", False), (f"client-{number}", True)):
                yield Probe(
                    "denied by policy" if is_denied else "accepted by policy",
                    pod, f"pod on {node}", f"pod on {its_node}", "tcp", self._addresses[guarded],
                    PORT, 0, (guarded,), is_denied,
                    f"{self._name}/{pod}", f"{self._name}/{guarded}",
                )  # fmt: skip

    def _choose(self, wanted: Sequence[str]) -> None:
        with asking("list nodes", "the cluster", absent="there are no nodes"):
            nodes = self._core.list_node(_request_timeout=LONGEST_WAIT).items
        known = {node.metadata.name: node for node in nodes}
        for name in wanted:
            if name not in known:
                raise RequestError(f"--on: there is no Node {name}")
        ready = [node.metadata.name for node in nodes if _takes_pods(node)]
        self._nodes = [*dict.fromkeys(wanted)] or ready[:DEFAULT_NODES]
        if not self._nodes:
            raise RequestError("no node is ready and takes pods")
        for name in self._nodes:
            self._node_addresses[name] = next(
                each.address for each in known[name].status.addresses if each.type == "InternalIP"
            )

    def _image(self) -> str:
        apps = client.AppsV1Api(self._kubernetes.api)
        for read, kind, name in (
            (apps.read_namespaced_daemon_set, "daemonsets", "sluice-agent"),
            (apps.read_namespaced_deployment, "deployments", "sluice-controller"),
        ):
            found = existing(read, f"get {kind}", self._system, name)
            if found is not None:
                return str(found.spec.template.spec.containers[0].image)
        raise RequestError(
            f"namespace {self._system}: Sluice is not installed in it: neither DaemonSet"
            " sluice-agent nor Deployment sluice-controller is there"
        )


def _pods(number: int, node: str, image: str, host_port: int) -> Iterator[dict[str, Any]]:
    """The pods of one node."""

    def pod(role: str, command: Sequence[str], **spec: Any) -> dict[str, Any]:
        return {
            "metadata": {"name": f"{role}-{number}", "labels": {LABEL: OWNER, "role": role}},
            "spec": {
                "nodeName": node,
                "restartPolicy": "Never",
                "activeDeadlineSeconds": LIFE,
                "terminationGracePeriodSeconds": 0,
                "automountServiceAccountToken": False,
                "tolerations": [{"operator": "Exists"}],
                "containers": [
                    {
                        "name": "pod",
                        "image": image,
                        "imagePullPolicy": "IfNotPresent",
                        "command": ["python3", "-c", *command],
                        "securityContext": {
                            "allowPrivilegeEscalation": False,
                            "capabilities": {"drop": ["ALL"]},
                            "runAsNonRoot": True,
                            "runAsUser": 65532,
                            "seccompProfile": {"type": "RuntimeDefault"},
                        },
                        "resources": {"limits": {"memory": "64Mi"}, "requests": {"cpu": "10m"}},
                    }
                ],
                **spec,
            },
        }

    for role in ("server", "guarded"):
        yield pod(role, [SERVER, f"{role}-{number}", str(PORT), str(LIFE)])
    yield pod("host", [SERVER, f"host-{number}", str(host_port), str(LIFE)], hostNetwork=True)
    for role in ("client", "friend"):
        yield pod(role, ["import time; time.sleep(1000)"])


_SERVICE: Final = {
    "metadata": {"name": "servers"},
    "spec": {
        "type": "NodePort",
        "selector": {"role": "server"},
        "ports": [
            {"name": "tcp", "port": PORT, "protocol": "TCP"},
            {"name": "udp", "port": PORT, "protocol": "UDP"},
        ],
    },
}
_POLICY: Final = {
    "metadata": {"name": "guarded"},
    "spec": {
        "podSelector": {"matchLabels": {"role": "guarded"}},
        "policyTypes": ["Ingress"],
        "ingress": [{"from": [{"podSelector": {"matchLabels": {"role": "friend"}}}]}],
    },
}


def _takes_pods(node: Any) -> bool:
    conditions = node.status.conditions or ()
    ready = any(each.type == "Ready" and each.status == "True" for each in conditions)
    return ready and not node.spec.unschedulable


def _is_running(pod: Any) -> bool:
    statuses = pod.status.container_statuses or ()
    return bool(pod.status.pod_ip) and bool(statuses) and all(each.ready for each in statuses)


def _why(pods: Iterable[Any]) -> str:
    """What the first pod that does not run waits for."""
    for pod in pods:
        for status in pod.status.container_statuses or ():
            waiting = status.state.waiting if status.state else None
            if waiting is not None:
                said = readable((waiting.message or waiting.reason or "")[:500])
                return f"Pod {pod.metadata.name} on {pod.spec.node_name}: {said}"
        return f"Pod {pod.metadata.name} on {pod.spec.node_name}: {pod.status.phase}"
    return "there are none"
