"""A stranger: whoever reaches the controller's ports and has no certificate.

The controller is a process of its own on loopback. Each attacker has an address of 127.0.0.0/8, as
pods have one each.
"""

import http.client
import json
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from controller.authority import Authority
from tests.controller.test_main import free_port
from tests.hostile.harness import resident
from tests.waiting import wait_until

ATTACKER, VICTIM = "127.0.0.66", "127.0.0.2"


@dataclass
class Controller:
    """One that serves an empty cluster, with mutual TLS."""

    process: subprocess.Popen[bytes]
    openflow: int
    api: int
    directory: Path

    def log(self) -> list[str]:
        return (self.directory / "log").read_text().splitlines()

    def healthz(self) -> str:
        """As a kubelet asks: without a certificate, and not checking the controller's."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.api, timeout=30, source_address=(VICTIM, 0), context=context
        )
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def local_healthz(self) -> bytes:
        """By the unix socket, as the command line asks."""
        with socket.socket(socket.AF_UNIX) as local:
            local.settimeout(30)
            local.connect(str(self.directory / "api.sock"))
            local.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return local.makefile("rb").read()


@pytest.fixture
def controller(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Controller]:
    """With as many descriptors as the test asks for."""
    descriptors = getattr(request, "param", 4096)
    authority = Authority.new()
    key, certificate = authority.for_controller(["127.0.0.1"], timedelta(days=1))
    for name, pem in (("key", key), ("cert", certificate), ("ca", authority.certificate_pem)):
        (tmp_path / f"{name}.pem").write_bytes(pem)
    (tmp_path / "cluster").mkdir()
    openflow, api = free_port(), free_port()
    settings = {
        "openflow": f"127.0.0.1:{openflow}",
        "api": f"127.0.0.1:{api}",
        "apiSocket": str(tmp_path / "api.sock"),
        "directory": str(tmp_path / "cluster"),
        "tls": {
            "key": str(tmp_path / "key.pem"),
            "certificate": str(tmp_path / "cert.pem"),
            "ca": str(tmp_path / "ca.pem"),
        },
    }
    file = tmp_path / "sluice.yaml"
    file.write_text(
        "cluster: {podRange: 10.244.0.0/16, serviceRange: 10.96.0.0/16}\n"
        f"controller: {json.dumps(settings)}\n"
    )
    command = [sys.executable, "-m", "controller", "--config", str(file)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(
            ["prlimit", f"--nofile={min(descriptors, 1024)}:{descriptors}", *command],
            stdout=log,
            stderr=log,
        )
    made = Controller(process, openflow, api, tmp_path)
    try:
        wait_until(lambda: "listening for switches" in "".join(made.log()))
        wait_until(lambda: "serving the API" in "".join(made.log()))
        yield made
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    """For the attacker."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def dial(stack: ExitStack, port: int, source: str, data: bytes = b"") -> None:
    made = stack.enter_context(socket.create_connection(("127.0.0.1", port), 30, (source, 0)))
    with suppress(OSError):
        made.sendall(data)


@pytest.mark.parametrize("port", ["openflow", "api"])
@pytest.mark.parametrize("data", [b"", b"\x16\x03\x01\x02\x00\x01"])
def test_connections_cost_bounded_memory_and_it_returns(
    controller: Controller, port: str, data: bytes
) -> None:
    """Each of 2,000 cost 300 KB before its first byte, and three times 2,000 cost three times that.

    A bound of 40 MB is what 512 connections may cost, all together.
    """
    controller.healthz()
    before = resident(controller.process.pid)
    for _ in range(3):
        with ExitStack() as stack:
            for _ in range(700):
                dial(stack, getattr(controller, port), ATTACKER, data)
            assert controller.healthz() == "ok\n"
    assert resident(controller.process.pid) - before < 40
    assert len(controller.log()) < 500


@pytest.mark.parametrize("controller", [256], indirect=True)
def test_at_the_limit_of_descriptors_probes_and_the_command_line_are_answered(
    controller: Controller,
) -> None:
    """The controller logged 75,084 tracebacks in 40 s, and answered nobody."""
    with ExitStack() as stack:
        for number in range(400):
            source = f"127.0.1.{1 + number % 4}"
            for port in (controller.openflow, controller.api):
                dial(stack, port, source)
        assert b"200 OK" in controller.local_healthz()
        assert controller.healthz() == "ok\n"
    lines = controller.log()
    assert len(lines) < 500
    assert not any("Traceback" in line for line in lines)
    assert any("no more connections" in line or "too many" in line for line in lines)


def test_bad_requests_cost_a_bounded_number_of_short_lines(controller: Controller) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    bad = [
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nContent-Length: x\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\n" + b"a: " + b"b" * 10_000 + b"\r\n\r\n",
        b"GET /%s%d%n HTTP/9.9\r\n\r\n",
    ]
    for number in range(300):
        with (
            socket.create_connection(("127.0.0.1", controller.api), 30, (ATTACKER, 0)) as raw,
            context.wrap_socket(raw) as made,
            suppress(OSError),
        ):
            made.sendall(bad[number % len(bad)])
            made.recv(100)
    assert controller.healthz() == "ok\n"
    lines = controller.log()
    assert len(lines) < 150
    assert not any("Traceback" in line for line in lines)
    assert all(len(line) < 1000 for line in lines)
    assert any("Error handling request" in line for line in lines)
