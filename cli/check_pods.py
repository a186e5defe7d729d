"""`sluice check --before --image`: the nodes of a cluster without Sluice, by short-lived Pods.

Each Pod is in the host network of its node, sees the node's files read-only, and ends by itself.
They are in a namespace of their own, which is deleted at the end, also after an interrupt.
"""

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Final

import msgspec
from kubernetes import client

from cli.cluster import LONGEST_WAIT, api_client, asking
from cli.controller import Cluster, RequestError
from cli.own_namespace import OwnNamespace
from controller.reports.check import CheckReport
from node_agent.checks.facts import Wanted, encode_wanted
from wire.findings import MAX_FINDINGS, MAX_NODES, MAX_PEERS, Finding, NodeFindings, Peer, Severity
from wire.sentences import readable

OWNER: Final = "sluice-check"
PATIENCE: Final = 180.0
"""Seconds for all Pods of one turn: an image may have to be pulled."""
TOGETHER: Final = 20.0
"""Seconds in which each Pod waits for answers of the others."""
POLL: Final = 1.0
LARGEST_LOG: Final = 1 << 20
_ENDED: Final = "ended"
_HOPELESS: Final = frozenset(
    (
        "ErrImagePull",
        "ImagePullBackOff",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "RunContainerError",
        "ErrImageNeverPull",
    )
)
"""Why a container waits, if it helps nothing to wait for it."""
_NETWORKS: Final = {
    "kube-proxy": "kube-proxy",
    "calico-node": "Calico",
    "canal": "Canal",
    "cilium": "Cilium",
    "kube-flannel-ds": "Flannel",
    "weave-net": "Weave Net",
    "antrea-agent": "Antrea",
    "ovnkube-node": "OVN-Kubernetes",
    "kube-ovn-cni": "Kube-OVN",
    "kube-router": "kube-router",
    "kindnet": "kindnet",
}
"""By the usual name of their DaemonSets."""

Node = dict[str, Any]
"""As the API server has it."""


def check_nodes(
    cluster: Cluster, image: str, nodes: tuple[str, ...], wanted: Callable[[str], Wanted]
) -> CheckReport:
    """What is wrong with these nodes, or all. `wanted` is by the name of a node.

    Raises `RequestError`.
    """
    api = api_client(cluster)
    try:
        return _Run(api, image, wanted).go(nodes)
    finally:
        api.close()


