"""What is wrong on a whole, running cluster: it is named, costs nobody else, and is mended."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from flows import names
from lab import Lab, control, node
from lab.programs import python
from lab.runtime import PluginError
from lab.sources import DirectorySource
from tests.lab.test_pods import cookies
from tests.waiting import wait_until


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py with a pod on each of its two nodes."""
    for pod, where in (("a", "node1"), ("b", "node2")):
        lab.pod_add("default", pod, where)
    return lab


def ping(lab: Lab, where: str, pod: str) -> None:
    address = str(lab.pod("default", pod).address)
    lab.exec(where, ["ping", "-n", "-q", "-c", "2", "-i", "0.2", "-W", "5", address])


def problems(lab: Lab) -> dict[str, str]:
    found: dict[str, str] = lab.status()["problems"]
    return found


def kill(lab: Lab) -> list[str]:
    """SIGKILL the controller; its command line."""
    pid = lab.status()["controller"]["pid"]
    words = Path("/proc", str(pid), "cmdline").read_text().split("\0")[:-1]
    lab.kill_daemon("control", "controller")
    return words


@contextmanager
def without_controller(lab: Lab) -> Iterator[None]:
    """It is killed, and in the end started again."""
    words = kill(lab)
    try:
        yield
    finally:
        control.daemons(lab.layout.controller(1)).start("controller", words)
        # With a file that is bad the cluster is never whole, and `up` would wait for that.
        wait_until(lambda: _connected(lab))


def _connected(lab: Lab) -> bool:
    status = lab._control(lab._spec()).status()
    return bool(status) and all(node["connected"] for node in status["nodes"].values())


def manifest(lab: Lab, pod: str) -> Path:
    return lab.layout.cluster / "pods" / f"default.{pod}.yaml"


@pytest.mark.parametrize("bad", ["half", "empty", "brackets"])
def test_bad_file_at_the_start_is_reported(lab: Lab, bad: str) -> None:
    """Its pod keeps its flows; whatever else there is goes on, and others can be added."""
    file = manifest(lab, "a")
    good = file.read_text()
    before = {name: cookies(lab, name) for name in ("node1", "node2")}
    with without_controller(lab):
        file.write_text(
            {"half": good[: len(good) // 2] + ": [", "empty": "", "brackets": "[" * 99999}[bad]
        )
    try:
        wait_until(
            lambda: problems(lab).get("file pods/default.a.yaml", "").startswith("cannot be read: ")
        )
        ping(lab, "default/b", "a")
        lab.pod_add("default", f"c-{bad}", "node1")
        ping(lab, "default/b", f"c-{bad}")
        for name, flows in before.items():
            assert flows <= cookies(lab, name)
    finally:
        file.write_text(good)
    wait_until(lambda: problems(lab) == {})
    ping(lab, "default/b", "a")
    # Now that all is known, what is gone goes.
    lab.pod_del("default", f"c-{bad}")
    wait_until(lambda: {name: cookies(lab, name) for name in before} == before)


def test_file_that_is_being_written_is_not_read(lab: Lab) -> None:
    file = manifest(lab, "a")
    good = file.read_text()
    before = cookies(lab, "node1")
    with file.open("w") as writer:
        wait_until(lambda: "somebody is writing it" in str(problems(lab)))
        writer.write(good[: good.index("spec:")])  # a pod without a node, if one believed it
        writer.flush()
        ping(lab, "default/b", "a")
        assert cookies(lab, "node1") == before
        writer.write(good[good.index("spec:") :])
    wait_until(lambda: problems(lab) == {})
    assert cookies(lab, "node1") == before


def test_port_with_an_address_of_another_node_is_refused(lab: Lab) -> None:
    source = DirectorySource(lab.layout.cluster)
    uid = source.add_pod("default", "stray", "node1", {})
    port = names.port_name("default", "stray", uid, "eth0", "sandbox")
    stranger = lab.pod("default", "b").mac
    before = cookies(lab, "node1")
    vsctl = ["ovs-vsctl", "--", "add-port", "br-int", port, "--", "set", "Interface", port]
    try:
        lab.exec("node1", [*vsctl, "type=internal", "ofport_request=500", f'mac="{stranger}"'])
        address = lab.pod("default", "b").address
        said = f"address {address} is outside spec.podCIDR 10.244.1.0/24 of Node node1"
        wait_until(lambda: problems(lab) == {f"port {port} of node1": said})
        assert cookies(lab, "node1") == before
        ping(lab, "default/a", "b")
    finally:
        lab.exec("node1", ["ovs-vsctl", "--if-exists", "del-port", "br-int", port])
        source.delete_pod("default", "stray")
    wait_until(lambda: problems(lab) == {})


@pytest.fixture
def small(lab: Lab, tmp_path: Path) -> Iterator[None]:
    """node2 has room for one pod, whose address is handed out again at once."""
    lab.pod_del("default", "b")
    layout = lab.layout.node(2)
    given = lab.layout.cluster / "nodes" / "node2.yaml"
    whole = given.read_text()

    def restart(settings: dict[str, Any]) -> None:
        file = tmp_path / "sluice.yaml"
        file.write_text(yaml.safe_dump(settings))
        ours = node.daemons(layout)
        pid = ours.pid("agent")
        assert pid
        os.kill(pid, signal.SIGTERM)
        wait_until(lambda: ours.pid("agent") is None)
        ours.start("agent", python("node_agent", "--config", str(file)))

    settings = yaml.safe_load(layout.settings.read_text())
    restart({"agent": settings["agent"] | {"quarantine": 0.0, "addTimeout": 3.0}})
    file = given.with_suffix(".part")
    file.write_text(whole.replace("10.244.2.0/24", "10.244.2.0/30"))
    file.rename(given)
    remembered = ["ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids"]
    wait_until(lambda: "10.244.2.0/30" in lab.exec("node2", remembered).stdout)
    yield
    file.write_text(whole)
    file.rename(given)
    restart(settings)
    wait_until(lambda: "10.244.2.0/24" in lab.exec("node2", remembered).stdout)


@pytest.mark.usefixtures("small")
def test_pod_recreated_with_the_same_address_without_the_controller(lab: Lab) -> None:
    """Whatever its predecessor left on the switch: ADD waits for its own flows, and in vain."""
    _add_when_ready(lab, "again")
    first = lab.pod("default", "again")
    assert first.address == "10.244.2.2"
    with pytest.raises(
        PluginError, match=r"Node node2: spec\.podCIDR 10\.244\.2\.0/30 is full"
    ) as full:
        lab.pod_add("default", "another", "node2")
    assert full.value.code == 101
    ping(lab, "default/a", "again")
    with without_controller(lab):
        lab.pod_del("default", "again")
        with pytest.raises(PluginError, match="got no flows") as refused:
            lab.pod_add("default", "again", "node2")
        assert refused.value.code == 11
        ports = lab.exec("node2", ["ovs-vsctl", "list-ports", "br-int"]).stdout.split()
        assert not [port for port in ports if names.is_attachment_port(port)]
    _add_when_ready(lab, "again")
    second = lab.pod("default", "again")
    assert second.address == first.address
    assert second.port != first.port
    ping(lab, "default/a", "again")
    lab.pod_del("default", "again")


def _add_when_ready(lab: Lab, pod: str) -> None:
    """As kubelet does: again, while the node says `try again`."""

    def added() -> bool:
        try:
            lab.pod_add("default", pod, "node2")
        except PluginError as error:
            if error.code != 11:
                raise
            return False
        return True

    wait_until(added)
