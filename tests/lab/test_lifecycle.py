"""A lab comes up whole or not at all, and goes without a trace, whatever happens to it."""

import json
import os
import re
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from cli.main import main
from lab import Lab, LabError
from lab.daemons import kill
from lab.patience import PROGRAM_TIMEOUT
from lab.processes import running
from lab.replicas import leader, leads
from lab.runtime import PluginError
from tests.lab.pings import ping
from tests.waiting import wait_until

SLUICE = [sys.executable, "-m", "cli.main"]


def sluice(*words, stdin=None, environment=None):
    return subprocess.run(
        [*SLUICE, *words],
        input=stdin,
        env=os.environ | (environment or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def machine_network():
    """The machine's own network: what no lab may change."""
    commands = ("ip -brief link", "ip -brief addr", "ip route show table all", "ip rule",
                "nft list ruleset", "sysctl net.ipv4.ip_forward")  # fmt: skip
    shown = {
        command: subprocess.check_output(command.split(), text=True, timeout=PROGRAM_TIMEOUT)
        for command in commands
    }
    # What a router advertised grows older by itself.
    return {command: re.sub(r" expires \d+sec", "", text) for command, text in shown.items()}


def traces(name):
    """Everything on this machine that belongs to a lab."""
    namespaces = [path.name for path in Path("/run/netns").glob(f"sluice.{name}.*")]
    files = [str(path) for path in Path("/run/sluice").glob(f"**/{name}*")]
    mounts = [
        line
        for line in Path("/proc/self/mountinfo").read_text().splitlines()
        if re.search(rf"/{name}/|sluice\.{name}\.", line)
    ]
    return namespaces + files + mounts + processes(name)


def processes(name):
    """Command lines with the lab's directory in them; every daemon's has it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if any(f"/run/sluice-lab/{name}/" in word for word in words):
            found.append(" ".join(words))
    return found


def test_up_starts_everything_and_down_leaves_nothing(name):
    before = machine_network()
    assert sluice("lab", "up", "--name", name, "--nodes", "2").returncode == 0

    status = json.loads(sluice("lab", "status", "--name", name, "--json").stdout)
    listed = subprocess.check_output(["ip", "netns", "list"], text=True, timeout=PROGRAM_TIMEOUT)
    parts = [*status["nodes"].values(), status["control"], status["outside"], status["fabric"]]
    assert len(parts) == 5
    for part in parts:
        assert part["namespace"] in listed
    pids = [pid for node in status["nodes"].values() for pid in node["pids"].values()]
    for pid in [*pids, status["controller"]["pid"]]:
        assert Path(f"/proc/{pid}").is_dir()
    assert len(processes(name)) >= len(pids) + 1
    assert machine_network() == before

    again = sluice("lab", "up", "--name", name, "--nodes", "2")
    assert again.returncode == 0
    assert "up already" in again.stdout
    unchanged = json.loads(sluice("lab", "status", "--name", name, "--json").stdout)
    assert unchanged == status

    other = sluice("lab", "up", "--name", name, "--nodes", "3")
    assert other.returncode == 1
    assert "already up with nodes 2, not 3" in other.stderr

    pod = ["default/a", "--node", "node1", "--name", name]
    assert sluice("lab", "pod", "add", *pod).returncode == 0
    ours = subprocess.Popen(Lab(name).command("default/a", ["sleep", "1000"]))
    assert sluice("lab", "down", "--name", name).returncode == 0
    assert ours.wait(timeout=60) == -signal.SIGKILL
    assert traces(name) == []
    assert machine_network() == before
    assert sluice("lab", "down", "--name", name).returncode == 0


MOMENTS = {
    "first namespace": "/run/netns/sluice.{name}.fabric",
    "switches starting": "{directory}/nodes/node1/ovs/db.sock",
    "controller starting": "{directory}/control/log/controller.pid",
    "agents starting": "{directory}/nodes/node1/log/agent.pid",
    "almost ready": "{directory}/nodes/node1/cni/net.d/10-sluice.conflist",
}


@contextmanager
def start_up(name, moment):
    """An `up` that has got as far as `moment`."""
    command = [*SLUICE, "lab", "up", "--name", name, "--nodes", "2"]
    path = Path(MOMENTS[moment].format(name=name, directory=f"/run/sluice-lab/{name}"))
    with running(command, stderr=subprocess.STDOUT) as up:
        wait_until(path.exists)
        yield up


@pytest.mark.parametrize("moment", MOMENTS)
def test_down_finds_what_a_killed_up_has_left(name, moment):
    before = machine_network()
    with start_up(name, moment):
        pass
    assert traces(name) != []

    assert sluice("lab", "down", "--name", name).returncode == 0
    assert traces(name) == []
    assert machine_network() == before


def test_up_works_after_a_killed_up(name):
    with start_up(name, "switches starting"):
        pass
    assert Lab(name).up(nodes=1)
    assert list(Lab(name).status()["nodes"]) == ["node1"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_up_takes_everything_down(name, number):
    with start_up(name, "agents starting") as up:
        up.popen.send_signal(number)
        assert any("taking everything down" in line for line in up.lines(60))
        up.end(number)  # impatience changes nothing
        assert up.popen.returncode == 130
    assert traces(name) == []


def test_a_failed_up_says_why_and_takes_everything_down(name, tmp_path):
    broken = tmp_path / "controller"
    broken.mkdir()
    (broken / "__init__.py").touch()
    (broken / "__main__.py").write_text("raise SystemExit('the dog ate my flows')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    up = sluice("lab", "up", "--name", name, environment={"PYTHONPATH": path})
    assert up.returncode == 1
    assert "controller" in up.stderr
    assert "the dog ate my flows" in up.stderr
    assert "Traceback" not in up.stderr
    assert traces(name) == []


def test_two_labs_do_not_see_each_other(name):
    other = f"{name}-b"
    with Lab(name).running(nodes=1) as first, Lab(other).running(nodes=1) as second:
        pods = [lab.pod_add("default", "a", "node1") for lab in (first, second)]
        assert pods[0].address == pods[1].address
        second.pod_del("default", "a")
        ping(first, "node1", pods[0].address)
        unanswered = second.exec("node1", ["ping", "-c1", "-W1", pods[1].address], check=False)
        assert unanswered.returncode == 1

        second.down()
        assert traces(other) == []
        ping(first, "node1", pods[0].address)


def test_up_and_down_at_the_same_time_take_turns(name):
    with ThreadPoolExecutor() as pool:
        results = list(
            pool.map(
                lambda word: sluice("lab", word, "--name", name, *["--nodes=1"] * (word == "up")),
                ["up", "up", "down", "down"],
            )
        )
    assert [result.returncode for result in results] == [0, 0, 0, 0], results
    Lab(name).down()
    assert traces(name) == []


def test_up_restarts_daemons_that_have_ended(lab):
    before = lab.status()
    victims = [before["controller"]["pid"], *before["nodes"]["node1"]["pids"].values()]
    kill(victims)
    assert set(lab.status()["nodes"]["node1"]["pids"].values()) == {None}

    assert not lab.up()
    after = lab.status()
    assert after["controller"]["pid"] not in [None, *victims]
    assert not {None, *victims} & set(after["nodes"]["node1"]["pids"].values())
    assert after["nodes"]["node2"] == before["nodes"]["node2"]
    pod = lab.pod_add("default", "after", "node1")
    ping(lab, "node2", pod.address)
    lab.pod_del("default", "after")


def test_nodes_outside_and_control_reach_each_other(lab):
    status = lab.status()
    places = {part: status[part]["address"] for part in ("outside", "control")}
    places |= {node: described["address"] for node, described in status["nodes"].items()}
    for where in places:
        for address in places.values():
            ping(lab, where, address)
    for where in places:
        assert lab.exec(where, ["ip", "-6", "address"]).stdout == ""


RECEIVE = """\
import socket
connection, _ = socket.create_server(("", 7000)).accept()
print(sum(map(len, iter(lambda: connection.recv(1 << 16), b""))))
"""
SEND = """\
import socket, sys
socket.create_connection((sys.argv[1], 7000), 5).sendall(bytes(1 << 22))
"""


def test_tcp_between_nodes_and_outside(lab):
    """A kernel leaves checksums to network cards; Open vSwitch would pass on what it finds."""
    for source, sink in [("outside", "node1"), ("node1", "outside"), ("node1", "node2")]:
        with running(lab.command(sink, [sys.executable, "-c", RECEIVE])) as server:
            wait_until(lambda sink=sink: ":7000" in lab.exec(sink, ["ss", "-tln"]).stdout)
            status = lab.status()
            address = (status["nodes"] | status)[sink]["address"]
            lab.exec(source, [sys.executable, "-c", SEND, address])
            assert server.rest() == f"{1 << 22}\n"


def test_kernel_does_not_answer_what_the_switch_answers(lab):
    address = lab.status()["nodes"]["node1"]["address"]
    asked = lab.exec("control", ["arping", "-c", "2", "-w", "3", "-I", "eth0", address])
    assert "Received 2 response(s)" in asked.stdout


def test_outside_has_no_route_to_pods(lab):
    """So that whatever comes back to a pod from there has been masqueraded."""
    route = lab.exec("fabric", ["ip", "route", "get", "10.244.1.2"], check=False)
    assert route.returncode != 0


def test_a_pod_is_an_object_a_namespace_and_a_port(lab):
    pod = lab.pod_add("default", "web", "node2", {"app": "web"})
    manifest = Path(lab.status()["directory"], "cluster/pods/default.web.yaml")
    written = yaml.safe_load(manifest.read_text())
    assert written["metadata"]["uid"] == pod.uid
    assert written["metadata"]["labels"] == {"app": "web"}
    assert written["spec"]["nodeName"] == "node2"
    assert written["status"]["podIP"] == pod.address
    assert written["status"]["phase"] == "Running"
    assert pod.address.startswith("10.244.2.")
    shown = lab.status()["pods"]["default/web"]
    assert (shown["address"], shown["port"], shown["mac"]) == (pod.address, pod.port, pod.mac)
    assert pod.port in lab.exec("node2", ["ovs-vsctl", "list-ports", "br-int"]).stdout.split()
    assert f"inet {pod.address}/32" in lab.exec("default/web", ["ip", "addr"]).stdout

    lab.pod_del("default", "web")
    assert not manifest.exists()
    assert not Path("/run/netns", pod.netns).exists()
    assert pod.port not in lab.exec("node2", ["ovs-vsctl", "list-ports", "br-int"]).stdout.split()
    with pytest.raises(LabError, match="has no pod default/web"):
        lab.pod_del("default", "web")


def test_pods_added_at_the_same_time(lab):
    names = [f"many{number}" for number in range(8)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        nodes = ["node1", "node2"] * 4
        pods = list(pool.map(lambda name, node: lab.pod_add("default", name, node), names, nodes))
        assert len({pod.address for pod in pods}) == 8
        list(pool.map(lambda name: lab.pod_del("default", name), names))
    assert not [pod for pod in lab.pods() if pod.name.startswith("many")]


REFUSING_PLUGIN = """\
#!/bin/sh
cat > {seen}/$CNI_COMMAND.stdin
env > {seen}/$CNI_COMMAND.env
[ $CNI_COMMAND = ADD ] || exit 0
echo '{{"cniVersion":"1.1.0","code":11,"msg":"not today","details":"come back later"}}'
exit 1
"""


def test_a_refused_pod_leaves_nothing(lab, tmp_path):
    node = lab.status()["nodes"]["node1"]
    plugin, conf = Path(node["cni_bin"], "refuse"), Path(node["cni_conf"], "00-refuse.conflist")
    plugin.write_text(REFUSING_PLUGIN.format(seen=tmp_path))
    plugin.chmod(0o755)
    network = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "refuse", "given": "on"}]}
    conf.write_text(json.dumps(network))
    before = traces(lab.name)
    try:
        with pytest.raises(PluginError, match=r"error 11: not today \(come back later\)"):
            lab.pod_add("default", "refused", "node1")
    finally:
        conf.unlink()
        plugin.unlink()
    assert traces(lab.name) == before
    assert not Path(lab.status()["directory"], "cluster/pods/default.refused.yaml").exists()
    assert "default/refused" not in lab.status()["pods"]

    given = json.loads((tmp_path / "ADD.stdin").read_text())
    assert given == {**network["plugins"][0], "name": "n", "cniVersion": "1.1.0"}
    environments = []
    for command in ("ADD", "DEL"):
        lines = (tmp_path / f"{command}.env").read_text().splitlines()
        environment = dict(line.split("=", 1) for line in lines)
        assert environment.pop("CNI_COMMAND") == command
        environments.append({k: v for k, v in environment.items() if k.startswith("CNI_")})
    add, delete = environments
    assert add == delete
    assert re.fullmatch("[0-9a-f]{64}", add["CNI_CONTAINERID"])
    assert add["CNI_NETNS"] == f"/run/netns/sluice.{lab.name}.pod.default.refused"
    assert add["CNI_IFNAME"] == "eth0"
    assert re.fullmatch(
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=refused;"
        f"K8S_POD_INFRA_CONTAINER_ID={add['CNI_CONTAINERID']};K8S_POD_UID=[0-9a-f-]{{36}}",
        add["CNI_ARGS"],
    )


def test_exec_runs_the_command_itself(lab):
    def execute(*words, stdin=None):
        return sluice("lab", "exec", "--name", lab.name, *words, stdin=stdin)

    assert execute("outside", "--", "cat", stdin="through").stdout == "through"
    assert execute("node1", "--", "sh", "-c", "exit 3").returncode == 3
    assert execute("node1", "--", "no-such-program").returncode == 127
    assert "br-int" in execute("node1", "--", "ovs-vsctl", "list-br").stdout
    assert execute("node1", "--", "ovs-ofctl", "--names", "dump-flows", "br-int").returncode == 0
    assert execute("node1", "--", "ovs-appctl", "version").returncode == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("pod add default/x --node node9", "has no node 'node9', only node1 to node2"),
        ("pod add default/X! --node node1", "default/X! is not a NAMESPACE/NAME"),
        ("pod del default/x", "has no pod default/x"),
        ("exec default/x true", "has no pod default/x"),
        ("exec somewhere true", "has no 'somewhere'"),
    ],
)
def test_mistakes_get_one_sentence(lab, words, sentence):
    result = CliRunner().invoke(main, ["lab", *words.split(), "--name", lab.name])
    assert result.exit_code == 1
    assert sentence in result.output
    assert len(result.output.splitlines()) == 1


def test_an_unknown_lab_gets_one_sentence():
    result = CliRunner().invoke(main, ["lab", "status", "--name", "never-made"])
    assert result.exit_code == 1
    assert result.output.startswith("Error: no lab never-made is up")
    assert not Path("/run/sluice-lab/never-made.lock").exists()


@pytest.mark.parametrize("name", ["", "../x", "a.b", "Lab", "a" * 21])
def test_name_that_cannot_be_a_path_is_refused(name):
    with pytest.raises(LabError, match="1 to 20 of"):
        Lab(name)


def test_lab_without_root_prints_one_clear_sentence(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    for words in (["up"], ["down"], ["status"], ["exec", "outside", "--", "true"]):
        result = CliRunner().invoke(main, ["lab", *words])
        assert result.exit_code == 1
        assert "only root may do that" in result.output


def test_several_controllers_need_an_api_server():
    result = CliRunner().invoke(main, ["lab", "up", "--controllers", "2"])
    assert result.exit_code == 1
    assert "2 controllers elect a leader by a Lease, which needs an API server" in result.output
    assert "--source kube" in result.output


def test_lab_runs_with_a_real_api_server_and_two_controllers(name):
    with Lab(name).running(nodes=1, source="kube", controllers=2, tls=True) as lab:
        pod = lab.pod_add("shop", "web", "node1", {"app": "web"})
        get = lab.kubectl("get", "nodes,pods", "-A", "-o", "json")
        items = json.loads(subprocess.check_output(get, timeout=PROGRAM_TIMEOUT))["items"]
        objects = {(item["kind"], item["metadata"]["name"]): item for item in items}
        assert objects["Node", "node1"]["spec"]["podCIDR"] == "10.244.1.0/24"
        web = objects["Pod", "web"]
        assert web["metadata"]["uid"] == pod.uid
        assert web["status"]["podIP"] == pod.address
        ping(lab, "node1", pod.address)
        status = lab.status()
        assert {"etcd", "kube-apiserver", "controller"} <= status["control"]["pids"].keys()
        assert Path(status["kubeconfig"]).exists()
        assert list(status["controllers"]) == ["control", "control2"]

        # The second controller is in a namespace of its own, and the switch has a session with it.
        nodes = lab.exec("control2", ["kubectl", "get", "nodes", "-o", "name"]).stdout
        assert nodes == "node/node1\n"
        find = ["ovs-vsctl", "--bare", "--columns=target", "find", "controller"]
        wait_until(
            lambda: (
                {"ssl:172.30.0.2:6653", "ssl:172.30.0.3:6653"}
                <= set(lab.exec("node1", [*find, "is_connected=true"]).stdout.split())
            )
        )
        first = leader(lab)
        (standby,) = {"control", "control2"} - {first}
        for leading, following in ((first, standby), (standby, first)):
            wait_until(lambda name=following: lab.ask("/v1/status", controller=name) is None)
            for asked in (None, leading):
                assert lab.ask("/v1/status", controller=asked)["ready"]
            # Whichever is asked first, the leader answers.
            assert sluice("services", "--lab", name).returncode == 0
            if leading == first:
                lab.kill_daemon(first, "controller")
                assert not lab.status()["ready"]
                assert lab.ask("/v1/leader", controller=first) is None
                wait_until(lambda: leads(lab, standby))
                lab.start_daemon(first, "controller")
        assert lab.status()["ready"]
        assert [each["leads"] for each in lab.status()["controllers"].values()].count(True) == 1
        with pytest.raises(LabError, match="control2 has no daemon 'etcd'"):
            lab.start_daemon("control2", "etcd")

        lab.pod_del("shop", "web")
        get = lab.kubectl("get", "pods", "-A", "-o", "name")
        assert subprocess.check_output(get, timeout=PROGRAM_TIMEOUT) == b""
    assert traces(name) == []