class _Run:
    def __init__(self, api: Any, image: str, wanted: Callable[[str], Wanted]) -> None:
        self._core = client.CoreV1Api(api)
        self._apps = client.AppsV1Api(api)
        self._networking = client.NetworkingV1Api(api)
        self._image = image
        self._wanted = wanted
        self._own = OwnNamespace(self._core, OWNER)
        self._namespace = self._own.name

    def go(self, nodes: tuple[str, ...]) -> CheckReport:
        with asking("list nodes", self._namespace, absent="there are no nodes"):
            given = self._core.list_node(_request_timeout=LONGEST_WAIT).to_dict()["items"]
        known = {each["metadata"]["name"]: each for each in given}
        chosen = sorted(nodes or known)
        unanswered = {name: f"there is no Node {name}" for name in chosen if name not in known}
        chosen = [name for name in chosen if name in known]
        found = [self._of_cluster(given)]
        if chosen:
            with self._own:
                self._own.make()
                for start in range(0, len(chosen), MAX_NODES):
                    some = chosen[start : start + MAX_NODES]
                    made, missing = self._turn([known[name] for name in some])
                    found += made
                    unanswered |= missing
        return CheckReport(nodes=tuple(found), unanswered=unanswered)

    def _of_cluster(self, nodes: list[Node]) -> NodeFindings:
        unchecked: tuple[str, ...] = ()
        try:
            with asking("list daemonsets", "kube-system", absent="there are none"):
                sets = self._apps.list_daemon_set_for_all_namespaces(_request_timeout=LONGEST_WAIT)
            names = [(each.metadata.namespace, each.metadata.name) for each in sets.items]
        except RequestError as error:
            names, unchecked = [], (f"DaemonSets of other networks: {error.message}",)
        wanted = self._wanted("")
        cidrs: list[str] = []
        try:
            with asking(
                "list servicecidrs", "default", absent="the API server has no ServiceCIDRs"
            ):
                found = self._networking.list_service_cidr(_request_timeout=LONGEST_WAIT)
            cidrs = [cidr for each in found.items for cidr in each.spec.cidrs or ()]
        except RequestError as error:
            unchecked += (f"the range of Services: {error.message}",)
        return cluster_findings(nodes, names, wanted, cidrs, unchecked)

    def _turn(self, nodes: list[Node]) -> tuple[list[NodeFindings], dict[str, str]]:
        """Check some nodes at the same time; what was found, and who gave no answer."""
        peers = [peer for node in nodes if (peer := _peer(node)) is not None]
        missing: dict[str, str] = {}
        waiting: dict[str, str] = {}
        for number, node in enumerate(nodes):
            name = node["metadata"]["name"]
            try:
                waiting[self._create(number, node, peers)] = name
            except RequestError as error:
                missing[name] = error.message
        found: list[NodeFindings] = []
        end = time.monotonic() + PATIENCE
        while waiting and time.monotonic() < end:
            time.sleep(POLL)
            with asking("list pods", self._namespace, absent="there are none"):
                pods = self._core.list_namespaced_pod(
                    self._namespace, _request_timeout=LONGEST_WAIT
                ).items
            for pod in pods:
                node_name = waiting.get(pod.metadata.name)
                if node_name is None or not (why := _end(pod)):
                    continue
                del waiting[pod.metadata.name]
                answer = self._answer(pod.metadata.name) if why == _ENDED else why
                if isinstance(answer, NodeFindings):
                    found.append(msgspec.structs.replace(answer, node=node_name))
                else:
                    missing[node_name] = answer
        for name in waiting.values():
            missing[name] = f"its Pod has not ended in {PATIENCE:.0f} s"
        return sorted(found, key=lambda each: each.node), missing

    def _create(self, number: int, node: Node, peers: list[Peer]) -> str:
        name = node["metadata"]["name"]
        own = _peer(node)
        others = [each for each in peers if each.name != name]
        start = number % max(1, len(others))
        wanted = msgspec.structs.replace(
            self._wanted(name),
            address=own.address if own is not None else None,
            peers=tuple((others[start:] + others[:start])[:MAX_PEERS]),
            together=TOGETHER if others else 0.0,
        )
        pod = f"node-{number}-{secrets.token_hex(3)}"
        with asking("create pods", self._namespace, absent="its namespace has gone"):
            self._core.create_namespaced_pod(
                self._namespace, pod_of(pod, name, self._image, wanted),
                _request_timeout=LONGEST_WAIT,
            )  # fmt: skip
        return pod

    def _answer(self, pod: str) -> NodeFindings | str:
        try:
            with asking("get pods/log", self._namespace, absent="its Pod has gone"):
                text = str(
                    self._core.read_namespaced_pod_log(
                        pod, self._namespace, limit_bytes=LARGEST_LOG,
                        _request_timeout=LONGEST_WAIT,
                    )
                )  # fmt: skip
        except RequestError as error:
            return error.message
        lines = text.strip().splitlines()
        try:
            return msgspec.json.decode(lines[-1] if lines else "", type=NodeFindings)
        except (ValueError, RecursionError):
            said = ascii(lines[-1])[:200] if lines else "nothing"
            return f"its Pod has said {said}"


def _end(pod: Any) -> str:
    """Why there is nothing to wait for; empty: there is."""
    for container in pod.status.container_statuses or ():
        waits = container.state.waiting
        if waits is not None and waits.reason in _HOPELESS:
            why = f"{waits.reason}: {waits.message or 'no message'}"[:500]
            return f"its Pod cannot start: {readable(why)}"
    return _ENDED if pod.status.phase in {"Succeeded", "Failed"} else ""


def _peer(node: Node) -> Peer | None:
    for each in (node["status"].get("addresses")) or ():
        if each["type"] == "InternalIP":
            try:
                return Peer(node["metadata"]["name"], IPv4Address(each["address"]))
            except ValueError:
                continue
    return None


