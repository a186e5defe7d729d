"""What `kubectl describe` shows: conditions and Events, on a real API server."""

import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lab import Lab
from lab.daemons import kill
from lab.runtime import PluginError, Runtime, Sandbox
from lab.sources import KubernetesSource
from tests.lab import kube
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize(
    "lab", [{"source": "kube", "log_denials": True}], indirect=True, ids=["kube"]
)

MINUTES = 180.0
"""More than an Event takes: it comes some seconds after its problem, an end half a minute after."""


kubectl = functools.partial(kube.kubectl, patience=15)


def described(lab: Lab, *what: str) -> str:
    """With single spaces, for columns are as wide as their widest word."""
    return " ".join(kubectl(lab, "describe", *what).split())


def node(lab: Lab, name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kubectl(lab, "get", "node", name, "-o", "json"))
    return found


def condition(lab: Lab, name: str) -> dict[str, Any]:
    conditions = node(lab, name)["status"].get("conditions", [])
    return next((c for c in conditions if c["type"] == "NetworkUnavailable"), {})


def events(lab: Lab, kind: str, name: str) -> list[tuple[str, str]]:
    """Reason and note of each, in order."""
    found = json.loads(kubectl(lab, "get", "events.events.k8s.io", "-A", "-o", "json"))["items"]
    return [
        (each["reason"], each["note"])
        for each in sorted(found, key=lambda each: each["eventTime"])
        if (each["regarding"]["kind"], each["regarding"]["name"]) == (kind, name)
    ]


def sandbox(lab: Lab, pod: str) -> Sandbox:
    """Of a Pod of node1 that is in the API; its network namespace is not there."""
    source = lab._control(lab._spec()).source
    assert isinstance(source, KubernetesSource)
    uid = source.add_pod("default", pod, "node1", {})
    return Sandbox(f"sandbox-{pod}", f"none-{pod}", "default", pod, uid)


def fail_to_add(lab: Lab, made: Sandbox) -> None:
    with pytest.raises(PluginError):
        Runtime(lab.layout.node(1)).add(made)


@contextmanager
def killed(lab: Lab, pid: Callable[[], int | None]) -> Iterator[None]:
    """While a daemon of the lab does not run."""
    victim = pid()
    assert victim
    kill([victim])
    try:
        yield
    finally:
        lab.up()


def test_working_node_has_its_condition_and_no_more_writes(lab: Lab) -> None:
    for name in ("node1", "node2"):
        wait_until(lambda name=name: condition(lab, name).get("status") == "False")
        assert condition(lab, name)["reason"] == "SluiceReady"
        kinds = {each["type"] for each in node(lab, name)["status"]["conditions"]}
        assert kinds == {"Ready", "NetworkUnavailable"}, "others' conditions stay"
    before = {name: condition(lab, name) for name in ("node1", "node2")}
    with killed(lab, lambda: lab.status()["controller"]["pid"]):
        pass
    # A new controller has told of a new Node: whatever it had to say of these, it has said.
    a_node_is_refused(lab)
    for name, was in before.items():
        assert condition(lab, name) == was, "not even its heartbeat"
    assert events(lab, "Node", "node1") == []


def a_node_is_refused(lab: Lab) -> None:
    manifest = {"apiVersion": "v1", "kind": "Node", "metadata": {"name": "stray"}}
    addresses = [{"type": "InternalIP", "address": "172.30.1.99"}]
    status = json.dumps({"status": {"addresses": addresses}})
    kubectl(lab, "create", "--validate=false", "-f", "-", manifest=manifest)
    try:
        kubectl(lab, "patch", "node", "stray", "--subresource=status", "-p", status)
        shown = "Warning NodeRefused"
        wait_until(lambda: shown in described(lab, "node", "stray"), MINUTES)
        assert "sluice.dev/controller spec.podCIDR is missing" in described(lab, "node", "stray")
        wait_until(lambda: condition(lab, "stray").get("status") == "True", MINUTES)
        assert condition(lab, "stray")["message"] == "spec.podCIDR is missing"
        since = condition(lab, "stray")["lastTransitionTime"]

        mended = json.dumps({"spec": {"podCIDR": "10.244.99.0/24", "podCIDRs": ["10.244.99.0/24"]}})
        kubectl(lab, "patch", "node", "stray", "-p", mended)
        wait_until(lambda: condition(lab, "stray")["reason"] == "NotConnected", MINUTES)
        assert condition(lab, "stray")["lastTransitionTime"] == since
        wait_until(lambda: "Normal InOrder" in described(lab, "node", "stray"), MINUTES)
        assert "the network of this Node is in order again" in described(lab, "node", "stray")
    finally:
        kubectl(lab, "delete", "node", "stray")


