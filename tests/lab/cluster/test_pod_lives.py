"""How pods come and go on a real node, in whatever order kubelet and containerd have it."""

import contextlib
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lab import Lab, daemons
from lab.runtime import PluginError, Runtime, Sandbox
from tests.lab.kube import get, kubectl, pod, running_pod, wait_for_nodes
from tests.lab.pings import ping
from tests.lab.test_pods import settled, traces
from tests.waiting import wait_until

pytestmark = pytest.mark.cluster

NODES = ("node1", "node2", "node3")


@pytest.fixture(scope="module")
def friend(lab: Lab) -> Iterator[str]:
    """The address of a pod on node3, which is there all the time."""
    with running_pod(lab, "friend", "node3") as address:
        yield address


def namespaces(lab: Lab, node: str) -> set[str]:
    return set(lab.exec(node, ["ls", "/run/netns"]).stdout.split())


@contextmanager
def nothing_left(lab: Lab) -> Iterator[None]:
    """After the context, and a while for kubelet, no node has anything that it had not before."""
    before = {node: (traces(lab, node), namespaces(lab, node)) for node in NODES}
    yield
    for node, (traced, named) in before.items():
        wait_until(lambda n=node, there=named: namespaces(lab, n) == there, 120)
        assert settled(lab, node, traced) == traced


def interface(lab: Lab, node: str, name: str) -> dict[str, str]:
    """What Open vSwitch remembers of the port of a pod; empty where it has none."""
    find = ["--format=json", "--columns=external_ids", "find", "interface"]
    find.append(f"external_ids:sluice-pod=default/{name}")
    rows = json.loads(lab.exec(node, ["ovs-vsctl", *find]).stdout)["data"]
    return dict(rows[0][0][1]) if rows else {}


def several(lab: Lab, name: str, count: int, **spec: Any) -> Any:
    """The manifests of pods on all nodes in turn, with the label that is their name."""
    made = [pod(lab, f"{name}-{n}", NODES[n % len(NODES)], **spec) for n in range(count)]
    for manifest in made:
        manifest["metadata"]["labels"] = {"app": name}
    return {"apiVersion": "v1", "kind": "List", "items": made}


def test_pods_deleted_during_their_add_leave_nothing(lab: Lab) -> None:
    with nothing_left(lab):
        for turn in range(5):
            name = f"brief{turn}"
            # Without grace the API forgets them at once, and the switch never gets their flows.
            grace = 0 if turn == 0 else 1
            made = several(lab, name, 10, terminationGracePeriodSeconds=grace)
            kubectl(lab, "create", "-f", "-", manifest=made)
            # Each time a little later in the life of a sandbox.
            time.sleep(0.2 * turn)
            kubectl(lab, "delete", "pods", "-l", f"app={name}", "--wait=false")
        for turn in range(5):
            wait_until(lambda t=turn: not get(lab, "pods", "-l", f"app=brief{t}")["items"], 120)


def test_pods_start_after_containerd_was_killed_during_adds(lab: Lab, friend: str) -> None:
    with nothing_left(lab):
        kubectl(lab, "create", "-f", "-", manifest=several(lab, "hard", 12))
        wait_until(lambda: any(interface(lab, "node1", f"hard-{n}") for n in range(12)))
        status = lab.status()
        daemons.kill([status["nodes"][node]["pids"]["containerd"] for node in NODES])
        for node in NODES:
            lab.start_daemon(node, "containerd")
        wait_until(lambda: running(lab, "hard") == 12, 120)
        for n in range(12):
            ping(lab, f"default/hard-{n}", friend)
        kubectl(lab, "delete", "pods", "-l", "app=hard")
    wait_for_nodes(lab)


def running(lab: Lab, app: str) -> int:
    """How many pods of this label run."""
    found = get(lab, "pods", "-l", f"app={app}")["items"]
    return sum(each["status"]["phase"] == "Running" for each in found)


def test_a_job_of_many_short_pods_leaves_nothing(lab: Lab) -> None:
    template = pod(lab, "short", "", restartPolicy="Never")["spec"]
    del template["nodeName"]
    template["containers"][0]["args"] = ["help"]
    spec = {"completions": 30, "parallelism": 10, "template": {"spec": template}}
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "short"}, "spec": spec}
    with nothing_left(lab):
        kubectl(lab, "create", "-f", "-", manifest=job)
        wait_until(lambda: get(lab, "job", "short")["status"].get("succeeded") == 30, 120)
        # Their sandboxes go with their end; the pods are still there to be asked for their logs.
        assert len(get(lab, "pods", "-l", "job-name=short")["items"]) == 30
    kubectl(lab, "delete", "job", "short", "--cascade=foreground")


