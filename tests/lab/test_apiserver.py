"""etcd and kube-apiserver in a namespace of their own: up, killed, up again, and refused."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from lab import apiserver
from lab.control import kubernetes_binaries
from lab.patience import PROGRAM_TIMEOUT
from tests.namespaces import namespace

NETNS = f"sluice-apiserver-{os.getpid()}"
ADDRESS = "10.99.0.2"
Start = Callable[..., apiserver.RunningApiServer]
Kubectl = Callable[..., str]
Processes = dict[str, list[subprocess.Popen[bytes]]]


@pytest.fixture(scope="module")
def binaries() -> Path:
    return kubernetes_binaries()


@pytest.fixture
def processes() -> Iterator[Processes]:
    """A namespace with `ADDRESS` in it; what is started there, by name. All ends with the test."""
    started: Processes = {"etcd": [], "kube-apiserver": []}
    with namespace(NETNS, f"{ADDRESS}/24", "fd99::2/64 nodad"):
        try:
            yield started
        finally:
            for process in started["kube-apiserver"] + started["etcd"]:
                process.kill()
                process.wait(timeout=60)


@pytest.fixture
def start(processes: Processes, tmp_path: Path, binaries: Path) -> Start:
    def spawn(name: str, argv: Sequence[str]) -> int:
        with (tmp_path / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                ["nsenter", f"--net=/run/netns/{NETNS}", *argv], stdout=log, stderr=log
            )
        processes[name].append(process)
        return process.pid

    def start(**options: Any) -> apiserver.RunningApiServer:
        given = {
            "netns": NETNS,
            "directory": tmp_path / "api",
            "address": ADDRESS,
            "service_range": "10.96.0.0/16",
            "binaries": binaries,
            "spawn": spawn,
            "logs": tmp_path,
        }
        return apiserver.start(**given | options)

    return start


@pytest.fixture
def kubectl(binaries: Path) -> Kubectl:
    def run(kubeconfig: Path, *arguments: str, manifest: Any = None) -> str:
        return subprocess.run(
            [
                *("nsenter", f"--net=/run/netns/{NETNS}", str(binaries / "kubectl")),
                *("--kubeconfig", str(kubeconfig), "--cache-dir", str(kubeconfig.parent / "c")),
                *arguments,
            ],
            input=json.dumps(manifest) if manifest else "",
            env=os.environ | {"NO_PROXY": "*"},
            capture_output=True,
            text=True,
            check=True,
            timeout=PROGRAM_TIMEOUT,
        ).stdout

    return run


POD = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {"name": "a", "namespace": "default"},
    "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "none"}]},
}


def test_objects_survive_every_daemon(
    start: Start,
    processes: Processes,
    kubectl: Kubectl,
) -> None:
    first = start()
    assert first.url == f"https://{ADDRESS}:6443"
    kubectl(first.kubeconfig, "create", "-f", "-", manifest=POD)
    addresses = {"podIP": "10.244.1.7", "podIPs": [{"ip": "10.244.1.7"}]}
    status = json.dumps({"status": {"phase": "Running", **addresses}})
    kubectl(first.kubeconfig, "patch", "pod", "a", "--subresource=status", "-p", status)
    credentials = [path.read_text() for path in first.kubeconfig.parent.glob("*.kubeconfig")]
    assert len(credentials) == 4

    def counts() -> list[int]:
        return [len(started) for started in processes.values()]

    assert start() == first, "what runs is kept"
    assert counts() == [1, 1]

    for victims in (["kube-apiserver"], ["kube-apiserver"], ["etcd", "kube-apiserver"]):
        before = counts()
        running = start()
        for name in victims:
            os.kill(running.pids[name], signal.SIGKILL)
            processes[name][-1].wait(timeout=60)
        again = start()
        assert counts() == [
            count + (name in victims) for count, name in zip(before, processes, strict=True)
        ]
        for kubeconfig in (again.kubeconfig, again.controller_kubeconfig):
            shown = kubectl(kubeconfig, "get", "pods", "-o", "wide")
            assert "10.244.1.7" in shown
            assert "node1" in shown
    assert [path.read_text() for path in first.kubeconfig.parent.glob("*.kubeconfig")] == (
        credentials
    )


def test_only_root_reads_credentials(start: Start, tmp_path: Path) -> None:
    found = start()
    assert found.kubeconfig.stat().st_mode & 0o777 == 0o600
    assert found.controller_kubeconfig.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "api" / "pki").stat().st_mode & 0o777 == 0o700


def test_api_server_serves_ipv6_and_both_families(start: Start, kubectl: Kubectl) -> None:
    found = start(address="fd99::2", service_range="fd96::/112,10.96.0.0/16")
    assert found.url == "https://[fd99::2]:6443"
    assert "fd96::1" in kubectl(found.kubeconfig, "get", "service", "kubernetes")


def test_daemon_of_the_control_plane_that_ends_is_named_with_its_log(
    start: Start, tmp_path: Path
) -> None:
    with pytest.raises(apiserver.ApiServerError) as raised:
        start(address="10.99.0.3")
    told = str(raised.value)
    assert told.startswith("kube-apiserver ended right after its start\n")
    assert f"the end of {tmp_path}/kube-apiserver.log" in told
    assert "10.99.0.3" in told


def test_api_server_that_is_not_ready_in_time_is_reported(start: Start) -> None:
    with pytest.raises(apiserver.ApiServerError, match=r"not ready after 0\.2 s"):
        start(timeout=0.2)


def test_invalid_service_range_is_refused(start: Start, processes: Processes) -> None:
    with pytest.raises(ValueError, match=r"10\.96\.0\.0/33"):
        start(service_range="10.96.0.0/33")
    assert not any(processes.values()), "nothing was started"
