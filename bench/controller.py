"""The real controller in a network namespace, out of a directory of manifests.

A lab has one too; this one stands alone, and its ranges have room for thousands of nodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import yaml

from bench.nodes import bare_lab
from flows import names
from flows.view import Attachment, Node
from lab import Lab, LabError
from lab.commands import replace_file
from lab.control import ControlPlane
from lab.daemons import Daemons, kill
from lab.layout import API_PORT, OPENFLOW_PORT
from lab.network import configure
from lab.programs import python, write_settings
from settings import ClusterSettings, Controller, Kubernetes, Settings

CLUSTER = ClusterSettings(
    pod_range=IPv4Network("10.0.0.0/8"),
    service_range=IPv4Network("172.16.0.0/16"),
    host_ranges=(IPv4Network("172.20.0.0/14"),),
)
FIRST_NODE_ADDRESS = IPv4Address("172.20.0.1")

Manifest = Mapping[str, Any]


def node(number: int) -> Node:
    """The node with this number, from 1: its own address and its own /24."""
    cidr = IPv4Network((int(CLUSTER.pod_range[0]) + (number << 8), 24))
    return Node(f"node{number}", f"uid-{number}", FIRST_NODE_ADDRESS + (number - 1), cidr)


def node_manifest(of: Node) -> Manifest:
    """As the API server would give it, without what nobody reads."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": of.name,
            "uid": of.uid,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"kubernetes.io/hostname": of.name},
        },
        "spec": {"podCIDR": str(of.pod_cidr), "podCIDRs": [str(of.pod_cidr)]},
        "status": {"addresses": [{"type": "InternalIP", "address": str(of.address)}]},
    }


def pod(on: Node, number: int) -> tuple[Attachment, Manifest]:
    """The pod with this number, from 1, on a node: its attachment and its manifest."""
    name, uid = f"pod-{on.name}-{number}", f"uid-{on.name}-{number}"
    address = on.gateway + number
    port = names.port_name("default", name, uid, "eth0", uid)
    ofport = names.FIRST_ATTACHMENT_OFPORT + number - 1
    manifest = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": "default",
            "uid": uid,
            "creationTimestamp": "2026-01-01T00:00:00Z",
            "labels": {"app": f"app-{number}"},
        },
        "spec": {
            "nodeName": on.name,
            "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}],
        },
        "status": {
            "phase": "Running",
            "hostIP": str(on.address),
            "podIP": str(address),
            "podIPs": [{"ip": str(address)}],
        },
    }
    return Attachment(port, ofport, address, f"default/{name}"), manifest


def write_manifests(path: Path, manifests: Iterable[Manifest]) -> None:
    """One file of the watched directory, by rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    replace_file(path, yaml.dump_all(manifests, Dumper=dumper, sort_keys=False))


@dataclass(frozen=True)
class StandaloneController:
    """The controller of a lab that has no other; it listens on the loopback of a namespace."""

    lab: Lab
    netns: str
    address: str = f"127.0.0.1:{OPENFLOW_PORT}"

    @property
    def cluster(self) -> Path:
        """The watched directory."""
        return self.lab.layout.cluster

    @property
    def daemons(self) -> Daemons:
        return Daemons(self.netns, self.lab.layout.control / "log")

    def start(self, *, kubeconfig: Path | None = None, lags: Path | None = None) -> int:
        """Start it; its process id. It does not listen yet.

        With a kubeconfig it asks that API server instead of reading the directory. `lags` is
        where `bench.ticking` writes how late its event loop runs.
        """
        settings = self.lab.layout.control / "sluice.yaml"
        own = Controller(
            openflow=self.address,
            api=f"127.0.0.1:{API_PORT}",
            api_socket=self.lab.layout.api_socket,
            kubernetes=Kubernetes(kubeconfig),
            plain_tcp=True,
        )
        write_settings(settings, Settings(cluster=CLUSTER, controller=own))
        arguments = ["--config", str(settings)]
        if kubeconfig is None:
            arguments += ["--cluster", str(self.cluster)]
        program = ["controller"] if lags is None else ["bench.ticking", str(lags)]
        return self.daemons.start("controller", python(*program, *arguments))

    def stop(self) -> None:
        kill(self.daemons.pids().values())
        self.daemons.forget_ended()

    def wait(self, nodes: Sequence[str] = (), timeout: float = 60) -> None:
        """Until it has read the cluster, and these nodes are in sync. Raises `LabError`."""

        def ready() -> bool:
            status = self.status()
            return status["ready"] and all(status["nodes"][name]["inSync"] for name in nodes)

        if not self.daemons.wait(ready, timeout=timeout):
            tail = self.daemons.tail("controller")
            raise LabError(f"the controller is not ready after {timeout:.0f} s\n{tail}")

    def status(self) -> Mapping[str, Any]:
        """What it says of nodes and problems."""
        plane = ControlPlane(self.lab.layout, "geneve", binaries=None, kubelets=False, tls=False)
        return plane.status() or {"ready": False, "nodes": {}, "problems": {}}


@contextmanager
def standalone(name: str, *, nodes: int = 0) -> Iterator[StandaloneController]:
    """A place for a controller, which is not started yet: in the first node, if there are any.

    The nodes have a switch and no agent.
    """
    with bare_lab(name, nodes) as lab:
        netns = lab.layout.node(1).netns if nodes else lab.layout.netns("control")
        # As on a real network. With segments of 64 KB a receiver that is behind for a moment
        # makes the kernel's sender wait for a timer of 0.2 s.
        configure(netns, ["link set lo mtu 1500"])
        yield StandaloneController(lab, netns)
