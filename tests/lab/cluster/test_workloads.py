"""A real Kubernetes on Sluice: kubelets and containerds, Deployments, a reboot."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab import Lab
from lab.processes import running
from tests.lab.kube import (
    deploy,
    get,
    kubectl,
    on_node,
    pods,
    restart_counts,
    rolled_out,
    wait_for_nodes,
)
from tests.lab.pings import ping
from tests.labs import unique_name
from tests.waiting import wait_until

OUTSIDE = "203.0.113.10"


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Iterator[Lab]:
    """The cluster with two pods of the Deployment `web` on each node."""
    deploy(lab, "web", 6)
    yield lab
    kubectl(lab, "delete", "deployment", "web", "--cascade=foreground")


def fetch(lab: Lab, where: str, url: str) -> str:
    return lab.exec(where, ["curl", "-sS", "--max-time", "10", url]).stdout


def test_every_pod_reaches_every_pod_without_nat(lab: Lab) -> None:
    found = pods(lab, "web")
    assert {node for node, _ in found.values()} == {"node1", "node2", "node3"}
    for name, (_, own) in found.items():
        for _, address in found.values():
            client = fetch(lab, f"default/{name}", f"http://{address}:8080/clientip")
            assert client.split(":")[0] == own


def test_nodes_reach_pods_and_pods_the_outside(lab: Lab) -> None:
    found = pods(lab, "web")
    for node in ("node1", "node2", "node3"):
        for name, (_, address) in found.items():
            assert fetch(lab, node, f"http://{address}:8080/hostname") == name
    for name in found:
        ping(lab, f"default/{name}", OUTSIDE)


def test_addresses_are_those_of_the_controller_managers_podcidrs(lab: Lab) -> None:
    nodes = {
        node["metadata"]["name"]: node["spec"]["podCIDR"] for node in get(lab, "nodes")["items"]
    }
    described = lab.status()["nodes"]
    assert {name: node["pod_cidr"] for name, node in described.items()} == nodes
    assert len(set(nodes.values())) == 3


def test_exec_logs_and_port_forward(lab: Lab) -> None:
    name = next(iter(pods(lab, "web")))
    assert "--help" in kubectl(lab, "exec", name, "--", "/agnhost", "help")
    assert "Started HTTP server" in kubectl(lab, "logs", name)
    # In the control namespace, where kubectl runs.
    command = lab.kubectl("port-forward", f"pod/{name}", "18080:8080")
    with running(command) as forwarding:
        assert "Forwarding" in forwarding.line()
        assert fetch(lab, "control", "http://127.0.0.1:18080/hostname") == name


def test_the_api_server_reaches_pods_by_its_proxy(lab: Lab) -> None:
    name = next(iter(pods(lab, "web")))
    path = f"/api/v1/namespaces/default/pods/{name}:8080/proxy/hostname"
    assert kubectl(lab, "get", "--raw", path) == name


def test_a_rolling_update_replaces_every_pod(lab: Lab) -> None:
    before = pods(lab, "web")
    kubectl(lab, "rollout", "restart", "deployment/web")
    rolled_out(lab, "web")
    wait_until(lambda: len(pods(lab, "web")) == 6)
    after = pods(lab, "web")
    assert not before.keys() & after.keys()
    # Every address is in its node's hands once.
    assert len({address for _, address in after.values()}) == 6
    for name, (_, address) in after.items():
        assert fetch(lab, "node1", f"http://{address}:8080/hostname") == name


def test_deleted_pod_leaves_nothing(lab: Lab) -> None:
    deploy(lab, "short", 3)
    found = pods(lab, "short")
    assert all(ports(lab, f"default/{name}") for name in found)
    kubectl(lab, "delete", "deployment", "short", "--cascade=foreground")
    wait_until(lambda: not any(ports(lab, f"default/{name}") for name in found))
    wait_until(lambda: not any(address in flows(lab) for _, address in found.values()))


def ports(lab: Lab, pod: str) -> list[str]:
    """The ports that all nodes' Open vSwitch has for a pod."""
    found = []
    for node in lab.status()["nodes"]:
        find = ["--bare", "--columns=name", "find", "interface", f"external_ids:sluice-pod={pod}"]
        found += lab.exec(node, ["ovs-vsctl", *find]).stdout.split()
    return found


def flows(lab: Lab) -> str:
    """Those of all nodes, as one text."""
    dump = ["ovs-ofctl", "dump-flows", "br-int"]
    return "".join(lab.exec(node, dump).stdout for node in lab.status()["nodes"])


def test_a_rebooted_node_brings_its_pods_back(lab: Lab) -> None:
    there = [f"default/{name}/web" for name, _ in on_node(pods(lab, "web"), "node2")]
    assert there
    before = restart_counts(lab)
    lab.reboot("node2")
    wait_for_nodes(lab)

    def all_restarted() -> bool:
        now = restart_counts(lab)
        return all(now.get(each, 0) > before[each] for each in there)

    wait_until(all_restarted, 120)
    rolled_out(lab, "web")
    for name, (_, address) in pods(lab, "web").items():
        wait_until(lambda a=address, n=name: answers(lab, "node1", a, n), 60)
    test_every_pod_reaches_every_pod_without_nat(lab)


def answers(lab: Lab, where: str, address: str, name: str) -> bool:
    command = ["curl", "-sS", "--max-time", "2", f"http://{address}:8080/hostname"]
    return lab.exec(where, command, check=False).stdout == name


def test_cluster_that_is_taken_down_leaves_nothing() -> None:
    name = unique_name()
    lab = Lab(name)
    with lab.running(nodes=1, kubelets=True):
        deploy(lab, "web", 2)
        layout = lab.layout
        assert layout.disk.exists()
    assert not layout.disk.exists()
    assert not layout.directory.exists()
    assert not list(Path("/sys/fs/cgroup").glob(f"**/{layout.cgroup}"))
    mounts = Path("/proc/self/mountinfo").read_text()
    assert name not in mounts
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            assert f"/{name}/".encode() not in (process / "cmdline").read_bytes()
