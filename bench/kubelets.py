"""kubelet_add_*, pod_start_*: a real Kubernetes that starts pods, against Debian's ptp plugin.

One cluster of three nodes, whose container runtimes are given one network and then the other, in
turns. Both plugins are run by a program that notes how long that takes (`bench/timed.c`): in
containerd's own histogram everything from 10 to 25 ms is one number, and from 250 to 500.
"""

import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from bench.cni import DEBIAN_PLUGINS
from bench.figures import Figure, percentile, versus
from bench.nodes import compiled, unique
from lab import Lab, LabError
from lab.commands import replace_file, run
from lab.control import kubernetes_binaries
from lab.daemons import kill
from lab.kubelet import ctr, image_names, images
from lab.layout import NodeLayout
from lab.processes import running
from lab.runtime import Runtime

Side = Literal["sluice", "ptp"]

NODES = 3
CONF = "00-bench.conflist"
"""Comes before Sluice's own, and a runtime takes the first."""
TIMED = "timed-"
LOG = "timed.log"
LABEL = "bench"
PATIENCE = 300
"""Seconds. kubelet takes some until it removes the sandboxes of pods that are gone."""


@dataclass(frozen=True)
class Turn:
    """What one of the two networks took, in seconds."""

    single: Sequence[float]
    """Of each ADD while pods came one by one."""
    together: Sequence[float]
    """Of each ADD of the pods that came at once."""
    all_running: float
    """From the command that creates those until the last of them was Running."""
    cpu: float
    """What all processors of the machine did in that time, whoever it was for."""


def measure(*, rounds: int = 3, single: int = 15, pods: int = 100) -> list[Figure]:
    """Turns of both; in each `single` pods one by one, then `pods` at once."""
    turns: dict[Side, list[Turn]] = {"sluice": [], "ptp": []}
    with Lab(unique("kubelet")).running(nodes=NODES, kubelets=True) as lab:
        cluster = _prepare(lab)
        order: list[Side] = ["sluice", "ptp"]
        for _ in range(rounds):
            for side in order:
                turns[side].append(cluster.turn(side, single, pods))
            order.reverse()
    ours, theirs = turns["sluice"], turns["ptp"]
    return [
        *_adds("", ours),
        *_adds(".ptp", theirs),
        *versus(
            "pod_start_vs_ptp",
            "s",
            [turn.all_running for turn in ours],
            ("ptp", [turn.all_running for turn in theirs]),
            at_most=1.0,
        ),
        Figure("pod_start_cpu.sluice", "s", [turn.cpu for turn in ours]),
        Figure("pod_start_cpu.ptp", "s", [turn.cpu for turn in theirs]),
    ]


def _adds(whose: str, turns: Sequence[Turn]) -> list[Figure]:
    figures = []
    for name, rounds in (
        ("kubelet_add_ms", [turn.single for turn in turns]),
        ("kubelet_add_at_once_ms", [turn.together for turn in turns]),
    ):
        samples = [1000 * seconds for each in rounds for seconds in each]
        # Of each round one.
        highest = [1000 * percentile(each, 0.99) for each in rounds]
        figures += [
            Figure(f"{name}{whose}", "ms", samples),
            Figure(f"{name}_p99{whose}", "ms", highest),
        ]
    return figures


def _prepare(lab: Lab) -> "_Cluster":
    """Put every plugin where the runtimes look for it."""
    program = compiled("timed.c", lab.layout.directory / "timed")
    plugins = {f"{TIMED}{side}": program for side in ("sluice", "ptp")}
    plugins |= {name: DEBIAN_PLUGINS / name for name in ("ptp", "host-local")}
    for node in lab.layout.nodes(NODES):
        for name, source in plugins.items():
            shutil.copy(source, node.cni_bin / name)
        (node.cni_bin / LOG).touch()
    return _Cluster(
        lab,
        kubernetes_binaries(whole=True),
        image_names(images())["pause"],
        # The controller tells them, which does not run all the time.
        {name: node["pod_cidr"] for name, node in lab.status()["nodes"].items()},
    )


