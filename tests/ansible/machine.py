"""A machine with a real systemd in a network namespace, run by podman: what playbooks are for."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab.patience import BUILD_TIMEOUT
from tests.ansible.debian import root, run
from tests.waiting import wait_until


@dataclass(frozen=True)
class Machine:
    """A machine, below a directory whose path is short: podman's may have 50 characters."""

    name: str
    directory: Path

    @property
    def root(self) -> Path:
        return self.directory / "root"

    def start(self, netns: Path, authorized_key: str) -> None:
        """Lay its disk and start it; returns when its systemd is up."""
        run(["cp", "--archive", "--reflink=auto", str(root()), str(self.root)])
        (self.root / "etc/hostname").write_text(f"{self.name}\n")
        keys = self.root / "root/.ssh/authorized_keys"
        keys.parent.mkdir(mode=0o700, exist_ok=True)
        keys.write_text(authorized_key)
        # A container's mounts are private; a machine's are shared, so that a unit with a mount
        # namespace of its own sees the namespaces of pods that are made later.
        init = ["/bin/sh", "-c", "mount --make-rshared / && exec /sbin/init"]
        # It wants higher limits than a container of ours may have where the tests run in one.
        limits = ["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024", "--pids-limit=0"]
        where = [f"--network=ns:{netns}", f"--hostname={self.name}", f"--name={self.name}"]
        self._podman("run", "--detach", "--systemd=always", "--privileged", *where, *limits,
                     "--rootfs", str(self.root), *init)  # fmt: skip
        # Soon after its start it has no bus yet, by which to be asked.
        state = ["systemctl", "is-system-running"]
        wait_until(lambda: self.call(state).stdout.strip() == "running")

    def run(
        self,
        command: Sequence[str],
        *,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """The output of a program that has to succeed."""
        done = self.call(command, stdin=stdin, environment=environment)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def call(
        self,
        command: Sequence[str],
        *,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> subprocess.CompletedProcess[str]:
        variables = [f"--env={name}={value}" for name, value in (environment or {}).items()]
        argv = self._command("exec", "--interactive", *variables, self.name, *command)
        return subprocess.run(
            argv, input=stdin, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT
        )

    def json(self, command: Sequence[str]) -> Any:
        return json.loads(self.run(command) or "[]")

    def stop(self) -> None:
        """End it, and whatever runs on it."""
        self._podman("rm", "--force", "--time=0", "--ignore", self.name)

    def _podman(self, *arguments: str) -> None:
        run(self._command(*arguments))

    def _command(self, *arguments: str) -> list[str]:
        stored = ["--root", f"{self.directory}/podman", "--runroot", f"{self.directory}/run"]
        # runc, because crun does not run where cgroups are half of version 1 and half of 2.
        options = ["--storage-driver=vfs", "--runtime=runc", "--cgroup-manager=cgroupfs"]
        return ["podman", *stored, *options, *arguments]
