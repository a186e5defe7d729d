"""A real Kubernetes gets its network, by kubectl or Helm, and its nodes back as they were."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from lab import Lab
from lab.control import kubernetes_binaries
from lab.patience import PATIENCE, PROGRAM_TIMEOUT
from lab.traffic import ping
from tests.deploy import readme
from tests.deploy.conftest import KUSTOMIZE
from tests.deploy.helm import CHART, NAMESPACE
from tests.lab.kube import deploy, get, kubectl, on_node, pods, running_pod, wait_for_nodes
from tests.lab.losses import overflows
from tests.lab.viewer import new_user, sluice
from tests.labs import unique_name
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
SECTION = readme.read(readme.README.read_text())
NODES = ("node1", "node2", "node3")
WORKLOADS = ("deployment/sluice-controller", "daemonset/sluice-agent")

# What differs in the lab from the values of the README.
ADDRESSES_OF_THE_LAB = {
    "settings": {"agent": {"controllers": ["172.30.1.1", "172.30.1.2"], "datapath": "netdev"}},
    "apiServer": {"host": "172.30.0.2"},
}
LONGEST_COMMAND = 320 * PATIENCE
"""Seconds. `status --wait` gives up after 300."""

# What an agent changes on its node. Of nftables only what has our name: kubelet has tables, too.
LOOK = """\
ovs-vsctl --columns=bridges,external_ids,other_config,ssl list Open_vSwitch
ovs-vsctl --columns=name list Interface
ip -o link | cut -d: -f2
ip -4 route show table all
ip neigh show nud permanent
nft list tables | grep sluice
sysctl net.ipv4.ip_forward
find /etc/cni/net.d /opt/cni/bin /run/sluice /var/lib/sluice /run/netns
"""


@pytest.fixture(scope="module")
def lab(images: Path) -> Iterator[Lab]:
    """Three nodes without a pod network, which have our images."""
    with Lab(unique_name()).running(kubelets=True, sluice=False) as lab:
        make, load = SECTION.images
        assert make.startswith("make image ")
        load = load.replace("sluice-images.tar", str(images))
        for node in NODES:
            lab.exec(node, with_programs(load, kubernetes_binaries(whole=True)), timeout=200)
        yield lab


def with_programs(command: str, *folders: Path) -> list[str]:
    """A command of a shell that finds programs in these folders, too."""
    path = ":".join(map(str, folders))
    return ["sh", "-c", 'PATH="$0:$PATH" exec bash -ec "$1"', path, command]


def looks(lab: Lab) -> dict[str, str]:
    return {node: lab.exec(node, ["sh", "-c", LOOK]).stdout for node in NODES}


def rolled_out(lab: Lab, namespace: str, *names: str) -> None:
    for name in names:
        wait = ["rollout", "status", name, "--timeout=150s"]
        done = subprocess.run(
            lab.kubectl("-n", namespace, *wait),
            capture_output=True,
            text=True,
            check=False,
            timeout=PROGRAM_TIMEOUT,
        )
        if done.returncode:
            said = kubectl(lab, "-n", namespace, "describe", "pods")
            logs = subprocess.run(
                lab.kubectl("-n", namespace, "logs", name, "--all-containers", "--all-pods"),
                capture_output=True, text=True, check=False,
            timeout=PROGRAM_TIMEOUT)  # fmt: skip
            pytest.fail(f"{done.stderr}\n{said}\n{logs.stdout}{logs.stderr}")


def everybody_reaches_everybody(lab: Lab) -> None:
    found = pods(lab, "web")
    assert {node for node, _ in found.values()} == {*NODES}
    for name, (_, own) in found.items():
        for _, address in found.values():
            url = f"http://{address}:8080/clientip"
            command = ["curl", "-sS", "--max-time", "10", url]
            client = lab.exec(f"default/{name}", command).stdout
            assert client.split(":")[0] == own


def pods_of_the_network(lab: Lab) -> list[str]:
    return [
        pod["metadata"]["name"]
        for pod in get(lab, "pods", "-A")["items"]
        if not pod["spec"].get("hostNetwork")
    ]


@contextmanager
def nothing_lost(lab: Lab) -> Iterator[None]:
    """No packet of a ping every 10 ms between pods, within a node and between two."""
    found = pods(lab, "web")
    (one, _), (_, beside) = on_node(found, "node1")
    (_, across), *_ = on_node(found, "node2")
    before = overflows(lab)
    with ping(lab, f"default/{one}", beside) as near, ping(lab, f"default/{one}", across) as far:
        yield
        time.sleep(0.5)
        for each in near.stop(), far.stop():
            assert each.sent > 100
            assert each.lost <= overflows(lab) - before + each.unread, each


def controllers(lab: Lab) -> dict[str, str]:
    """The Pods of the controllers that stay, by the address of their node."""
    found = get(lab, "-n", NAMESPACE, "pods", "-l", "app.kubernetes.io/name=sluice-controller")
    return {
        pod["status"].get("hostIP", ""): pod["metadata"]["name"]
        for pod in found["items"]
        if "deletionTimestamp" not in pod["metadata"]
    }


def leading_pod(lab: Lab) -> str:
    """The Pod of the controller that leads."""
    lease = get(lab, "-n", NAMESPACE, "lease", "sluice-controller")
    address, _, _ = lease["metadata"]["annotations"]["sluice.dev/address"].rpartition(":")
    return controllers(lab)[address]


def evict(lab: Lab, pod: str) -> str:
    """As `kubectl drain` does; what the API server says."""
    eviction = {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"name": pod, "namespace": NAMESPACE},
    }
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    done = subprocess.run(
        lab.kubectl("create", "--raw", path, "-f", "-"),
        input=json.dumps(eviction),
        env=os.environ | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )
    return f"{done.stdout}{done.stderr}"


def controllers_are_replaced_one_after_the_other(lab: Lab) -> None:
    """By a new version, and by an eviction; new pods and running ones do not notice."""
    old = controllers(lab)
    assert old.keys() == {"172.30.1.1", "172.30.1.2"}
    with nothing_lost(lab):
        kubectl(lab, "-n", NAMESPACE, "rollout", "restart", "deployment/sluice-controller")
        # Not on the nodes of the ping: in the userspace datapath that can cost a tunnel a packet.
        with running_pod(lab, "added-meanwhile", "node3"):
            rolled_out(lab, NAMESPACE, "deployment/sluice-controller")
        new = controllers(lab)
        assert new.keys() == old.keys()
        assert not set(new.values()) & set(old.values())

    with nothing_lost(lab):
        wait_until(lambda: leading_pod(lab) in new.values())
        leader = leading_pod(lab)
        (standby,) = set(new.values()) - {leader}
        assert '"Success"' in evict(lab, leader)
        # Not both at the same time: then nobody would lead.
        assert "would violate the pod's disruption budget" in evict(lab, standby)
        wait_until(lambda: leading_pod(lab) == standby)
        rolled_out(lab, NAMESPACE, "deployment/sluice-controller")


def a_viewer_asks_through_a_port_forward(lab: Lab, folder: Path) -> None:
    new_user(lab, "viewer", folder / "viewer", viewer=True)
    done = sluice(lab, folder / "viewer", "status", "--wait", "--timeout", "60")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert done.stdout.startswith("switches: 3 of 3 in sync, 3 connected; ")
    new_user(lab, "stranger", folder / "stranger", viewer=False)
    (one, *_) = (f"default/{name}" for name in pods(lab, "web"))
    change = folder / "deny.yaml"
    change.write_text(DENY_ALL)
    verbs = {
        "status": "switches: 3 of 3 in sync",
        "check": "node1: nothing is wrong",
        "flows node1 --table PeerWay": "Node node2: to the pods of a peer",
        "services": "default/kubernetes",
        f"explain {one}": " on Node ",
        f"trace {one} svc/default/kubernetes --reply": "Service default/kubernetes sends it to",
        f"policy {one}": "no policy selects it",
        f"what-if -f {change}": "lose",
        f"wait pod/{one}": "switches hold it",
        "top --once": one,
        "drops": "REASON",
        f"bundle -o {folder / 'bundle.tar.zst'}": "flows of 3 nodes",
    }
    wrong = []
    for verb, expected in verbs.items():
        done = sluice(lab, folder / "viewer", *verb.split())
        if expected not in f"{done.stdout}{done.stderr}":
            wrong.append(f"{verb}: {done.stdout}{done.stderr}")
        (folder / "bundle.tar.zst").unlink(missing_ok=True)
        done = sluice(lab, folder / "stranger", *verb.split())
        if done.stderr != LACKS.format("sluice-viewer"):
            wrong.append(f"{verb}: a stranger gets {done.stdout}{done.stderr}")
    assert wrong == []
    # To look does not mean to read along, or to make pods.
    capture = ["capture", one, "-o", str(folder / "pcap")]
    assert sluice(lab, folder / "viewer", *capture).stderr == LACKS.format("sluice-capturer")
    done = sluice(lab, folder / "viewer", "connectivity")
    assert "your user lacks the permission to get daemonsets" in done.stderr
    kubectl(lab, "create", "rolebinding", "viewer-captures", "-n", NAMESPACE,
            "--role=sluice-capturer", "--serviceaccount=default:viewer")  # fmt: skip
    assert sluice(lab, folder / "viewer", *capture, "--seconds", "1").returncode == 0


LACKS = (
    "Error: namespace sluice-system: your user lacks the permission to create"
    " serviceaccounts/token {}\n"
)
DENY_ALL = """
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: deny-all, namespace: default}
spec: {podSelector: {}, policyTypes: [Ingress]}
"""


def as_written(lab: Lab, helm: Path, folder: Path, *commands: str) -> str:
    """Run commands of the README as an administrator in a folder; what they print."""
    programs = Path(sys.executable).parent, helm.parent
    printed = ""
    for command in commands:
        done = subprocess.run(
            lab.command("control", with_programs(command, *programs)),
            cwd=folder,
            env=os.environ | {"NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=False,
            timeout=LONGEST_COMMAND,
        )
        assert not done.returncode, f"{command}: {printed}{done.stdout}{done.stderr}"
        printed += done.stdout
    return printed


def remove_pods(lab: Lab) -> None:
    kubectl(lab, "delete", "deployment", "web")
    kubectl(lab, "-n", "kube-system", "scale", "deployment", "coredns", "--replicas=0")
    wait_until(lambda: not pods_of_the_network(lab))


def versions(lab: Lab, names: Iterable[str]) -> list[object]:
    """What changes when somebody writes a workload's spec, or data."""
    found = [get(lab, "-n", NAMESPACE, name) for name in names]
    return [(one["metadata"].get("generation"), one.get("data")) for one in found]


