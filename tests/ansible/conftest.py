"""A lab of two nodes of its own, and a third that is a machine for Ansible to set up."""

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import Lab, network
from lab.commands import inside
from lab.layout import (
    CONTROL_ADDRESS,
    FABRIC_ADDRESS,
    NAMESPACES,
    POD_RANGE,
    SERVICE_RANGE,
    UNDERLAY,
    NodeLayout,
)
from lab.network import UPLINK, configure
from lab.patience import BUILD_TIMEOUT
from lab.sources import DirectorySource
from tests.ansible.machine import Machine

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Play:
    """How a run of a playbook ended; `changed` and `failed` are the tasks' names."""

    output: str
    returncode: int

    @property
    def changed(self) -> list[str]:
        return self._tasks("changed")

    @property
    def failed(self) -> list[str]:
        return self._tasks("fatal|failed")

    def _tasks(self, outcome: str) -> list[str]:
        tasks = re.split(r"^(?:TASK|RUNNING HANDLER) \[", self.output, flags=re.MULTILINE)[1:]
        return [
            task.partition("]")[0].removeprefix("sluice : ")
            for task in tasks
            if re.search(rf"^({outcome}): ", task, re.MULTILINE)
        ]


@dataclass(frozen=True)
class Site:
    """The lab, its third node, and the machine from which Ansible reaches it: the lab's control."""

    lab: Lab
    node: NodeLayout
    machine: Machine
    directory: Path
    ansible: Path

    @property
    def cluster(self) -> DirectorySource:
        return DirectorySource(self.lab.layout.cluster)

    def play(self, playbook: str, **variables: Any) -> Play:
        """Run a playbook as its README says, with what it names replaced by the lab's."""
        tls = self.lab.layout.directory / "tls"
        wheelhouse = subprocess.check_output(
            [ROOT / "scripts" / "wheelhouse"], text=True, timeout=BUILD_TIMEOUT
        ).strip()
        inventory = {
            "sluice_controllers": [str(CONTROL_ADDRESS)],
            "sluice_pod_range": str(POD_RANGE),
            "sluice_service_range": str(SERVICE_RANGE),
            "sluice_tls_authority": {"certificate": f"{tls}/ca.pem", "key": f"{tls}/ca.key"},
            # The userspace datapath: there is no other on the machines that run this.
            "sluice_datapath": "netdev",
            "sluice_wheelhouse": wheelhouse,
            "sluice_ready_timeout": 180,
            **variables,
        }
        self._write_inventory(inventory)
        command = [str(self.ansible / "ansible-playbook"), "-i", f"{self.directory}/hosts.yml"]
        done = subprocess.run(
            inside(self.lab.layout.netns("control"), [*command, playbook]),
            cwd=ROOT / "ansible",
            # Two runs at once have machines with one address.
            env=os.environ
            | {
                "ANSIBLE_HOME": f"{self.directory}/home",
                "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{self.directory}/ssh",
                "ANSIBLE_HOST_KEY_CHECKING": "false",
                "ANSIBLE_NOCOLOR": "1",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
            timeout=BUILD_TIMEOUT,
        )
        return Play(done.stdout, done.returncode)

    def _write_inventory(self, variables: Mapping[str, Any]) -> None:
        connection = {
            "ansible_host": str(self.node.address),
            "ansible_user": "root",
            "ansible_ssh_private_key_file": f"{self.directory}/key",
            "ansible_ssh_common_args": "-o UserKnownHostsFile=/dev/null",
        }
        groups = {"sluice_nodes": {"hosts": {self.node.name: connection}, "vars": dict(variables)}}
        (self.directory / "hosts.yml").write_text(yaml.safe_dump(groups))


@pytest.fixture
def site() -> Iterator[Site]:
    lab = Lab(f"a{os.getpid()}")
    # podman's paths may have no more than 50 characters.
    directory = Path(tempfile.mkdtemp(prefix="sluice-"))
    machine = Machine("node3", directory)
    try:
        ansible = subprocess.check_output(
            [ROOT / "scripts" / "ansible"], text=True, timeout=BUILD_TIMEOUT
        ).strip()
        key = directory / "key"
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key],
            check=True,
            timeout=BUILD_TIMEOUT,
        )
        lab.up(nodes=2, tls=True)
        node = lab.layout.node(3)
        network.connect(lab.layout, lab.layout.nodes(3), "netdev")
        configure(
            node.netns,
            [
                f"link set {UPLINK} up",
                f"addr add {node.address}/{UNDERLAY.prefixlen} dev {UPLINK}",
                f"route add default via {FABRIC_ADDRESS}",
            ],
        )
        machine.start(NAMESPACES / node.netns, key.with_suffix(".pub").read_text())
        yield Site(lab, node, machine, directory, Path(ansible))
    finally:
        machine.stop()
        lab.down()
        shutil.rmtree(directory)
