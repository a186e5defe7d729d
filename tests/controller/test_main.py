"""The process: one sentence when it cannot start, and what it says of those who come."""

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from lab.patience import PROGRAM_TIMEOUT
from lab.processes import running
from tests.ports import free_port
from tests.waiting import wait_until

CLUSTER = "{podRange: 10.244.0.0/16, serviceRange: 10.96.0.0/16}"


def settings(path: Path, **controller: object) -> Path:
    file = path / "sluice.yaml"
    file.write_text(
        f"cluster: {CLUSTER}\ncontroller: {json.dumps({'plainTcp': True} | controller)}\n"
    )
    return file


def start(file: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "controller", "--config", str(file), *more]


@pytest.mark.parametrize(
    ("more", "content", "sentence"),
    [
        (["--cluster", "/nonexistent"], None, "/nonexistent is not a directory"),
        ([], "cluster: {podRange: x}", "at `$.cluster.podRange`"),
        ([], "logLevel: info", "the settings have no section cluster"),
        ([], f"cluster: {CLUSTER}", "the settings have no section controller"),
        (
            [],
            f"cluster: {CLUSTER}\ncontroller: {{plainTcp: true, kubernetes: {{kubeconfig: /no}}}}",
            "/no",
        ),
    ],
)
def test_controller_that_cannot_start_says_why(
    tmp_path: Path, more: list[str], content: str | None, sentence: str
) -> None:
    address = f"127.0.0.1:{free_port()}"
    file = settings(tmp_path, openflow=address, api=f"127.0.0.1:{free_port()}")
    if content:
        file.write_text(content)
    done = subprocess.run(
        start(file, *more), capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("sluice controller: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_controller_that_cannot_enrol_nodes_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOST_IP", raising=False)
    file = settings(tmp_path, plainTcp=False, enrolment={})

    def said(*more: str) -> str:
        done = subprocess.run(
            start(file, *more), capture_output=True, text=True, check=False, timeout=PROGRAM_TIMEOUT
        )
        return done.stderr

    assert said("--cluster", str(tmp_path)) == (
        "sluice controller: controller.enrolment: tokens are reviewed by an API server, and the"
        f" cluster is read from {tmp_path}: give `tls` or `plainTcp: true` instead\n"
    )
    assert said() == (
        "sluice controller: controller.enrolment.addresses: none, and the environment has no"
        " HOST_IP\n"
    )
    settings(tmp_path, plainTcp=False, enrolment={}, reports={})
    assert said("--cluster", str(tmp_path)) == (
        "sluice controller: controller.reports: tokens are reviewed by an API server, and the"
        f" cluster is read from {tmp_path}\n"
    )


def test_address_or_socket_in_use_is_reported(tmp_path: Path) -> None:
    (tmp_path / "cluster").mkdir()
    api, openflow = free_port(), free_port()
    file = settings(
        tmp_path,
        openflow=f"127.0.0.1:{openflow}",
        api=f"127.0.0.1:{api}",
        apiSocket=str(tmp_path / "api.sock"),
        directory=str(tmp_path / "cluster"),
    )
    log = tmp_path / "log"
    with log.open("w") as out, running(start(file), stdout=out, stderr=out) as first:
        try:
            wait_until(lambda: "listening for switches" in log.read_text())
            wait_until(lambda: "serving the API" in log.read_text())
            assert (tmp_path / "api.sock").stat().st_mode & 0o777 == 0o600
            second = subprocess.run(
                start(file), capture_output=True, text=True, timeout=30, check=False
            )
            assert second.returncode == 1
            assert "Address already in use" in second.stderr
            assert "Traceback" not in second.stderr
            (tmp_path / "other").mkdir()
            third = settings(
                tmp_path / "other",
                openflow=f"127.0.0.1:{free_port()}",
                api=f"127.0.0.1:{free_port()}",
                apiSocket=str(tmp_path / "api.sock"),
                directory=str(tmp_path / "cluster"),
            )
            refused = subprocess.run(
                start(third), capture_output=True, text=True, timeout=30, check=False
            )
            assert "api.sock: another controller listens there" in refused.stderr
            rude = socket.create_connection(("127.0.0.1", openflow), timeout=30)
            rude.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert rude.recv(1 << 16) is not None
            rude.close()
            # The library's own lines are in the log as well, in its form.
            wait_until(lambda: log.read_text().count("127.0.0.1:") > 2)
            assert all(json.loads(line)["level"] for line in log.read_text().splitlines())
        finally:
            first.popen.terminate()
            first.wait(10)
