"""Callers of CNI that are not ours: the CNI project's own cnitool, and podman."""

import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import Lab
from lab.commands import inside
from lab.layout import NAMESPACES
from lab.network import create_namespace, delete_namespace
from lab.patience import BUILD_TIMEOUT, PROGRAM_TIMEOUT
from tests.lab.test_pods import settled, traces

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py with a pod on node2, which containers on node1 try to reach."""
    lab.pod_add("default", "far", "node2")
    return lab


def far(lab: Lab) -> str:
    return str(lab.pod("default", "far").address)


@pytest.fixture(scope="module")
def cnitool() -> str:
    """Where it is; built if need be."""
    built = subprocess.run(
        [ROOT / "scripts" / "go-tool", "cnitool"],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=BUILD_TIMEOUT,
    )
    return built.stdout.splitlines()[-1]


Call = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def call(lab: Lab, cnitool: str, tmp_path: Path) -> Call:
    """Run cnitool on node1, with a cache of results of its own.

    Its `gc` collects whatever the cache knows, and the machine's may be somebody else's.
    """
    Path("/var/lib/cni").mkdir(parents=True, exist_ok=True)
    node = lab.status()["nodes"]["node1"]
    private = 'mount --bind "$1" /var/lib/cni && shift && exec "$@"'

    def call(verb: str, netns: str) -> subprocess.CompletedProcess[str]:
        tool = [cnitool, verb, "sluice", str(NAMESPACES / netns)]
        return subprocess.run(
            inside(node["namespace"], ["unshare", "-m", "sh", "-c", private, "-", tmp_path, *tool]),
            env={
                "PATH": os.environ["PATH"],
                "CNI_PATH": node["cni_bin"],
                "NETCONFPATH": node["cni_conf"],
            },
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    return call


@pytest.fixture
def netns(lab: Lab) -> Iterator[str]:
    """A container's network namespace; part of the lab, so that it goes with it."""
    name = lab.layout.netns("pod.cnitool")
    create_namespace(name)
    yield name
    delete_namespace(name)


def done(finished: subprocess.CompletedProcess[str]) -> str:
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def ping(lab: Lab, netns: str) -> None:
    command = ["ping", "-n", "-c", "2", "-w", "60", far(lab)]
    subprocess.run(
        inside(netns, command), check=True, stdout=subprocess.DEVNULL, timeout=PROGRAM_TIMEOUT
    )


def test_cnitool_adds_checks_and_deletes(lab: Lab, call: Call, netns: str) -> None:
    before = traces(lab, "node1")
    done(call("status", netns))
    result = json.loads(done(call("add", netns)))
    # It takes the newest version that both know.
    assert result["cniVersion"] == "1.1.0"
    port, interface = result["interfaces"]
    assert (port["name"][0], interface["name"]) == ("c", "eth0")
    assert interface["sandbox"] == str(NAMESPACES / netns)
    ping(lab, netns)
    done(call("check", netns))

    again = call("add", netns)
    assert again.returncode != 0
    assert "DEL comes first" in again.stderr
    ping(lab, netns)

    address = result["ips"][0]["address"]
    subprocess.run(
        ["ip", "-n", netns, "address", "del", address, "dev", "eth0"],
        check=True,
        timeout=PROGRAM_TIMEOUT,
    )
    changed = call("check", netns)
    assert changed.returncode != 0
    assert address.removesuffix("/32") in changed.stderr

    for _ in range(2):
        done(call("del", netns))
    assert settled(lab, "node1", before) == before


def test_cnitool_collects_only_what_it_knows(lab: Lab, call: Call, netns: str) -> None:
    """It has DEL called for what it remembers, then GC, but does not say what is to stay.

    Taken for an empty list, that would be the end of every pod of the node.
    """
    pod = lab.pod_add("default", "stays", "node1")
    before = traces(lab, "node1")
    done(call("add", netns))
    assert traces(lab, "node1") != before
    refused = call("gc", netns)
    assert refused.returncode != 0
    assert "cni.dev/valid-attachments" in refused.stderr
    assert "without it nothing is released" in refused.stderr
    assert settled(lab, "node1", before) == before
    lab.exec("default/far", ["ping", "-n", "-c", "1", "-w", "60", str(pod.address)])
    lab.pod_del("default", "stays")