@dataclass(frozen=True)
class _Cluster:
    lab: Lab
    binaries: Path
    image: str
    """Of a container that does nothing."""
    pod_cidrs: Mapping[str, str]

    def turn(self, side: Side, single: int, pods: int) -> Turn:
        """Start pods on one of the networks and remove them; nothing of them is left."""
        if side == "sluice":
            self._give_sluice()
        else:
            self._give_ptp()
        # The first pods of a network pay for what stays, and show that it is the one.
        self._start([f"warm-{number}" for number in range(2 * NODES)])
        self._adds(side)
        for number in range(single):
            self._start([f"single-{number}"])
        one_by_one = self._adds(side)
        cpu = _cpu_seconds()
        took = self._start([f"pod-{number}" for number in range(pods)])
        cpu = _cpu_seconds() - cpu
        together = self._adds(side)
        self._remove_pods()
        return Turn(one_by_one, together, took, cpu)

    @property
    def _nodes(self) -> tuple[NodeLayout, ...]:
        return self.lab.layout.nodes(NODES)

    def _give_sluice(self) -> None:
        """Start Sluice where it does not run, and have the runtimes call its plugin."""
        for node in self._nodes:
            (node.cni_conf / CONF).unlink(missing_ok=True)
        self.lab.up()
        for node in self._nodes:
            _configure(node, Runtime(node).configuration())

    def _give_ptp(self) -> None:
        """Have the runtimes call ptp; Sluice, which would be busy with its pods as well, ends."""
        status = self.lab.status()
        pids = [node["pids"]["agent"] for node in status["nodes"].values()]
        kill(pid for pid in (status["controller"]["pid"], *pids) if pid)
        for node in self._nodes:
            ipam = {
                "type": "host-local",
                "ranges": [[{"subnet": self.pod_cidrs[node.name]}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            }
            _configure(node, {"cniVersion": "1.0.0", "name": "ptp", "type": "ptp", "ipam": ipam})

    def _start(self, names: Sequence[str]) -> float:
        """Create pods; seconds until all are Running, as one is told who watches them."""
        query = f"watch=1&labelSelector={LABEL}&timeoutSeconds={PATIENCE}"
        raw = ["get", "--raw", f"/api/v1/namespaces/default/pods?{query}"]
        waiting = set(names)
        with running(self.lab.kubectl(*raw), env=_ENVIRONMENT) as watch:
            began = time.monotonic()
            self._kubectl("create", "--validate=ignore", "-f", "-", manifest=self._pods(names))
            for line in watch.lines(PATIENCE + 60):
                pod = json.loads(line)["object"]
                if pod["status"].get("phase") == "Running":
                    waiting.discard(pod["metadata"]["name"])
                if not waiting:
                    return time.monotonic() - began
        raise LabError(
            f"pods that are not Running after {PATIENCE} s: {', '.join(sorted(waiting))}"
        )

    def _pods(self, names: Iterable[str]) -> Mapping[str, Any]:
        """Pods that the scheduler spreads evenly, with a container that does nothing."""
        spread = {
            "maxSkew": 1,
            "topologyKey": "kubernetes.io/hostname",
            "whenUnsatisfiable": "DoNotSchedule",
            "labelSelector": {"matchLabels": {LABEL: ""}},
        }
        container = {"name": "pause", "image": self.image, "imagePullPolicy": "Never"}
        spec = {"containers": [container], "topologySpreadConstraints": [spread]}
        pod = {"apiVersion": "v1", "kind": "Pod", "spec": spec}
        metadata = ({"name": name, "labels": {LABEL: ""}} for name in names)
        return {
            "apiVersion": "v1",
            "kind": "List",
            "items": [pod | {"metadata": each} for each in metadata],
        }

    def _adds(self, side: Side) -> list[float]:
        """What each ADD took since the last time; all of them were this side's."""
        found = []
        for node in self._nodes:
            log = node.cni_bin / LOG
            for line in log.read_text().splitlines():
                plugin, command, seconds = line.split()
                if command != "ADD":
                    continue
                if plugin != side:
                    raise LabError(f"{node.name}: a pod was given to {plugin}, not to {side}")
                found.append(float(seconds))
            log.write_text("")
        return found

    def _remove_pods(self) -> None:
        """As a user does; return when the nodes have forgotten them, which is a while later."""
        self._kubectl("delete", "pods", "-l", LABEL, f"--timeout={PATIENCE}s")
        ours = ["containers", "list", "--quiet", 'labels."io.kubernetes.pod.namespace"==default']
        for node in self._nodes:
            deadline = time.monotonic() + PATIENCE
            while left := run(ctr(node, self.binaries, *ours)).split():
                if time.monotonic() > deadline:
                    raise LabError(f"{node.name}: containers that stay: {', '.join(left)}")
                time.sleep(2)

    def _kubectl(self, *arguments: str, manifest: Mapping[str, Any] | None = None) -> None:
        done = subprocess.run(
            self.lab.kubectl(*arguments),
            input=json.dumps(manifest) if manifest else "",
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE + 60,
        )
        if done.returncode:
            raise LabError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")


_ENVIRONMENT = os.environ | {"NO_PROXY": "*"}
"""The control plane's namespace has no way to a proxy that this machine may use."""


def _configure(node: NodeLayout, plugin: dict[str, Any]) -> None:
    """Have the node's runtime call a plugin by way of `timed.c`."""
    network = {key: plugin[key] for key in ("cniVersion", "name")}
    timed = plugin | {"type": TIMED + plugin["type"]}
    replace_file(node.cni_conf / CONF, json.dumps(network | {"plugins": [timed]}))


def _cpu_seconds() -> float:
    """What all processors have done since the machine started (proc(5), stat: cpu)."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split()[1:8]
    )
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")