def pod_of(name: str, node: str, image: str, wanted: Wanted) -> dict[str, Any]:
    """The Pod that checks a node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app.kubernetes.io/name": "sluice-check"}},
        "spec": {
            # Not by the scheduler: the node may not be ready, as long as it has no network.
            "nodeName": node,
            "hostNetwork": True,
            "restartPolicy": "Never",
            "automountServiceAccountToken": False,
            "activeDeadlineSeconds": int(PATIENCE),
            "terminationGracePeriodSeconds": 0,
            "tolerations": [{"operator": "Exists"}],
            "containers": [
                {
                    "name": "check",
                    "image": image,
                    "args": [
                        "check",
                        "--wanted",
                        encode_wanted(wanted).decode(),
                        "--root",
                        "/host",
                    ],
                    "securityContext": {
                        "runAsUser": 0,
                        "allowPrivilegeEscalation": False,
                        "readOnlyRootFilesystem": True,
                        # NET_ADMIN: to list chains; NET_RAW: echo requests.
                        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "volumeMounts": [{"name": "host", "mountPath": "/host", "readOnly": True}],
                }
            ],
            "volumes": [{"name": "host", "hostPath": {"path": "/", "type": "Directory"}}],
        },
    }


# --- what only the API server knows ---


def cluster_findings(
    nodes: Iterable[Node],
    daemon_sets: Iterable[tuple[str, str]],
    wanted: Wanted,
    service_cidrs: Iterable[str] = (),
    unchecked: tuple[str, ...] = (),
) -> NodeFindings:
    """What is wrong with the cluster's ranges, and which other networks it runs: pure."""
    found = [
        *_service_cidrs(service_cidrs, wanted),
        *_pod_cidrs(nodes, wanted),
        *_daemon_sets(daemon_sets),
    ]
    left_out = max(0, len(found) - MAX_FINDINGS)
    return NodeFindings("cluster", tuple(found[:MAX_FINDINGS]), left_out, unchecked)


def _service_cidrs(given: Iterable[str], wanted: Wanted) -> Iterator[Finding]:
    """Of the ServiceCIDRs, one must be `cluster.serviceRange`; IPv6 ones are not served."""
    cidrs = sorted(cidr for cidr in given if ":" not in cidr)
    if cidrs and str(wanted.service_range) not in cidrs:
        yield _error(
            "cluster.serviceRange",
            f"it is {wanted.service_range}, and Services get addresses of {', '.join(cidrs)}",
            "set it to the --service-cluster-ip-range of kube-apiserver",
        )


def _pod_cidrs(nodes: Iterable[Node], wanted: Wanted) -> Iterator[Finding]:
    seen: list[tuple[IPv4Network, str]] = []
    for node in sorted(nodes, key=lambda each: str(each["metadata"]["name"])):
        name = node["metadata"]["name"]
        text = (node.get("spec") or {}).get("pod_cidr") or ""
        if not text:
            yield _error(
                f"Node {name}", "spec.podCIDR is missing",
                "run kube-controller-manager with --allocate-node-cidrs",
            )  # fmt: skip
            continue
        try:
            network = IPv4Network(text)
        except ValueError:
            yield _error(
                f"Node {name}", f"spec.podCIDR {text} is not an IPv4 range",
                "give the cluster an IPv4 --cluster-cidr",
            )  # fmt: skip
            continue
        if not network.subnet_of(wanted.pod_range):
            yield _error(
                f"Node {name}",
                f"spec.podCIDR {network} is outside cluster.podRange {wanted.pod_range}",
                "set cluster.podRange to the --cluster-cidr of kube-controller-manager",
            )
        for other, holder in seen:
            if network.overlaps(other):
                yield _error(
                    f"Node {name}", f"spec.podCIDR {network} overlaps {other} of Node {holder}",
                    "delete one of the Nodes, and let its kubelet register it anew",
                )  # fmt: skip
        seen.append((network, name))
        peer = _peer(node)
        ranges = {"podRange": wanted.pod_range, "serviceRange": wanted.service_range}
        for field, taken in ranges.items():
            if peer is not None and peer.address in taken:
                yield _error(
                    f"Node {name}", f"its address {peer.address} lies in cluster.{field} {taken}",
                    "give the cluster other ranges",
                )  # fmt: skip


def _daemon_sets(given: Iterable[tuple[str, str]]) -> Iterator[Finding]:
    for namespace, name in sorted(given):
        if name == "sluice-agent":
            yield Finding(
                Severity.WARNING,
                f"DaemonSet {namespace}/{name}",
                "Sluice is installed already: what is found on the nodes may be its own",
                "use `sluice check` without --before, which asks its agents",
            )
        if (network := _NETWORKS.get(name)) is None:
            continue
        text = f"the cluster runs {network}"
        text += ", and Sluice serves Services itself" * (network == "kube-proxy")
        yield _error(
            f"DaemonSet {namespace}/{name}", text,
            f"remove {network}, then look for what it has left: check again",
        )  # fmt: skip


def _error(subject: str, text: str, cure: str) -> Finding:
    return Finding(Severity.ERROR, subject, text, cure)