def test_static_pod_gets_its_network(lab: Lab, friend: str) -> None:
    """Its sandbox carries the hash of its manifest; the API knows it by its mirror's uid."""
    node = lab.layout.node(2)
    file = node.static_pods / "static.json"
    manifest = pod(lab, "static", "")
    del manifest["spec"]["nodeName"]
    with nothing_left(lab):
        # Half a file would be read as well.
        part = node.directory / "static.part"
        part.write_text(json.dumps(manifest))
        part.rename(file)
        try:
            wait_until(lambda: phase(lab, "static-node2") == "Running")
            mirror = get(lab, "pod", "static-node2")
            at = mirror["status"]["podIP"]
            ping(lab, "default/static-node2", friend)
            ping(lab, "default/friend", at)
            hash_ = mirror["metadata"]["annotations"]["kubernetes.io/config.hash"]
            assert interface(lab, "node2", "static-node2")["sluice-pod-uid"] == hash_
            assert mirror["metadata"]["uid"] != hash_
        finally:
            file.unlink()
        wait_until(lambda: not phase(lab, "static-node2"))


def phase(lab: Lab, name: str) -> str:
    """Empty where there is no such pod."""
    found = json.loads(kubectl(lab, "get", "pod", name, "--ignore-not-found", "-o", "json") or "{}")
    return str(found.get("status", {}).get("phase", ""))


def test_a_pod_in_the_host_s_network_is_no_attachment(lab: Lab) -> None:
    before = traces(lab, "node2")
    container = pod(lab, "host", "node2")["spec"]["containers"][0]
    container["args"] = ["netexec", "--http-port=18080", "--udp-port=-1"]
    with running_pod(lab, "host", "node2", hostNetwork=True, containers=[container]) as address:
        assert address == lab.status()["nodes"]["node2"]["address"]
        assert interface(lab, "node2", "host") == {}
        assert traces(lab, "node2") == before


def test_recreated_sandbox_keeps_its_pod_reachable(lab: Lab, friend: str) -> None:
    """As kubelet makes it when the process that holds a sandbox has died."""
    with nothing_left(lab), running_pod(lab, "anew", "node1") as first:
        old = interface(lab, "node1", "anew")
        os.kill(sandbox_process(lab, "default/anew"), signal.SIGKILL)
        wait_until(lambda: restarted(lab, "anew"), 120)
        new = interface(lab, "node1", "anew")
        assert new["sluice-sandbox"] != old["sluice-sandbox"]
        # The old one rests before anybody is given it.
        assert new["sluice-address"] != first
        wait_until(lambda: get(lab, "pod", "anew")["status"]["podIP"] == new["sluice-address"])
        ping(lab, "default/friend", new["sluice-address"])
        ping(lab, "default/anew", friend)
        dump = ["ovs-ofctl", "dump-flows", "br-int"]
        wait_until(lambda: first not in lab.exec("node1", dump).stdout)


def restarted(lab: Lab, name: str) -> bool:
    (container,) = get(lab, "pod", name)["status"]["containerStatuses"]
    return container["restartCount"] > 0 and "running" in container["state"]


def sandbox_process(lab: Lab, where: str) -> int:
    """The process id of a pod's `pause`."""
    namespace = lab.exec(where, ["readlink", "/proc/self/ns/net"]).stdout.strip()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            name = (process / "comm").read_text().strip()
            if name == "pause" and str((process / "ns" / "net").readlink()) == namespace:
                return int(process.name)
    raise AssertionError(f"no sandbox of {where}")


def test_repeated_add_is_refused_and_repeated_del_succeeds(lab: Lab, friend: str) -> None:
    """A runtime that has lost an answer asks once more."""
    ids = interface(lab, "node3", "friend")
    runtime = Runtime(lab.layout.node(3))
    again = Sandbox(
        ids["sluice-sandbox"], ids["sluice-netns"], "default", "friend", ids["sluice-pod-uid"]
    )
    with pytest.raises(PluginError, match=r"CNI_CONTAINERID.*has eth0 already.*DEL comes first"):
        runtime.add(again)
    # Another sandbox of the same pod, whose interface is there already.
    other = Sandbox("0" * 64, again.netns, again.namespace, again.pod, again.uid)
    before = traces(lab, "node3")
    with pytest.raises(PluginError, match="eth0"):
        runtime.add(other)
    for _ in range(2):  # of which nothing is known any more
        runtime.delete(other, None)
    assert settled(lab, "node3", before) == before
    assert interface(lab, "node3", "friend") == ids
    ping(lab, "node1", friend)
