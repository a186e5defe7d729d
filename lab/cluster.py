"""A lab whose nodes run pods: kubelets and containerds beside an API server that has all its parts.

`lab.kubelet` knows the two daemons of one node; here is how they fit into the lab.
"""

import json
import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import apiserver, kubelet, machine, node
from lab.commands import LabError, inside, run
from lab.control import ControlPlane, daemons
from lab.layout import CLUSTER_DNS, CONTROL_ADDRESS, FABRIC_ADDRESS, UNDERLAY, NodeLayout

COREDNS = Path(__file__).with_name("coredns.yaml")
CONTROL_PLANE = ("node1", "node2")
"""Count as nodes of the control plane: controllers that are deployed run there."""


@dataclass(frozen=True)
class KubeletCluster:
    """Every method raises `LabError`."""

    plane: ControlPlane
    images: Path

    def start_runtime(self, it: NodeLayout) -> None:
        """Start containerd, with the images that every cluster has."""
        pause = kubelet.image_names(self.images)["pause"]
        kubelet.start_containerd(it, node.daemons(it), self._binaries, pause)
        kubelet.import_images(it, self._binaries, self.images)

    def start_kubelet(self, it: NodeLayout) -> None:
        """Start kubelet; the API server runs."""
        directory = self.plane.layout.control / "apiserver"
        url = f"https://{CONTROL_ADDRESS}:{apiserver.PORT}"
        kubelet.start_kubelet(it, node.daemons(it), self._binaries, directory / "pki", url)

    def wait_for_node(
        self, it: NodeLayout, *, ready: bool, cancelled: Callable[[], bool] = lambda: False
    ) -> None:
        """Wait until the Node is there with a podCIDR; with `ready`, until it takes pods.

        The control plane then knows the way to its pods, as an API server has to.
        """
        state = "it has not registered"

        def there() -> bool:
            nonlocal state
            daemons(self.plane.places[0]).check()
            try:
                made = self._kubectl("get", "node", it.name, "-o", "json")
            except LabError as error:
                state = str(error)
                return False
            found = json.loads(made)
            state = _why_not_ready(found) if ready else ""
            pod_cidr = found["spec"].get("podCIDR")
            if not pod_cidr:
                state = "it has no podCIDR"
                return False
            hops = {"control": it.address}
            if it.address not in UNDERLAY:
                hops = {"control": FABRIC_ADDRESS, "fabric": it.address}
            for place, hop in hops.items():
                route = ["ip", "route", "replace", pod_cidr, "via", str(hop)]
                run(route, netns=self.plane.layout.netns(place))
            return not state

        ours = node.daemons(it)
        if not ours.wait(there, timeout=120, cancelled=cancelled, pause=0.2):
            raise LabError(f"Node {it.name}: {state}\n{ours.tail('kubelet')}")
        if it.name in CONTROL_PLANE:
            role = "node-role.kubernetes.io/control-plane="
            self._kubectl("label", "node", it.name, role, "--overwrite")

    def start_dns(self) -> None:
        """Write CoreDNS down; it comes up when there are nodes that take pods."""
        values = {
            "image": kubelet.image_names(self.images)["coredns"],
            "cluster_dns": CLUSTER_DNS,
        }
        text = string.Template(COREDNS.read_text()).substitute(values)
        apply = ["apply", "--server-side", "--field-manager=sluice-lab", "-f", "-"]
        self._kubectl(*apply, stdin=text)

    @property
    def _binaries(self) -> Path:
        if self.plane.binaries is None:
            raise LabError("a cluster of kubelets has an API server")
        return self.plane.binaries

    def _kubectl(self, *arguments: str, stdin: str = "") -> str:
        return run(self.plane.kubernetes.command(arguments), stdin=stdin)


def _why_not_ready(found: Any) -> str:
    """Empty if the Node's condition Ready is true."""
    for condition in found.get("status", {}).get("conditions", []):
        if condition["type"] == "Ready":
            return "" if condition["status"] == "True" else str(condition.get("message"))
    return "kubelet has not told of it"


def inside_pod(nodes: Sequence[NodeLayout], pod: str, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` in the network namespace of a pod, given as NAMESPACE/NAME.

    Without kubelet or containerd, which may be what a test has killed. Raises `LabError`.
    """
    for it in nodes:
        find = ["--format=json", "--columns=external_ids", "find", "interface"]
        vsctl = ["ovs-vsctl", f"--db=unix:{it.ovsdb}", "--timeout=10", *find]
        try:
            found = json.loads(run([*vsctl, f"external_ids:sluice-pod={pod}"]))["data"]
        except LabError:  # ovsdb-server of that node does not run
            continue
        for ((_, pairs),) in found:
            netns = dict(pairs)["sluice-netns"]
            return inside(it.netns, machine.enter(it, ["nsenter", f"--net={netns}", *argv]))
    raise LabError(f"no node has an attachment of pod {pod}")
