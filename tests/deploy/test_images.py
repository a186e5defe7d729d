"""The images: the same bytes every time, and programs that run with as little as they are given."""

import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from lab.patience import BUILD_TIMEOUT
from tests.deploy.conftest import ADDRESS, KUSTOMIZE, Api, build_images, rendered
from tests.deploy.containers import Container, manifests, unpack
from tests.deploy.test_dependencies import PRUNED, canonical
from tests.waiting import wait_until

TITLES = ("sluice-agent:0.1.0", "sluice-controller:0.1.0")
SETTINGS = """\
cluster: {podRange: 10.244.0.0/16, serviceRange: 10.96.0.0/16}
controller: {plainTcp: true}
agent: {controllers: [127.0.0.1], plainTcp: true}
"""


@pytest.mark.timeout(1200)  # everything is fetched and compiled once more
def test_two_builds_give_the_same_bytes(images: Path, tmp_path: Path) -> None:
    again = tmp_path / "images.tar"
    # Nothing is taken from the first one's cache.
    build_images(again, SLUICE_CACHE=str(tmp_path / "cache"))
    assert manifests(again) == manifests(images)
    assert again.read_bytes() == images.read_bytes()


def test_the_images_share_what_they_have_in_common(images: Path) -> None:
    found = manifests(images)
    assert sorted(found) == [*TITLES]
    agent, controller = (
        {layer["digest"]: layer["size"] for layer in found[title]["layers"]} for title in TITLES
    )
    shared = sum(size for digest, size in agent.items() if digest in controller)
    assert shared > 0.8 * sum(agent.values())


@pytest.mark.parametrize("title", TITLES)
def test_nothing_in_an_image_can_be_misused(images: Path, title: str) -> None:
    names = set()
    for layer in manifests(images)[title]["layers"]:
        with tarfile.open(images) as archive:
            stream = archive.extractfile(f"blobs/{layer['digest'].replace(':', '/')}")
            with tarfile.open(fileobj=stream, mode="r:gz") as content:
                for member in content:
                    names.add(member.name)
                    where = f"{title}: {member.name}"
                    assert (member.uid, member.gid, member.mtime) == (0, 0, 0), where
                    assert not member.mode & 0o6000, where
                    writable = member.mode & 0o022 and not member.issym()
                    assert not writable or member.name == "tmp", where
    programs = {name for name in names if name.startswith(("usr/bin/", "usr/sbin/"))}
    more = {"usr/sbin/nft", "usr/bin/tcpdump"} if "agent" in title else set()
    assert programs == {"usr/bin/python3", "usr/bin/python3.11"} | more


def test_the_agents_image_has_no_client_of_kubernetes(images: Path, tmp_path: Path) -> None:
    unpack(images, TITLES[0], tmp_path)
    packages = tmp_path / "usr/local/lib/python3.11/dist-packages"
    assert (packages / "node_agent").is_dir()
    assert not (packages / "kubernetes").exists()
    assert not (packages / "controller").exists()
    # As a network namespace's path comes from a container runtime.
    assert (tmp_path / "var/run").readlink() == Path("/run")


@pytest.mark.parametrize("title", TITLES)
def test_an_image_has_no_package_that_is_pruned(images: Path, title: str, tmp_path: Path) -> None:
    unpack(images, title, tmp_path)
    found = {
        canonical(path.name.partition("-")[0])
        for path in (tmp_path / "usr/local/lib/python3.11/dist-packages").glob("*.dist-info")
    }
    assert found >= {"os-ken", "netaddr", "msgspec"}
    assert not found & (PRUNED | {"ovsdbapp", "lxml", "paramiko", "greenlet", "setuptools"})


def curl(api: Api, path: str) -> tuple[int, Any]:
    command = ["curl", "--silent", "--max-time", "5", "--write-out", "\n%{http_code}"]
    done = subprocess.run(
        [*api.inside, *command, f"http://{ADDRESS}:6654{path}"],
        capture_output=True, text=True, check=False,
    timeout=BUILD_TIMEOUT)  # fmt: skip
    body, _, status = done.stdout.rpartition("\n")
    return int(status or 0), body


def test_the_controller_comes_up_with_no_more_than_its_manifest_gives_it(
    api: Api, images: Path, tmp_path: Path
) -> None:
    """As nobody, without a capability, nothing to write to, and a token with its few rights."""
    rootfs = tmp_path / "rootfs"
    image = unpack(images, TITLES[1], rootfs)
    assert image["User"] == "65532"

    text = rendered(api.kubectl_path, KUSTOMIZE / "base")
    api.kubectl("apply", "-f", "-", stdin=text)
    node = {
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": "node1"},
        "spec": {"podCIDR": "10.244.1.0/24"},
    }  # fmt: skip
    api.kubectl("apply", "-f", "-", stdin=json.dumps(node))
    account = tmp_path / "serviceaccount"
    account.mkdir()
    token = api.kubectl("-n", "sluice-system", "create", "token", "sluice-controller")
    (account / "token").write_text(token)
    (account / "namespace").write_text("sluice-system")
    ca = Path(json.loads(api.server.kubeconfig.read_text())["clusters"][0]["cluster"][
        "certificate-authority"])  # fmt: skip
    (account / "ca.crt").write_bytes(ca.read_bytes())
    config = tmp_path / "config"
    config.mkdir()
    (config / "sluice.yaml").write_text(SETTINGS)

    log = tmp_path / "controller.log"
    container = Container(
        rootfs, image, api.netns,
        mounts={
            "/etc/sluice": (config, "ro"),
            "/var/run/secrets/kubernetes.io/serviceaccount": (account, "ro"),
        },
        environment=[f"KUBERNETES_SERVICE_HOST={ADDRESS}", "KUBERNETES_SERVICE_PORT=6443"],
    )  # fmt: skip
    with container.running(log) as process:

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            return curl(api, "/readyz")[0] == 200

        wait_until(ready, 90)
        said = [json.loads(line) for line in log.read_text().splitlines()]
    listed = {line["path"]: line["objects"] for line in said if line["event"] == "listed"}
    # How many Namespaces an API server makes is its own affair.
    assert listed.pop("/api/v1/namespaces") > 0
    assert listed == {
        "/api/v1/nodes": 1,
        "/api/v1/pods": 0,
        # The API server's own, `kubernetes`.
        "/api/v1/services": 1,
        "/apis/discovery.k8s.io/v1/endpointslices": 1,
        "/apis/networking.k8s.io/v1/networkpolicies": 0,
        "/apis/sluice.dev/v1alpha1/addresspools": 0,
        "/apis/sluice.dev/v1alpha1/bgppeers": 0,
        "/apis/sluice.dev/v1alpha1/egressaddresses": 0,
    }
    assert process.returncode == 0
