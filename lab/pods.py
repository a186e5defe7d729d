"""The lab's pods: a Pod object, a network namespace, and what the CNI call gave."""

import contextlib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from lab import network
from lab.commands import LabError, replace_file
from lab.layout import LabLayout, NodeLayout
from lab.runtime import Runtime, Sandbox, new_container_id
from lab.sources import ClusterSource

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(rf"(?=.{{1,253}}$){_LABEL.pattern}(\.{_LABEL.pattern})*")


class LabPod(msgspec.Struct, frozen=True):
    """The lab's record of a pod, as a runtime has of its sandboxes."""

    namespace: str
    name: str
    node: str
    netns: str
    container_id: str
    uid: str = ""
    """Empty until the Pod object is written."""
    port_mappings: tuple[dict[str, Any], ...] = ()
    """Its hostPorts, as CNI has them."""
    result: dict[str, Any] | None = None
    """What ADD gave; None until it has."""

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    @property
    def address(self) -> str | None:
        """Its IPv4 address, without a prefix length."""
        return self.result["ips"][0]["address"].split("/")[0] if self.result else None

    @property
    def mac(self) -> str | None:
        return self._interface(in_sandbox=True).get("mac")

    @property
    def port(self) -> str | None:
        """The name of the host's end of its veth, which is its port on br-int."""
        return self._interface(in_sandbox=False).get("name")

    @property
    def sandbox(self) -> Sandbox:
        return Sandbox(
            self.container_id, self.netns, self.namespace, self.name, self.uid, self.port_mappings
        )

    def describe(self) -> dict[str, Any]:
        """As in `sluice lab status --json`."""
        return {
            "namespace": self.netns,
            "node": self.node,
            "address": self.address,
            "mac": self.mac,
            "pid": None,  # its namespace exists without a process
            "port": self.port,
            "container_id": self.container_id,
            "uid": self.uid,
        }

    def _interface(self, *, in_sandbox: bool) -> dict[str, Any]:
        for interface in (self.result or {}).get("interfaces", []):
            if bool(interface.get("sandbox")) is in_sandbox:
                return dict(interface)
        return {}


@dataclass(frozen=True)
class LabPods:
    """All pods of a lab. Every method raises `LabError`."""

    layout: LabLayout
    source: ClusterSource

    def add(
        self,
        namespace: str,
        name: str,
        node: NodeLayout,
        labels: Mapping[str, str],
        port_mappings: Iterable[Mapping[str, Any]] = (),
    ) -> LabPod:
        """Make a pod, or nothing."""
        if not _LABEL.fullmatch(namespace) or not _SUBDOMAIN.fullmatch(name):
            raise LabError(
                f"{namespace}/{name} is not a NAMESPACE/NAME: only a-z, 0-9 and - are allowed"
            )
        netns = self.layout.pod_netns(namespace, name)
        pod = LabPod(
            namespace, name, node.name, netns, new_container_id(),
            port_mappings=tuple(map(dict, port_mappings)),
        )  # fmt: skip
        self._claim(pod)
        try:
            uid = self.source.add_pod(namespace, name, node.name, labels)
            pod = self._keep(msgspec.structs.replace(pod, uid=uid))
            network.create_namespace(netns)
            result = Runtime(node).add(pod.sandbox)
            pod = self._keep(msgspec.structs.replace(pod, result=result))
            if pod.address is None:
                raise LabError(f"CNI ADD of {pod.key} gave no address")  # noqa: TRY301
            self.source.set_pod_running(namespace, name, pod.address, str(node.address))
        except BaseException:
            # A runtime calls DEL after a failed ADD, and ignores its errors.
            with contextlib.suppress(LabError):
                self._unplug(pod)
            self._remove(pod)
            raise
        return pod

    def delete(self, pod: LabPod) -> None:
        """Unplug a pod and remove it."""
        self._unplug(pod)
        self._remove(pod)

    def get(self, namespace: str, name: str) -> LabPod:
        try:
            record = self.layout.pods / f"{namespace}.{name}.json"
            return msgspec.json.decode(record.read_bytes(), type=LabPod)
        except (OSError, msgspec.MsgspecError, ValueError):
            raise LabError(f"lab {self.layout.name} has no pod {namespace}/{name}") from None

    def all(self) -> list[LabPod]:
        """By namespace and name."""
        found = []
        for record in self.layout.pods.glob("[!.]*.json"):
            with contextlib.suppress(FileNotFoundError):  # it has just been deleted
                found.append(msgspec.json.decode(record.read_bytes(), type=LabPod))
        return sorted(found, key=lambda pod: (pod.namespace, pod.name))

    def _claim(self, pod: LabPod) -> None:
        try:
            # By link: it fails if the name is taken, and never shows a half-written file.
            part = self.layout.pods / f".{pod.container_id}.part"
            part.write_bytes(msgspec.json.encode(pod))
            (self.layout.pods / f"{pod.namespace}.{pod.name}.json").hardlink_to(part)
        except FileExistsError:
            raise LabError(f"lab {self.layout.name} has a pod {pod.key} already") from None
        finally:
            part.unlink(missing_ok=True)

    def _keep(self, pod: LabPod) -> LabPod:
        record = self.layout.pods / f"{pod.namespace}.{pod.name}.json"
        replace_file(record, msgspec.json.encode(pod).decode())
        return pod

    def _unplug(self, pod: LabPod) -> None:
        # Without a uid the Pod was never written, and no ADD was called.
        if pod.uid:
            number = int(pod.node.removeprefix("node"))
            Runtime(self.layout.node(number)).delete(pod.sandbox, pod.result)

    def _remove(self, pod: LabPod) -> None:
        network.delete_namespace(pod.netns)
        self.source.delete_pod(pod.namespace, pod.name)
        (self.layout.pods / f"{pod.namespace}.{pod.name}.json").unlink(missing_ok=True)
