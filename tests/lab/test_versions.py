"""Controllers and agents of different versions, both ways: pods are added and stay in sync.

`versions/8db2d4e.tar.xz` has the programs of that commit: `git archive 8db2d4e cni controller
flows node_agent openflow settings LICENSE`. A new version of Sluice must work with its agents and
its controller, since an upgrade replaces one process after another.
"""

import re
import subprocess
import sys
from collections.abc import Iterable
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from lab import Lab, LabError, control, node
from lab.daemons import Daemons
from lab.layout import NodeLayout
from lab.pods import LabPod
from lab.programs import python
from lab.runtime import Runtime
from tests.lab.pings import ping
from tests.waiting import wait_until

VERSIONS = Path(__file__).with_name("versions")


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = tmp_path_factory.mktemp("older")
    archive = VERSIONS / "8db2d4e.tar.xz"
    subprocess.run(["tar", "-xf", archive, "-C", tree], check=True, timeout=60)
    return tree


class Programs:
    """The lab's controller and agents, replaced by older ones and back."""

    def __init__(self, lab: Lab, tree: Path) -> None:
        self.lab = lab
        self._tree = tree

    def agent(self, number: int, *, older: bool) -> None:
        layout = self.lab.layout.node(number)
        daemons = node.daemons(layout)
        daemons.kill("agent")
        self._start(daemons, "node_agent", "agent", [str(layout.settings)], older=older)
        wait_until(lambda: takes_pods(layout))

    def controller(self, *, older: bool, forgetting: Iterable[str] = ()) -> None:
        """Replace it; the switches of the nodes in `forgetting` lose their flows and meters."""
        layout = self.lab.layout
        settings = [str(layout.control / "sluice.yaml"), "--cluster", str(layout.cluster)]
        daemons = control.daemons(layout.controller(1))
        daemons.kill("controller")
        for name in forgetting:
            for command in ("del-flows", "del-meters"):
                self.lab.exec(name, ["ovs-ofctl", "-O", "OpenFlow15", command, "br-int"])
        self._start(daemons, "controller", "controller", settings, older=older)

    def _start(
        self, daemons: Daemons, program: str, name: str, arguments: list[str], *, older: bool
    ) -> None:
        command = (
            [sys.executable, "-P", str(VERSIONS / "run.py"), str(self._tree), program]
            if older
            else python(program)
        )
        daemons.start(name, [*command, "--config", *arguments])


def takes_pods(layout: NodeLayout) -> bool:
    try:
        Runtime(layout).status()
    except LabError:
        return False
    return True


def in_sync(lab: Lab) -> bool:
    status = lab.ask("/v1/status")
    nodes = status["nodes"] if status else {}
    return len(nodes) == 2 and all(each["inSync"] for each in nodes.values())


def audited(lab: Lab, pod: LabPod) -> bool:
    """Whether the controller has found the node's switch right since it has the pod's flows.

    The agent then keeps a copy of all flows, as OpenFlow messages.
    """
    copy = lab.layout.directory / "nodes" / pod.node / "state" / "bridge.openflow"
    return copy.exists() and IPv4Address(pod.address).packed in copy.read_bytes()


def check(lab: Lab, phase: str) -> None:
    """Add a pod on each node, let them reach each other, and have both switches found right."""
    wait_until(lambda: in_sync(lab))
    for name in ("node1", "node2"):
        lab.pod_add("default", f"{phase}-{name}", name)
    pods = [lab.pod("default", f"{phase}-{name}") for name in ("node1", "node2")]
    ping(lab, f"default/{phase}-node1", str(pods[1].address))
    wait_until(lambda: in_sync(lab))
    wait_until(lambda: all(audited(lab, pod) for pod in pods))


def drift(lab: Lab) -> list[str]:
    """What agents and controllers have ever complained of."""
    logs = lab.layout.directory.rglob("*.log")
    return [
        line
        for log in logs
        for line in log.read_text(errors="replace").splitlines()
        if re.search(r'"drift"|differs from what it should|other flows than it should', line)
    ]


def test_agents_and_controllers_of_two_versions_work_together(lab: Lab, older: Path) -> None:
    programs = Programs(lab, older)
    # Nodes are upgraded after the controller ...
    programs.agent(2, older=True)
    check(lab, "older-agent")
    # ... and before it, on switches that no newer controller has ever changed: after a downgrade
    # the meters that the older one does not know would stay, and count as drift.
    programs.controller(older=True, forgetting=["node1", "node2"])
    check(lab, "older-controller")
    # The upgrade of the controller changes nothing on switches that are in sync.
    programs.controller(older=False)
    check(lab, "upgraded")
    assert drift(lab) == []
