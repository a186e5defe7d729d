"""The runtime's side of the Container Network Interface, as in containerd.

The plugin is found and called by the specification alone (CNI 1.1.0): configuration on stdin,
parameters in the environment, the result on stdout. It runs in the node's namespaces.
"""

import json
import os
import secrets
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lab.commands import LabError, inside
from lab.layout import NAMESPACES, NodeLayout
from lab.patience import PATIENCE

IFNAME = "eth0"
TIMEOUT = 60 * PATIENCE
"""Seconds. kubelet gives a runtime 4 minutes for a whole sandbox; here less is enough."""


class PluginError(LabError):
    """The plugin refused; `code` is that of the specification's section *Error*."""

    def __init__(self, command: str, node: str, answer: Mapping[str, Any]) -> None:
        self.code = int(answer.get("code", 0))
        details = f" ({answer['details']})" if answer.get("details") else ""
        super().__init__(
            f"CNI {command} on {node}: error {self.code}: {answer.get('msg', '')}{details}"
        )


@dataclass(frozen=True)
class Sandbox:
    """A pod's network namespace, and whose it is."""

    container_id: str
    netns: str
    namespace: str
    pod: str
    uid: str
    port_mappings: tuple[Mapping[str, Any], ...] = ()
    """Its hostPorts, as in `runtimeConfig.portMappings`."""

    @property
    def arguments(self) -> str:
        """CNI_ARGS as containerd sets it."""
        return (
            f"IgnoreUnknown=1;K8S_POD_NAMESPACE={self.namespace};K8S_POD_NAME={self.pod};"
            f"K8S_POD_INFRA_CONTAINER_ID={self.container_id};K8S_POD_UID={self.uid}"
        )


def new_container_id() -> str:
    """64 hexadecimal digits, as containerd's ids are."""
    return secrets.token_hex(32)


@dataclass(frozen=True)
class Runtime:
    """Calls the plugin of one node. Every call raises `CniError` when the plugin refuses."""

    node: NodeLayout

    def configured(self) -> bool:
        """Whether the node's CNI configuration has appeared."""
        return any(self.node.cni_conf.glob("*.conflist"))

    def configuration(self) -> dict[str, Any]:
        """What the plugin is given on stdin: its part of the node's configuration."""
        # The first by name, as runtimes do.
        for path in sorted(self.node.cni_conf.glob("*.conflist")):
            network = json.loads(path.read_text())
            plugin: dict[str, Any] = network["plugins"][0]
            # As runtimes that support 1.1.0: the last of the list, if there is one.
            version = network.get("cniVersions", [network["cniVersion"]])[-1]
            return plugin | {"name": network["name"], "cniVersion": version}
        raise LabError(f"{self.node.name}: no CNI configuration in {self.node.cni_conf}")

    def add(self, sandbox: Sandbox) -> dict[str, Any]:
        """Plug the sandbox in; the result as the plugin gave it."""
        return self._call("ADD", sandbox)

    def delete(self, sandbox: Sandbox, result: Mapping[str, Any] | None) -> None:
        """Undo `add`, of which `result` is what it gave, or None if it gave none."""
        self._call("DEL", sandbox, {"prevResult": result} if result else {})

    def check(self, sandbox: Sandbox, result: Mapping[str, Any]) -> None:
        """Have the plugin compare what is there with what `add` gave."""
        self._call("CHECK", sandbox, {"prevResult": result})

    def status(self) -> None:
        """Ask whether pods can be added."""
        self._call("STATUS", None)

    def _call(
        self, command: str, sandbox: Sandbox | None, more: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        plugin = self.configuration()
        given = {**plugin, **(more or {})}
        environment = {
            "PATH": os.environ["PATH"],
            "CNI_COMMAND": command,
            "CNI_PATH": str(self.node.cni_bin),
        }
        if sandbox:
            environment |= {
                "CNI_CONTAINERID": sandbox.container_id,
                "CNI_NETNS": str(NAMESPACES / sandbox.netns),
                "CNI_IFNAME": IFNAME,
                "CNI_ARGS": sandbox.arguments,
            }
            if sandbox.port_mappings and plugin.get("capabilities", {}).get("portMappings"):
                given["runtimeConfig"] = {"portMappings": sandbox.port_mappings}
        try:
            done = subprocess.run(
                inside(self.node.netns, [str(self.node.cni_bin / plugin["type"])]),
                input=json.dumps(given),
                env=environment,
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(
                f"CNI {command} on {self.node.name}: no answer in {TIMEOUT:.0f} s"
            ) from None
        try:
            answer = json.loads(done.stdout or "{}")
        except ValueError:
            answer = None
        if not isinstance(answer, dict) or (done.returncode and "code" not in answer):
            said = (done.stdout + done.stderr).strip() or "nothing"
            raise LabError(
                f"CNI {command} on {self.node.name}: exit code {done.returncode}, "
                f"and an answer that is not of the specification: {said}"
            )
        if done.returncode:
            raise PluginError(command, self.node.name, answer)
        return answer
