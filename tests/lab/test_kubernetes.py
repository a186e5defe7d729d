"""A cluster out of a real API server: what the controller takes from it, and when it is away."""

import functools
import http.client
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from controller.sources.routed_objects import ROUTED_PATHS
from lab import Lab
from tests.lab import kube
from tests.lab.pings import address, ended, lost, ping, ping_while
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("lab", [{"source": "kube"}], indirect=True, ids=["kube"])

OUTSIDE = "203.0.113.10"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py with a pod on each of its two nodes."""
    for pod, node in (("a1", "node1"), ("b1", "node2")):
        lab.pod_add("default", pod, node, {"app": pod})
    return lab


kubectl = functools.partial(kube.kubectl, patience=15)


def problems(lab: Lab) -> dict[str, str]:
    """What the controller says is wrong, asked for as the command line asks."""
    connection = http.client.HTTPConnection("controller", timeout=30)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(30)
    try:
        connection.sock.connect(lab.status()["api_socket"])
        connection.request("GET", "/v1/status")
        answer = json.load(connection.getresponse())
        assert "problems" in answer, answer
        found: dict[str, str] = answer["problems"]
        return found
    finally:
        connection.close()


def test_pods_reach_each_other_and_the_outside(lab: Lab) -> None:
    ping(lab, "default/a1", address(lab, "default/b1"))
    ping(lab, "default/b1", address(lab, "default/a1"))
    ping(lab, "node2", address(lab, "default/a1"))
    for pod in ("a1", "b1"):
        ping(lab, f"default/{pod}", OUTSIDE)
    assert problems(lab) == {}


def test_kubectl_shows_addresses_and_nodes(lab: Lab) -> None:
    header, *rows = kubectl(lab, "get", "pods", "-o", "wide").splitlines()
    columns = [header.index(title) for title in ("NAME", "STATUS", "IP", "NODE")]
    shown = {tuple(row[column:].split()[0] for column in columns) for row in rows}
    assert shown == {
        ("a1", "Running", address(lab, "default/a1"), "node1"),
        ("b1", "Running", address(lab, "default/b1"), "node2"),
    }
    assert lab.pod("default", "a1").uid in kubectl(lab, "get", "pod", "a1", "-o", "yaml")


def test_pod_is_added_and_deleted(lab: Lab) -> None:
    added = lab.pod_add("elsewhere", "short", "node2")
    ping(lab, "default/a1", str(added.address))
    lab.pod_del("elsewhere", "short")
    assert kubectl(lab, "get", "pods", "-n", "elsewhere", "-o", "name") == ""
    ping(lab, "default/a1", address(lab, "default/b1"))


@pytest.mark.parametrize(
    ("cidr", "sentence"),
    [
        ("", "spec.podCIDR is missing"),
        ("10.244.1.0/24", "spec.podCIDR 10.244.1.0/24 overlaps 10.244.1.0/24 of Node node1"),
        ("10.244.1.128/25", "spec.podCIDR 10.244.1.128/25 overlaps 10.244.1.0/24 of Node node1"),
    ],
    ids=["none", "another's", "a part of another's"],
)
def test_node_with_an_unusable_range_is_refused(lab: Lab, cidr: str, sentence: str) -> None:
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": "intruder"},
        "spec": {"podCIDR": cidr, "podCIDRs": [cidr]} if cidr else {},
    }
    addresses = [{"type": "InternalIP", "address": "172.30.1.99"}]
    status = json.dumps({"status": {"addresses": addresses}})
    kubectl(lab, "create", "--validate=false", "-f", "-", manifest=node)
    try:
        kubectl(lab, "patch", "node", "intruder", "--subresource=status", "-p", status)
        wait_until(lambda: problems(lab) == {"Node intruder": sentence})

        beside = lab.pod_add("default", "beside", "node1")
        ping(lab, "default/b1", str(beside.address))
        ping(lab, "default/beside", address(lab, "default/a1"))
        lab.pod_del("default", "beside")
    finally:
        kubectl(lab, "delete", "node", "intruder")
    wait_until(lambda: problems(lab) == {})


@pytest.mark.parametrize("victim", ["kube-apiserver", "etcd"])
def test_no_packet_is_lost_without_the_api_server(lab: Lab, victim: str) -> None:
    before = lab.status()["control"]["pids"]
    with ping_while(lab, "default/a1", address(lab, "default/b1")) as pinging:
        lab.kill_daemon("control", victim)
        if victim == "kube-apiserver":
            paths = (
                "/api/v1/nodes", "/api/v1/pods", "/api/v1/services",
                "/apis/discovery.k8s.io/v1/endpointslices", "/api/v1/namespaces",
                "/apis/networking.k8s.io/v1/networkpolicies", *ROUTED_PATHS.values(),
            )  # fmt: skip
            all_kinds = {f"API server {path}" for path in paths}
            wait_until(lambda: problems(lab).keys() == all_kinds)
        lab.up()
        pids = lab.status()["control"]["pids"]
        assert pids[victim] not in {None, before[victim]}
        assert pids["controller"] == before["controller"]

        # The reflectors are back when their backoff says so.
        wait_until(lambda: problems(lab) == {})
        output = ended(pinging)
    assert not lost(output)
    late = lab.pod_add("default", "late", "node1")
    ping(lab, "default/b1", str(late.address))
    lab.pod_del("default", "late")


def test_controller_has_the_permissions_that_it_needs_and_no_more(lab: Lab) -> None:
    settings = Path(lab.status()["directory"], "control/sluice.yaml").read_text()
    assert re.findall(r"[\w-]+\.kubeconfig", settings) == ["sluice-controller.kubeconfig"]
    assert rules_in(lab, "default") == [
        {
            "apiGroups": [""],
            "resources": ["nodes", "pods", "services", "namespaces"],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": [""], "resources": ["nodes/status"], "verbs": ["patch"]},
        {"apiGroups": [""], "resources": ["services/status"], "verbs": ["patch"]},
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["get", "list", "watch"],
        },
        {"apiGroups": ["events.k8s.io"], "resources": ["events"], "verbs": ["create", "patch"]},
        {
            "apiGroups": ["networking.k8s.io"],
            "resources": ["networkpolicies"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["policy.networking.k8s.io"],
            "resources": ["clusternetworkpolicies"],
            "verbs": ["get", "list", "watch"],
        },
        {
            "apiGroups": ["sluice.dev"],
            "resources": ["bgppeers", "addresspools", "egressaddresses"],
            "verbs": ["get", "list", "watch"],
        },
    ]
    # In the namespace of its Lease also that, and no other one.
    lease = {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"]}
    assert [rule for rule in rules_in(lab, "kube-system") if rule["resources"] == ["leases"]] == [
        lease | {"resourceNames": ["sluice-controller"], "verbs": ["get", "update"]},
        lease | {"verbs": ["create"]},
    ]


def rules_in(lab: Lab, namespace: str) -> list[dict[str, Any]]:
    """What the controller may do in a namespace."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "spec": {"namespace": namespace},
    }
    answer = kubectl(
        *(lab, "create", "--validate=false", "-o", "json", "-f", "-"),
        manifest=review,
        user="sluice-controller",
    )
    rules = json.loads(answer)["status"]["resourceRules"]
    # Everybody may ask who they are and what they may do.
    return sorted((r for r in rules if not r["resources"][0].startswith("self")), key=str)


def test_nodes_hold_no_kubernetes_credentials(lab: Lab) -> None:
    status = lab.status()
    directory = Path(status["directory"])
    tokens = [path.read_bytes() for path in directory.glob("control/apiserver/pki/*.token")]
    assert len(tokens) == 4
    signs = [*tokens, b"kubeconfig", b"certificate-authority", b"PRIVATE KEY", b"/var/run/secrets"]
    for name, node in status["nodes"].items():
        held = {
            str(path): path.read_bytes()
            for path in directory.glob(f"nodes/{name}/**/*")
            if path.is_file()
        }
        assert any(path.endswith("sluice.yaml") for path in held)
        process = Path("/proc", str(node["pids"]["agent"]))
        for given in ("cmdline", "environ"):
            held[f"the agent's {given}"] = (process / given).read_bytes()
        found = [
            (where, sign) for where, content in held.items() for sign in signs if sign in content
        ]
        assert found == []


def test_kubectl_in_the_control_namespace(lab: Lab) -> None:
    done = lab.exec("control", ["kubectl", "get", "nodes", "-o", "name"])
    assert done.stdout.split() == ["node/node1", "node/node2"]