def test_failed_add_is_an_event_of_the_pod(lab: Lab) -> None:
    """The node's agent alone knows why, and has no credentials to say so."""
    made = sandbox(lab, "torn")
    fail_to_add(lab, made)
    wait_until(lambda: "Pod default/torn on node1" in lab.status()["problems"])
    sentence = lab.status()["problems"]["Pod default/torn on node1"]
    assert "none-torn" in sentence
    wait_until(lambda: "Warning AttachmentFailed" in described(lab, "pod", "torn"), MINUTES)
    assert sentence in described(lab, "pod", "torn")
    fail_to_add(lab, made)
    kubectl(lab, "delete", "pod", "torn", "--grace-period=0", "--force", "--wait=false")
    wait_until(lambda: lab.status()["problems"] == {})
    assert events(lab, "Pod", "torn") == [("AttachmentFailed", sentence)], "told once"


def test_denied_connection_is_an_event_of_the_pod(lab: Lab) -> None:
    """The switch has denied it, and the agent has no credentials to say so."""
    opener = lab.pod_add("default", "opener", "node1")
    closed = lab.pod_add("default", "closed", "node2", {"app": "closed"})
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"namespace": "default", "name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "closed"}}, "policyTypes": ["Ingress"]},
    }
    lab.apply(policy)
    try:
        expected = (
            f"policy to the pod denied ICMP from pod default/opener ({opener.address}) to pod"
            f" default/closed ({closed.address}): NetworkPolicy default/closed isolates the pod,"
            " and no rule accepts this connection"
        )

        def is_told() -> bool:
            ping = ["ping", "-c1", "-W1", str(closed.address)]
            lab.exec("default/opener", ping, check=False)
            return ("PolicyDenied", expected) in events(lab, "Pod", "closed")

        wait_until(is_told, MINUTES)
        assert events(lab, "Pod", "closed") == [("PolicyDenied", expected)]
        assert events(lab, "Pod", "opener") == []
        assert lab.status()["problems"] == {}
    finally:
        lab.delete("NetworkPolicy", "default", "closed")
        lab.pod_del("default", "opener")
        lab.pod_del("default", "closed")


def test_reports_arrive_after_the_api_server_was_away(lab: Lab) -> None:
    made = sandbox(lab, "late")
    with killed(lab, lambda: lab.status()["control"]["pids"].get("kube-apiserver")):
        fail_to_add(lab, made)
        wait_until(lambda: "Pod default/late on node1" in lab.status()["problems"])
        # Without the API server nobody leads, and who does not lead writes nothing.
        wait_until(lambda: '"event": "following"' in _log(lab), MINUTES)
    wait_until(lambda: "Warning AttachmentFailed" in described(lab, "pod", "late"), MINUTES)
    kubectl(lab, "delete", "pod", "late", "--grace-period=0", "--force", "--wait=false")
    wait_until(lambda: lab.status()["problems"] == {})


def test_node_whose_host_overlaps_the_cluster_is_reported(lab: Lab) -> None:
    """Once it was set up, its pods go on; the agent, which takes no new ones, says why."""
    wait_until(lambda: condition(lab, "node2").get("status") == "False")
    before = condition(lab, "node2")
    route = ["10.96.7.0/24", "dev", "lo"]
    lab.exec("node2", ["ip", "route", "add", *route])
    try:
        # The agent looks at its host once a minute.
        wait_until(lambda: "Warning NodeNotSetUp" in described(lab, "node", "node2"), MINUTES)
        (sentence,) = lab.status()["problems"].values()
        assert "overlaps the host's route 10.96.7.0/24" in sentence
        assert sentence in described(lab, "node", "node2")
        assert condition(lab, "node2") == before
    finally:
        lab.exec("node2", ["ip", "route", "del", *route])
    wait_until(lambda: "Normal InOrder" in described(lab, "node", "node2"), MINUTES)
    assert lab.status()["problems"] == {}


def _log(lab: Lab) -> str:
    return (lab.layout.control / "log" / "controller.log").read_text()
