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
import yaml

from lab import apiserver
from lab.control import kubernetes_binaries
from lab.patience import BUILD_TIMEOUT
from tests.deploy.helm import built
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


@pytest.fixture(scope="session")
def helm() -> Path:
    return built("helm")


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


def objects(text: str) -> dict[tuple[str, str, str], Any]:
    """By kind, namespace and name; the settings not as a text, but as what they say."""
    found = {}
    for item in filter(None, yaml.safe_load_all(text)):
        metadata = item["metadata"]
        if metadata["name"] == "sluice-config":
            item["data"] = {name: yaml.safe_load(text) for name, text in item["data"].items()}
        found[item["kind"], metadata.get("namespace", ""), metadata["name"]] = item
    return found


@dataclass(frozen=True)
class Api:
    """An API server in a network namespace of its own, and its administrator."""

    netns: str
    server: apiserver.RunningApiServer
    kubectl_path: Path

    @property
    def inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.netns}")

    def run(self, program: Path, *arguments: str, stdin: str = "") -> str:
        """What a program prints that takes --kubeconfig; it must succeed."""
        done = subprocess.run(
            [*self.inside, program, "--kubeconfig", self.server.kubeconfig, *arguments],
            input=stdin, capture_output=True, text=True, check=False,
            env=os.environ | {"NO_PROXY": "*"},
        timeout=BUILD_TIMEOUT)  # fmt: skip
        assert not done.returncode, f"{program.name} {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        return self.run(self.kubectl_path, *arguments, stdin=stdin)

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
