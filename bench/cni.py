"""cni_*: plugging pods in and out, against Debian's bridge and host-local plugins.

Both are called as a container runtime calls them: the plugin's program is run in the node's network
namespace, with a pod's namespace that is there already. Rival and Sluice take turns, a pod each.
"""

import json
import os
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pyroute2 import netns

from bench.figures import Figure, steady_rounds, versus
from bench.nodes import sandboxes, unique
from lab import Lab, LabError
from lab.layout import NAMESPACES, NodeLayout
from lab.network import create_namespace
from lab.runtime import IFNAME, Runtime, Sandbox

DEBIAN_PLUGINS = Path("/usr/lib/cni")
WARM_UP = 3
"""Pods of each before those that count: the first makes the rival's bridge."""


def measure(*, rounds: int = 40) -> list[Figure]:
    """Plug in and out, in turns, until the ratios are steady."""
    add: tuple[list[float], list[float]] = ([], [])
    add_del: tuple[list[float], list[float]] = ([], [])
    ratios: list[float] = []
    with Lab(unique("cni")).running(nodes=1) as lab:
        node = lab.layout.node(1)
        sides = [_sluice(node), _bridge(lab)]
        for number in steady_rounds(ratios, rounds + WARM_UP):
            for side, plugin in enumerate(sides):
                with sandboxes(lab, node, [f"pod{number}"]) as (sandbox,):
                    added, result = plugin.call("ADD", sandbox)
                    deleted, _ = plugin.call("DEL", sandbox, {"prevResult": result})
                add[side].append(1000 * added)
                add_del[side].append(1000 * (added + deleted))
            ratios.append(add_del[0][-1] / add_del[1][-1])
    for samples in (*add, *add_del):
        del samples[:WARM_UP]
    return [
        *versus("cni_add_vs_bridge", "ms", add[0], ("bridge", add[1]), at_most=2.0),
        *versus("cni_add_del_vs_bridge", "ms", add_del[0], ("bridge", add_del[1]), at_most=0.8),
    ]


@dataclass(frozen=True)
class _Plugin:
    netns: str
    directory: Path
    configuration: Mapping[str, Any]

    def call(
        self, command: str, sandbox: Sandbox, more: Mapping[str, Any] | None = None
    ) -> tuple[float, dict[str, Any]]:
        """Seconds from starting the program until it has ended, and its result."""
        given = json.dumps({**self.configuration, **(more or {})})
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_PATH": str(self.directory),
            "CNI_CONTAINERID": sandbox.container_id,
            "CNI_NETNS": str(NAMESPACES / sandbox.netns),
            "CNI_IFNAME": IFNAME,
            "CNI_ARGS": sandbox.arguments,
        }
        program = str(self.directory / self.configuration["type"])
        netns.pushns(self.netns)
        try:
            began = time.monotonic()
            done = subprocess.run(
                [program],
                input=given,
                env=environment,
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
            seconds = time.monotonic() - began
        finally:
            netns.popns()
        if done.returncode:
            raise LabError(f"{program}: {command}: {done.stdout}{done.stderr}")
        result: dict[str, Any] = json.loads(done.stdout or "{}")
        return seconds, result


def _sluice(node: NodeLayout) -> _Plugin:
    return _Plugin(node.netns, node.cni_bin, Runtime(node).configuration())


def _bridge(lab: Lab) -> _Plugin:
    """Without masquerade: with it each ADD would run iptables, where ours has it once a node."""
    name = lab.layout.netns("bridge")
    create_namespace(name)
    configuration = {
        "cniVersion": "1.0.0",
        "name": "bench",
        "type": "bridge",
        "bridge": "cni0",
        "isGateway": True,
        "ipam": {
            "type": "host-local",
            "ranges": [[{"subnet": "10.88.0.0/16"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": str(lab.layout.directory / "host-local"),
        },
    }
    return _Plugin(name, DEBIAN_PLUGINS, configuration)
