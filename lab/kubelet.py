"""containerd and kubelet, which run a node's pods in a lab that is a whole Kubernetes.

Both run among the node's own mounts (`lab.machine`), so their configuration names the usual paths.
"""

import json
import os
from pathlib import Path

import yaml

from lab import kube_pki, machine
from lab.commands import LabError, complete, inside, run
from lab.daemons import Daemons
from lab.layout import CLUSTER_DNS, STATIC_PODS, NodeLayout
from lab.patience import BUILD_TIMEOUT

IMAGES_SCRIPT = Path(__file__).parents[1] / "scripts" / "kube-images"
CONTAINERD = "/run/containerd/containerd.sock"
ARCHIVES = ("cluster.tar", "tests.tar")
"""The images that every node is given, of those that `scripts/kube-images` makes."""


def images() -> Path:
    """Where the images are; makes those that are missing. Raises `LabError`."""
    made = complete([str(IMAGES_SCRIPT)], timeout=BUILD_TIMEOUT, show_errors=True)
    if made.returncode:
        raise LabError(f"{IMAGES_SCRIPT} gave no images; see above")
    return Path(made.stdout.splitlines()[-1])


def image_names(images: Path) -> dict[str, str]:
    """What the images are called: pause, busybox, coredns, agnhost, ..., each its whole name."""
    names: dict[str, str] = json.loads((images / "names.json").read_text())
    return names


def start_containerd(node: NodeLayout, ours: Daemons, binaries: Path, pause: str) -> None:
    """Start containerd, with the image that holds sandboxes; return once it answers.

    Raises `LabError`.
    """
    configuration = node.directory / "containerd.toml"
    configuration.write_text(_containerd_configuration(pause))
    # containerd finds its shim by PATH.
    environment = {"PATH": f"{binaries}:{os.environ.get('PATH', os.defpath)}"}
    argv = [str(binaries / "containerd"), "--config", str(configuration)]
    ours.start("containerd", machine.enter(node, argv), environment)

    def answers() -> bool:
        return complete(ctr(node, binaries, "version"), timeout=30).returncode == 0

    if not ours.wait(answers, timeout=30):
        raise LabError(f"{node.name}: containerd does not answer\n{ours.tail('containerd')}")


def import_images(node: NodeLayout, binaries: Path, images: Path) -> None:
    """Give a node its images, unless it has them. Raises `LabError`."""
    listed = run(ctr(node, binaries, "images", "list", "--quiet")).split()
    if not set(image_names(images).values()) <= set(listed):
        for archive in ARCHIVES:
            command = ["images", "import", "--local", str(images / archive)]
            run(ctr(node, binaries, *command), timeout=300)


def ctr(node: NodeLayout, binaries: Path, *arguments: str) -> list[str]:
    """The command line of a call to the node's containerd, in the namespace of Kubernetes."""
    argv = [str(binaries / "ctr"), "--address", CONTAINERD, "--namespace", "k8s.io", *arguments]
    return inside(node.netns, machine.enter(node, argv))


def start_kubelet(node: NodeLayout, ours: Daemons, binaries: Path, pki: Path, url: str) -> None:
    """Start kubelet, which registers its Node. Raises `LabError`."""
    try:
        kube_pki.certify_node(pki, node.name, node.address)
    except kube_pki.PkiError as error:
        raise LabError(str(error)) from error
    certificate, key = str(pki / f"{node.name}.crt"), str(pki / f"{node.name}.key")
    configuration = node.directory / "kubelet.yaml"
    configuration.write_text(
        yaml.safe_dump(_kubelet_configuration(node, pki / "ca.crt", certificate, key))
    )
    credentials = {"client-certificate": certificate, "client-key": key}
    kubeconfig = node.directory / "kubelet.kubeconfig"
    kubeconfig.write_text(kube_pki.kubeconfig(url, pki / "ca.crt", node.name, credentials))
    argv = [
        str(binaries / "kubelet"),
        f"--config={configuration}",
        f"--kubeconfig={kubeconfig}",
        f"--hostname-override={node.name}",
        f"--node-ip={node.address}",
        # Topology hints need zones.
        f"--node-labels=topology.kubernetes.io/zone=zone-{_zone(node)}",
    ]
    ours.start("kubelet", machine.enter(node, argv))


def _containerd_configuration(pause: str) -> str:
    return f"""\
version = 3
root = "/var/lib/containerd"
state = "/run/containerd"
disabled_plugins = ["io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing"]

[grpc]
address = "{CONTAINERD}"

[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "{pause}"

[plugins."io.containerd.cri.v1.runtime"]
# Not every machine allows to lower it.
restrict_oom_score_adj = true

[plugins."io.containerd.cri.v1.runtime".cni]
bin_dirs = ["/opt/cni/bin"]
conf_dir = "/etc/cni/net.d"
# Otherwise it needs the plugin `loopback`, which other networks install.
use_internal_loopback = true

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = false
"""


def _kubelet_configuration(node: NodeLayout, ca: Path, certificate: str, key: str) -> object:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": str(node.address),
        "healthzBindAddress": "127.0.0.1",
        "authentication": {"anonymous": {"enabled": False}, "x509": {"clientCAFile": str(ca)}},
        "tlsCertFile": certificate,
        "tlsPrivateKeyFile": key,
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "staticPodPath": STATIC_PODS,
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{node.cgroup}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "enforceNodeAllocatable": [],
        "clusterDomain": "cluster.local",
        "clusterDNS": [str(CLUSTER_DNS)],
        "resolvConf": "/etc/resolv.conf",
        # Other programs share the disk: kubelet must not evict pods because they filled it.
        "evictionHard": {"nodefs.available": "0%", "imagefs.available": "0%"},
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        # Otherwise pods that start at the same time wait for one another.
        "registryPullQPS": 0,
        "eventRecordQPS": 50,
        "kubeAPIQPS": 200,
        "kubeAPIBurst": 400,
    }


def _zone(node: NodeLayout) -> int:
    """Of three, in turn: what tests of topology want of three nodes, and of six."""
    return (int(node.name.removeprefix("node")) - 1) % 3 + 1