@pytest.mark.timeout(900)  # with a cluster of kubelets made and removed, on a busy machine
def test_from_apply_to_delete(lab: Lab, tmp_path: Path) -> None:
    before = looks(lab)
    kubectl(lab, "apply", "-k", str(KUSTOMIZE / "lab"))
    rolled_out(lab, NAMESPACE, *WORKLOADS)
    wait_for_nodes(lab)
    deploy(lab, "web", 6)
    everybody_reaches_everybody(lab)
    assert looks(lab) != before
    a_viewer_asks_through_a_port_forward(lab, tmp_path)
    controllers_are_replaced_one_after_the_other(lab)

    # Applied again, nothing changes: neither a Pod nor the CA.
    kept = (*WORKLOADS, "secret/sluice-ca", "configmap/sluice-ca")
    applied = versions(lab, kept)
    kubectl(lab, "apply", "-k", str(KUSTOMIZE / "lab"))
    assert versions(lab, kept) == applied

    remove_pods(lab)
    kubectl(lab, "delete", "-k", str(KUSTOMIZE / "lab"), "--timeout=120s")
    kubectl(lab, "apply", "-k", str(KUSTOMIZE / "uninstall"))
    rolled_out(lab, "sluice-uninstall", "daemonset/sluice-uninstall")
    kubectl(lab, "delete", "-k", str(KUSTOMIZE / "uninstall"), "--timeout=120s")
    assert looks(lab) == before
    # They stay pending until there is a network again.
    kubectl(lab, "-n", "kube-system", "scale", "deployment", "coredns", "--replicas=2")


