"""The images as a container runtime runs them: unpacked, and by `runc`."""

import json
import subprocess
import tarfile
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.patience import PROGRAM_TIMEOUT

ROOT = Path(__file__).parents[2]


def manifests(archive: Path) -> dict[str, dict[str, Any]]:
    """The manifest of each image of an OCI archive, by its name and tag."""
    with tarfile.open(archive) as files:
        index = json.loads(_read(files, "index.json"))
        return {
            entry["annotations"]["org.opencontainers.image.ref.name"]: json.loads(
                _read(files, _blob(entry["digest"]))
            )
            for entry in index["manifests"]
        }


def unpack(archive: Path, title: str, target: Path) -> dict[str, Any]:
    """The root file system of an image; its configuration is returned."""
    manifest = manifests(archive)[title]
    with tarfile.open(archive) as files:
        for layer in manifest["layers"]:
            stream = files.extractfile(_blob(layer["digest"]))
            with tarfile.open(fileobj=stream, mode="r:gz") as content:
                content.extractall(target)  # noqa: S202  made by us
        config: dict[str, Any] = json.loads(_read(files, _blob(manifest["config"]["digest"])))
        return config["config"]


def _read(files: tarfile.TarFile, name: str) -> bytes:
    stream = files.extractfile(name)
    assert stream is not None
    return stream.read()


def _blob(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


@dataclass(frozen=True)
class Container:
    """What a Pod's securityContext says, in the words of the OCI runtime specification."""

    rootfs: Path
    image: dict[str, Any]
    netns: str
    args: Sequence[str] = ()
    """In place of the image's own."""
    mounts: dict[str, tuple[Path, str]] = field(default_factory=dict)
    """Path inside: path outside, and `ro` or `rw`."""
    capabilities: Sequence[str] = ()
    environment: Sequence[str] = ()

    @contextmanager
    def running(self, log: Path) -> Iterator[subprocess.Popen[bytes]]:
        """The container, with what it says in a file; it ends with the block."""
        bundle = log.parent / f"bundle-{uuid.uuid4().hex[:8]}"
        bundle.mkdir()
        (bundle / "config.json").write_text(json.dumps(self._specification()))
        name = f"sluice-{bundle.name}"
        with log.open("ab") as stream:
            process = subprocess.Popen(
                ["runc", "run", "--bundle", bundle, name],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip
            try:
                yield process
            finally:
                subprocess.run(
                    ["runc", "kill", name, "TERM"],
                    check=False,
                    capture_output=True,
                    timeout=PROGRAM_TIMEOUT,
                )
                try:
                    process.wait(20)
                finally:
                    subprocess.run(
                        ["runc", "delete", "--force", name],
                        check=False,
                        capture_output=True,
                        timeout=PROGRAM_TIMEOUT,
                    )
                    process.kill()
                    process.wait(timeout=60)

    def _specification(self) -> dict[str, Any]:
        user = int(self.image["User"])
        capabilities = [f"CAP_{name}" for name in self.capabilities]
        return {
            "ociVersion": "1.0.2",
            "process": {
                "user": {"uid": user, "gid": user},
                "args": [*self.image["Entrypoint"], *(self.args or self.image["Cmd"])],
                "env": [*self.image["Env"], *self.environment],
                "cwd": "/",
                "noNewPrivileges": True,
                "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
            },
            "root": {"path": str(self.rootfs), "readonly": True},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
                 "options": ["nosuid", "mode=755", "size=64k"]},
                *(
                    {"destination": inside, "type": "bind", "source": str(outside),
                     "options": ["rbind", "rslave", mode]}
                    for inside, (outside, mode) in self.mounts.items()
                ),
            ],
            "linux": {
                "namespaces": [
                    {"type": "pid"}, {"type": "ipc"}, {"type": "mount"},
                    {"type": "network", "path": f"/run/netns/{self.netns}"},
                ],
                # As every runtime has it by default.
                "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list"],
                "readonlyPaths": ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys"],
            },
        }  # fmt: skip
