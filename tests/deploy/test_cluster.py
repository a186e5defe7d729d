"""A real Kubernetes gets its network, by kubectl or Helm, and its nodes back as they were."""

import json
import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from lab import Lab
from lab.control import kubernetes_binaries
from lab.patience import PROGRAM_TIMEOUT
from tests.deploy.conftest import KUSTOMIZE
from tests.deploy.helm import CHART, NAMESPACE, VALUES
from tests.lab.kube import deploy, get, kubectl, pods, wait_for_nodes
from tests.lab.viewer import new_user, sluice
from tests.labs import unique_name
from tests.waiting import wait_until

NODES = ("node1", "node2", "node3")
WORKLOADS = ("deployment/sluice-controller", "daemonset/sluice-agent")

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
        ctr = [str(kubernetes_binaries(whole=True) / "ctr"), "-n", "k8s.io", "images", "import"]
        for node in NODES:
            lab.exec(node, [*ctr, "--local", str(images)], timeout=200)
        yield lab


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
        "flows node1 --table Forwarding": "Node node2: to the pods of a peer",
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
    assert "your user lacks the permission to list namespaces" in done.stderr
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


def every_kind_of_traffic_passes(lab: Lab) -> None:
    """As the administrator, who may make pods; they are gone after that."""
    call = lab.kubectl()
    kubeconfig = Path(call[call.index("--kubeconfig") + 1])
    done = sluice(lab, kubeconfig, "connectivity", "--json")
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    rows = json.loads(done.stdout)["rows"]
    assert all(row["passed"] for row in rows)
    assert {"pod to pod, UDP", "node to NodePort", "denied by policy"} <= {r["kind"] for r in rows}
    wait_until(lambda: "sluice-connectivity" not in kubectl(lab, "get", "namespaces"))


def release(lab: Lab, helm: Path, *arguments: str | Path) -> None:
    """Run Helm as the administrator; it must succeed."""
    call = lab.kubectl()
    kubeconfig = call[call.index("--kubeconfig") + 1]
    words = [helm, *arguments, "--namespace", NAMESPACE, "--kubeconfig", kubeconfig]
    done = subprocess.run(
        lab.command("control", list(map(str, words))),
        env=os.environ | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )
    assert not done.returncode, done.stderr


def remove_pods(lab: Lab) -> None:
    kubectl(lab, "delete", "deployment", "web")
    kubectl(lab, "-n", "kube-system", "scale", "deployment", "coredns", "--replicas=0")
    wait_until(lambda: not pods_of_the_network(lab))


def versions(lab: Lab, names: Iterable[str]) -> list[object]:
    """What changes when somebody writes a workload's spec, or data."""
    found = [get(lab, "-n", NAMESPACE, name) for name in names]
    return [(one["metadata"].get("generation"), one.get("data")) for one in found]


@pytest.mark.timeout(600)  # with a cluster of kubelets made and removed, on a busy machine
def test_from_apply_to_delete(lab: Lab, tmp_path: Path) -> None:
    before = looks(lab)
    kubectl(lab, "apply", "-k", str(KUSTOMIZE / "lab"))
    rolled_out(lab, NAMESPACE, *WORKLOADS)
    wait_for_nodes(lab)
    deploy(lab, "web", 6)
    everybody_reaches_everybody(lab)
    assert looks(lab) != before
    a_viewer_asks_through_a_port_forward(lab, tmp_path)
    every_kind_of_traffic_passes(lab)

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


@pytest.mark.timeout(600)
def test_helm_from_install_to_uninstall(lab: Lab, helm: Path) -> None:
    before = looks(lab)
    given = ["--values", VALUES / "lab.yaml"]
    release(lab, helm, "install", "sluice", CHART, "--create-namespace", *given)
    rolled_out(lab, NAMESPACE, *WORKLOADS)
    wait_for_nodes(lab)
    deploy(lab, "web", 6)
    everybody_reaches_everybody(lab)

    # A new version of both, one node after the other; what runs does not mind.
    new = [f"--set={name}.podAnnotations.version=new" for name in ("controller", "agent")]
    release(lab, helm, "upgrade", "sluice", CHART, "--reuse-values", *new)
    rolled_out(lab, NAMESPACE, *WORKLOADS)
    everybody_reaches_everybody(lab)
    for name in WORKLOADS:
        template = get(lab, "-n", NAMESPACE, name)["spec"]["template"]
        assert template["metadata"]["annotations"] == {"version": "new"}

    remove_pods(lab)
    release(lab, helm, "upgrade", "sluice", CHART, "--reuse-values", "--set=uninstall=true")
    rolled_out(lab, NAMESPACE, "daemonset/sluice-uninstall")
    release(lab, helm, "uninstall", "sluice", "--wait")
    kubectl(lab, "delete", "namespace", NAMESPACE, "--timeout=120s")
    assert looks(lab) == before