@pytest.mark.timeout(900)  # each command has a limit of its own
def test_helm_from_install_to_uninstall(lab: Lab, helm: Path, tmp_path: Path) -> None:
    """The commands of the README, in a folder like a clone, with the addresses of the lab."""
    (tmp_path / "deploy").symlink_to(ROOT / "deploy")
    values = readme.merged(SECTION.values, ADDRESSES_OF_THE_LAB)
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    before = looks(lab)

    install_program, *check_nodes = SECTION.before
    assert install_program == "pipx install '.[cli]'"  # It is installed already.
    found = as_written(lab, helm, tmp_path, *check_nodes)
    for one in ("cluster", *NODES):
        assert f"{one}: nothing is wrong\n" in found
    assert looks(lab) == before
    too_early = [f"! kubectl sluice {verb} 2>&1" for verb in ("status", "connectivity")]
    said = as_written(lab, helm, tmp_path, *too_early)
    assert said.count("namespace sluice-system: Sluice is not installed in it") == len(too_early)

    printed = as_written(lab, helm, tmp_path, *SECTION.install)
    assert "switches: 3 of 3 in sync, 3 connected; " in printed
    assert printed.count(": nothing is wrong\n") == len(NODES)
    assert "not checked" not in printed
    for kind in ("pod to pod, UDP", "pod to DNS", "node to NodePort", "denied by policy"):
        assert f"\n{kind} " in printed
    wait_until(lambda: "sluice-connectivity" not in kubectl(lab, "get", "namespaces"))
    deploy(lab, "web", 6)
    everybody_reaches_everybody(lab)

    # A new version of both, one node after the other; what runs does not mind.
    new = " ".join(f"--set={name}.podAnnotations.version=new" for name in ("controller", "agent"))
    upgrade = f"helm upgrade sluice {CHART} --namespace {NAMESPACE} --reuse-values {new}"
    as_written(lab, helm, tmp_path, upgrade)
    rolled_out(lab, NAMESPACE, *WORKLOADS)
    everybody_reaches_everybody(lab)
    for name in WORKLOADS:
        template = get(lab, "-n", NAMESPACE, name)["spec"]["template"]
        assert template["metadata"]["annotations"] == {"version": "new"}

    as_written(lab, helm, tmp_path, *SECTION.remove)
    assert looks(lab) == before
