"""kubectl, and what tests of a cluster of kubelets ask it."""

import json
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lab import Lab
from lab.patience import PROGRAM_TIMEOUT
from tests.waiting import wait_until

AGNHOST = "registry.k8s.io/e2e-test-images/agnhost"


def kubectl(
    lab: Lab, *arguments: str, manifest: Any = None, user: str = "admin", patience: int = 30
) -> str:
    """What it prints; fails with what it complains of. `patience` is the request's, in seconds."""
    command = lab.kubectl(f"--request-timeout={patience}s", *arguments)
    place = command.index("--kubeconfig") + 1
    command[place] = str(Path(command[place]).with_name(f"{user}.kubeconfig"))
    return run_kubectl(command, arguments, manifest)


def run_kubectl(command: Sequence[str], arguments: Sequence[str], manifest: Any = None) -> str:
    """What it prints; fails with what it complains of. `arguments` are for people."""
    done = subprocess.run(
        command,
        input=json.dumps(manifest) if manifest else "",
        env=os.environ | {"NO_PROXY": "*"},
        capture_output=True,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )
    assert not done.returncode, f"kubectl {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def get(lab: Lab, *arguments: str) -> Any:
    return json.loads(kubectl(lab, "get", *arguments, "-o", "json"))


def agnhost(lab: Lab) -> str:
    """The image's whole name, as every node has it."""
    for node in get(lab, "nodes")["items"]:
        for image in node["status"]["images"]:
            for name in image["names"]:
                if name.startswith(f"{AGNHOST}:"):
                    return str(name)
    raise AssertionError("no node has the image agnhost")


def deploy(lab: Lab, name: str, replicas: int) -> None:
    """A Deployment of agnhost's web server, spread over the nodes; returns once it is there."""
    spread = {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {"app": name}},
        # Else the pods that a rolling update is about to remove count as well.
        "matchLabelKeys": ["pod-template-hash"],
    }
    web = {"httpGet": {"path": "/healthz", "port": 8080}, "periodSeconds": 1}
    container = {
        "name": "web",
        "image": agnhost(lab),
        "imagePullPolicy": "Never",
        "args": ["netexec", "--http-port=8080"],
        "readinessProbe": web,
        "livenessProbe": web | {"failureThreshold": 30},
    }
    pod = {
        "containers": [container],
        "terminationGracePeriodSeconds": 1,
        "topologySpreadConstraints": [spread],
    }
    kubectl(
        lab,
        "apply",
        "-f",
        "-",
        manifest={
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": {"name": name},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": pod},
            },
        },
    )
    rolled_out(lab, name)


def rolled_out(lab: Lab, name: str) -> None:
    kubectl(lab, "rollout", "status", f"deployment/{name}", "--timeout=120s")


def pods(lab: Lab, app: str) -> dict[str, tuple[str, str]]:
    """Node and address of each pod of a Deployment that is not on its way out."""
    found = get(lab, "pods", "-l", f"app={app}")["items"]
    return {
        pod["metadata"]["name"]: (pod["spec"]["nodeName"], pod["status"].get("podIP", ""))
        for pod in found
        if "deletionTimestamp" not in pod["metadata"]
    }


def on_node(found: dict[str, tuple[str, str]], node: str) -> list[tuple[str, str]]:
    """Name and address of those of `pods` that are on a node."""
    return [(name, address) for name, (where, address) in found.items() if where == node]


def pod(lab: Lab, name: str, node: str, **spec: Any) -> Any:
    """The manifest of a pod on a node, without a scheduler; `spec` goes over what is usual."""
    container = {
        "name": "web",
        "image": agnhost(lab),
        "imagePullPolicy": "Never",
        "args": ["netexec", "--http-port=8080"],
    }
    usual = {"nodeName": node, "containers": [container], "terminationGracePeriodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": usual | spec,
    }


@contextmanager
def running_pod(lab: Lab, name: str, node: str, **spec: Any) -> Iterator[str]:
    """A pod for as long as the context lasts; gives its address."""
    kubectl(lab, "create", "-f", "-", manifest=pod(lab, name, node, **spec))
    try:
        wait_until(lambda: get(lab, "pod", name)["status"]["phase"] == "Running", 120)
        yield str(get(lab, "pod", name)["status"]["podIP"])
    finally:
        kubectl(lab, "delete", "pod", name)


def restart_counts(lab: Lab) -> dict[str, int]:
    """How often each container of the cluster was started again, by NAMESPACE/POD/CONTAINER."""
    return {
        f"{pod['metadata']['namespace']}/{pod['metadata']['name']}/{found['name']}": found[
            "restartCount"
        ]
        for pod in get(lab, "pods", "--all-namespaces")["items"]
        for found in pod["status"].get("containerStatuses", [])
    }


def condition(lab: Lab, node: str, kind: str) -> dict[str, Any]:
    """A Node's condition; empty where it has none of the kind."""
    for found in get(lab, "node", node)["status"]["conditions"]:
        if found["type"] == kind:
            return dict(found)
    return {}


def wait_for_nodes(lab: Lab) -> None:
    """Wait until all Nodes are Ready."""
    names = [node["metadata"]["name"] for node in get(lab, "nodes")["items"]]
    wait_until(lambda: all(condition(lab, n, "Ready")["status"] == "True" for n in names), 120)
