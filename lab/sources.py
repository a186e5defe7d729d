"""Where the objects of the lab's cluster are: a directory of manifests, or a real API server.

Both hold the same Kubernetes objects. The lab plays all who write them in a cluster: whoever
makes a Pod, the scheduler, and kubelet.
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import yaml

from lab.commands import LabError, complete, inside
from lab.layout import NodeLayout

IMAGE = "registry.k8s.io/pause:3.10"
_NAME_AND_UID = r'{{.metadata.name}} {{.metadata.uid}}{{"\n"}}'


class ClusterSource(Protocol):
    """Every method raises `LabError`."""

    def add_node(self, node: NodeLayout) -> None:
        """Write a Node, ready and with its address, unless it is there."""

    def add_pod(self, namespace: str, name: str, node: str, labels: Mapping[str, str]) -> str:
        """Write a Pod, bound to its node, and return its uid."""

    def set_pod_running(self, namespace: str, name: str, address: str, host: str) -> None:
        """Write what kubelet writes once the sandbox has its address."""

    def delete_pod(self, namespace: str, name: str) -> None:
        """Remove a Pod; one that is not there is no error."""

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Make any other object be as the manifest says, or make it."""

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Remove such an object; one that is not there is no error.

        `namespace` is empty for kinds that have none.
        """


@dataclass(frozen=True)
class DirectorySource:
    """Manifests in nodes/NAME.yaml and pods/NAMESPACE.NAME.yaml, each written by rename."""

    directory: Path

    def add_node(self, node: NodeLayout) -> None:
        path = self.directory / "nodes" / f"{node.name}.yaml"
        if path.exists():
            return
        manifest = _node(node)
        manifest["metadata"] |= {
            "uid": str(uuid.uuid4()),
            "creationTimestamp": _now(),
            # With an API server, the controller writes it.
            "annotations": {"sluice.dev/address": node.interface},
        }
        self._write(path, manifest | {"status": _node_status(node)})

    def add_pod(self, namespace: str, name: str, node: str, labels: Mapping[str, str]) -> str:
        manifest = _pod(namespace, name, node, labels)
        uid = str(uuid.uuid4())
        manifest["metadata"] |= {"uid": uid, "creationTimestamp": _now()}
        self._write(self._pod_path(namespace, name), manifest | {"status": {"phase": "Pending"}})
        return uid

    def set_pod_running(self, namespace: str, name: str, address: str, host: str) -> None:
        path = self._pod_path(namespace, name)
        try:
            manifest = yaml.safe_load(path.read_text())
        except OSError as error:
            raise LabError(f"Pod {namespace}/{name}: {path}: {error.strerror}") from error
        self._write(path, manifest | {"status": _running(address, host)})

    def delete_pod(self, namespace: str, name: str) -> None:
        self._pod_path(namespace, name).unlink(missing_ok=True)

    def apply(self, manifest: Mapping[str, Any]) -> None:
        metadata = manifest["metadata"]
        path = self._path(manifest["kind"], metadata.get("namespace", ""), metadata["name"])
        self._write(path, {**manifest, "metadata": {"creationTimestamp": _now(), **metadata}})

    def delete(self, kind: str, namespace: str, name: str) -> None:
        self._path(kind, namespace, name).unlink(missing_ok=True)

    def _path(self, kind: str, namespace: str, name: str) -> Path:
        file = f"{namespace}.{name}.yaml" if namespace else f"{name}.yaml"
        return self.directory / f"{kind.lower()}s".replace("ys", "ies") / file

    def _pod_path(self, namespace: str, name: str) -> Path:
        return self.directory / "pods" / f"{namespace}.{name}.yaml"

    def _write(self, path: Path, manifest: Mapping[str, Any]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The unfinished file is beside the tree, so that a watcher of the tree never sees it.
        part = self.directory.with_name(f"{self.directory.name}.{path.name}.part")
        part.write_text(yaml.safe_dump(dict(manifest), sort_keys=False))
        part.rename(path)


@dataclass(frozen=True)
class KubernetesSource:
    """A real API server, spoken to by kubectl from within the control namespace."""

    kubectl: Path
    kubeconfig: Path
    netns: str

    def command(self, arguments: Sequence[str]) -> list[str]:
        """The command line of a kubectl call."""
        # Otherwise its cache is in the user's home.
        cache = self.kubeconfig.with_name("kubectl-cache")
        options = ["--kubeconfig", str(self.kubeconfig), "--cache-dir", str(cache)]
        return inside(self.netns, [str(self.kubectl), *options, *arguments])

    def add_node(self, node: NodeLayout) -> None:
        self._run_unless_there(["create", "--validate=false", "-f", "-"], _node(node))
        # By type, as kubelet does: the controller's condition must stay.
        self._patch_status(["node", node.name], _node_status(node), "strategic")

    def add_pod(self, namespace: str, name: str, node: str, labels: Mapping[str, str]) -> str:
        self._run_unless_there(["create", "namespace", namespace])
        made = self._run(
            ["create", "--validate=false", "-o", "json", "-f", "-"],
            _pod(namespace, name, node, labels),
        )
        uid: str = json.loads(made)["metadata"]["uid"]
        return uid

    def add_pods(self, namespace: str, names: Sequence[str], node: str) -> dict[str, str]:
        """Write Pods by one call; their uids by name."""
        self._run_unless_there(["create", "namespace", namespace])
        items = [_pod(namespace, name, node, {}) for name in names]
        made = self._run(
            ["create", "--validate=false", "-f", "-", "-o", f"go-template={_NAME_AND_UID}"],
            {"apiVersion": "v1", "kind": "List", "items": items},
        )
        return dict(line.split() for line in made.splitlines())

    def set_pod_running(self, namespace: str, name: str, address: str, host: str) -> None:
        self._patch_status(["pod", "-n", namespace, name], _running(address, host))

    def delete_pod(self, namespace: str, name: str) -> None:
        now = ["--ignore-not-found", "--grace-period=0", "--force", "--wait=false"]
        self._run(["delete", "pod", "-n", namespace, name, *now])

    def apply(self, manifest: Mapping[str, Any]) -> None:
        self._run(["apply", "--server-side", "--force-conflicts", "-f", "-"], manifest)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        of = ["-n", namespace] if namespace else []
        self._run(["delete", kind, *of, name, "--ignore-not-found"])

    def _patch_status(
        self, what: Sequence[str], status: Mapping[str, Any], kind: str = "merge"
    ) -> None:
        patch = json.dumps({"status": status})
        self._run(["patch", *what, "--subresource=status", f"--type={kind}", "-p", patch])

    def _run_unless_there(
        self, arguments: Sequence[str], manifest: Mapping[str, Any] | None = None
    ) -> None:
        """A `create` of what somebody else may be just creating."""
        try:
            self._run(arguments, manifest)
        except LabError as error:
            if "AlreadyExists" not in str(error):
                raise

    def _run(self, arguments: Sequence[str], manifest: Mapping[str, Any] | None = None) -> str:
        done = complete(
            self.command(["--request-timeout=15s", *arguments]),
            stdin=json.dumps(manifest) if manifest else "",
            # The namespace has no way to a proxy that this machine may use.
            environment={"NO_PROXY": "*"},
        )
        if done.returncode:
            raise LabError(f"kubectl {' '.join(arguments[:3])}: {done.stderr.strip()}")
        return done.stdout.strip()


def _node(node: NodeLayout) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node.name, "labels": {"kubernetes.io/hostname": node.name}},
        "spec": {"podCIDR": str(node.pod_cidr), "podCIDRs": [str(node.pod_cidr)]},
    }


def _node_status(node: NodeLayout) -> dict[str, Any]:
    return {
        "addresses": [
            {"type": "InternalIP", "address": str(node.address)},
            {"type": "Hostname", "address": node.name},
        ],
        "conditions": [_condition("Ready")],
    }


def _pod(namespace: str, name: str, node: str, labels: Mapping[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"namespace": namespace, "name": name, "labels": dict(labels)},
        "spec": {
            "nodeName": node,
            # It never runs: the lab's pods are network namespaces.
            "containers": [{"name": "main", "image": IMAGE}],
        },
    }


def _running(address: str, host: str) -> dict[str, Any]:
    container = {"name": "main", "image": IMAGE, "imageID": "", "restartCount": 0, "ready": True}
    return {
        "phase": "Running",
        "hostIP": host,
        "hostIPs": [{"ip": host}],
        "podIP": address,
        "podIPs": [{"ip": address}],
        "startTime": _now(),
        "containerStatuses": [container | {"state": {"running": {"startedAt": _now()}}}],
        "conditions": [_condition("Initialized"), _condition("Ready"), _condition("PodScheduled")],
    }


def _condition(kind: str) -> dict[str, str]:
    return {"type": kind, "status": "True", "lastTransitionTime": _now(), "reason": "Lab"}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