def test_cnitool_status_without_an_agent(lab: Lab, call: Call, netns: str) -> None:
    done(call("status", netns))
    lab.kill_daemon("node1", "agent")
    refused = call("status", netns)
    assert refused.returncode != 0
    assert "does not answer" in refused.stderr
    lab.up()
    done(call("status", netns))


# podman


def image(path: Path) -> Path:
    """The tar of a root file system that can ping and sleep, out of this machine's programs."""
    files: dict[str, Path] = {}
    for program in ("ping", "sleep"):
        found = shutil.which(program)
        assert found
        files[f"bin/{program}"] = Path(found)
        for word in subprocess.check_output(
            ["ldd", found], text=True, timeout=PROGRAM_TIMEOUT
        ).split():
            if word.startswith("/"):
                files[word.lstrip("/")] = Path(word)
    with tarfile.open(path, "w") as tar:
        for name, file in files.items():
            tar.add(file.resolve(), name)
        for folder in ("etc", "proc", "sys", "dev", "run", "tmp"):
            entry = tarfile.TarInfo(folder)
            entry.type = tarfile.DIRTYPE
            entry.mode = 0o755
            tar.addfile(entry)
    return path


Podman = Callable[..., str]


@pytest.fixture
def podman(lab: Lab) -> Iterator[Podman]:
    """podman on node1, by its own CNI backend, and with its storage here."""
    # Its paths may have no more than 50 characters.
    with tempfile.TemporaryDirectory(prefix="sluice-") as directory:
        yield from _podman(lab, Path(directory))


def _podman(lab: Lab, directory: Path) -> Iterator[Podman]:
    node = lab.status()["nodes"]["node1"]
    settings = directory / "containers.conf"
    settings.write_text(
        f"""
[network]
network_backend = "cni"
cni_plugin_dirs = ["{node["cni_bin"]}"]
network_config_dir = "{node["cni_conf"]}"
default_network = "sluice"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "none"
lock_type = "file"
tmp_dir = "{directory}/podman"
"""
    )
    stored = ["--root", f"{directory}/root", "--runroot", f"{directory}/run"]

    def podman(*arguments: str) -> str:
        finished = subprocess.run(
            inside(node["namespace"], ["podman", *stored, "--storage-driver", "vfs", *arguments]),
            env=os.environ | {"CONTAINERS_CONF": str(settings)},
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert finished.returncode == 0, finished.stderr
        return finished.stdout

    yield podman
    podman("rm", "--all", "--force", "--time", "0")


def test_podman_runs_a_container_in_the_network(lab: Lab, podman: Podman, tmp_path: Path) -> None:
    before = traces(lab, "node1")
    podman("import", str(image(tmp_path / "image.tar")), "localhost/test")
    # It wants higher limits than a container of ours may have where the tests run in one.
    limits = ["--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1024:1024", "--pids-limit", "0"]
    run = ["run", "--detach", "--network", "sluice", *limits]
    for name in ("one", "two"):
        podman(*run, "--name", name, "localhost/test", "/bin/sleep", "1000")

    def networked(name: str) -> dict[str, Any]:
        (found,) = json.loads(podman("inspect", name))
        settings: dict[str, Any] = found["NetworkSettings"]["Networks"]["sluice"]
        return settings

    one, two = networked("one"), networked("two")
    assert one["MacAddress"].startswith("0a:58:0a:f4:01:")
    assert one["Gateway"] == "169.254.1.1"
    ports = set(traces(lab, "node1")["ports"]) - set(before["ports"])  # type: ignore[call-overload]
    assert [port[0] for port in sorted(ports)] == ["c", "c"]

    # To each other, to a pod on another node, and from there.
    once = ["ping", "-n", "-c", "1", "-w", "60"]
    for to in (two["IPAddress"], far(lab)):
        podman("exec", "one", *once, to)
    lab.exec("default/far", [*once, one["IPAddress"]])

    podman("restart", "--time", "0", "two")
    assert networked("two")["IPAddress"] != two["IPAddress"], "addresses are handed out in turn"
    podman("exec", "two", *once, far(lab))
    podman("rm", "--force", "--time", "0", "one", "two")
    assert settled(lab, "node1", before) == before
