"""The images, built once; an API server without nodes to write the manifests to."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import apiserver
from lab.control import kubernetes_binaries
from lab.patience import BUILD_TIMEOUT
from tests.namespaces import namespace

ROOT = Path(__file__).parents[2]
KUSTOMIZE = ROOT / "deploy" / "kustomize"
ADDRESS = "10.99.0.2"


@pytest.fixture(scope="session", autouse=True)
def _root() -> None:
    if os.geteuid() != 0:
        pytest.exit("tests/deploy makes network namespaces, and only root may do that", 1)


def build_images(output: Path, **environment: str) -> None:
    subprocess.run(
        [sys.executable, ROOT / "scripts" / "make-image", "--output", output],
        env=os.environ | environment,
        check=True,
        timeout=BUILD_TIMEOUT,
    )


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The OCI archive of both."""
    output = tmp_path_factory.mktemp("images") / "images.tar"
    build_images(output)
    return output


@pytest.fixture(scope="session")
def kubectl_path() -> Path:
    return kubernetes_binaries(whole=False) / "kubectl"


def rendered(kubectl: Path, directory: Path) -> str:
    done = subprocess.run(
        [kubectl, "kustomize", directory],
        capture_output=True,
        text=True,
        check=False,
        timeout=BUILD_TIMEOUT,
    )
    assert not done.returncode, done.stderr
    return done.stdout


@dataclass(frozen=True)
class Api:
    """An API server in a network namespace of its own, and its administrator."""

    netns: str
    server: apiserver.RunningApiServer
    kubectl_path: Path

    @property
    def inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.netns}")

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            [*self.inside, self.kubectl_path, "--kubeconfig", self.server.kubeconfig, *arguments],
            input=stdin, capture_output=True, text=True, check=False,
            env=os.environ | {"NO_PROXY": "*"},
        timeout=BUILD_TIMEOUT)  # fmt: skip
        assert not done.returncode, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, kubectl_path: Path) -> Iterator[Api]:
    directory = tmp_path_factory.mktemp("api")
    netns = f"sluice-deploy-{uuid.uuid4().hex[:8]}"
    started: list[subprocess.Popen[bytes]] = []

    def spawn(name: str, argv: Sequence[str]) -> int:
        with (directory / f"{name}.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    ["nsenter", f"--net=/run/netns/{netns}", *argv], stdout=log, stderr=log
                )
            )
        return started[-1].pid

    with namespace(netns, f"{ADDRESS}/24"):
        try:
            server = apiserver.start(
                netns=netns, directory=directory, address=ADDRESS, service_range="10.96.0.0/16",
                binaries=kubectl_path.parent, spawn=spawn,
            )  # fmt: skip
            yield Api(netns, server, kubectl_path)
        finally:
            for process in reversed(started):
                process.kill()
                process.wait(timeout=60)
