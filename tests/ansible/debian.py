"""The disk of a machine with Debian 12, made by debootstrap.

What can be installed is beside it, in a mirror of its own: a lab reaches nothing outside.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab.commands import lock_file
from lab.patience import BUILD_TIMEOUT

INSTALLED = [
    "systemd-sysv", "udev", "dbus", "openssh-server", "python3", "iproute2", "nftables", "kmod",
    "procps", "iputils-ping", "ca-certificates",
]  # fmt: skip
MIRRORED = ["openvswitch-switch", "python3-venv", "python3-apt"]

# What would reach beyond its own namespaces: the machine's sysctls, devices and file systems.
MASKED = [
    "systemd-sysctl.service", "systemd-binfmt.service", "proc-sys-fs-binfmt_misc.automount",
    "systemd-udev-trigger.service", "systemd-random-seed.service", "dev-hugepages.mount",
    "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-fs-fuse-connections.mount", "apt-daily.timer", "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer",
]  # fmt: skip

# The lab's kernel has no module openvswitch; Debian's unit insists that modprobe finds one.
MODPROBE = "install openvswitch /bin/true\n"


def root() -> Path:
    """The tree of a machine that has just been installed; made once (1 min)."""
    cache = Path(os.environ.get("SLUICE_CACHE") or Path.home() / ".cache" / "sluice") / "debian"
    cache.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    target = cache / f"{platform.machine()}-{digest}"
    with (cache / ".lock").open("w") as lock:
        lock_file(lock, fcntl.LOCK_EX)
        if not target.exists():
            part = cache / f"{target.name}.part"
            shutil.rmtree(part, ignore_errors=True)
            _make(part)
            part.rename(target)
    return target


def _make(part: Path) -> None:
    include = f"--include={','.join(INSTALLED)}"
    run(["debootstrap", "--variant=minbase", include, "bookworm", str(part)])
    mirror = part / "srv" / "mirror"
    mirror.mkdir()
    archives = part / "var" / "cache" / "apt" / "archives"
    _inside(part, ["apt-get", "clean"])
    _inside(part, ["apt-get", "install", "--yes", "--download-only", *MIRRORED])
    with (mirror / "Packages").open("w") as index:
        for package in archives.glob("*.deb"):
            shutil.move(package, mirror)
            content = (mirror / package.name).read_bytes()
            fields = run(["dpkg-deb", "--field", str(mirror / package.name)])
            index.write(
                f"{fields.strip()}\nFilename: ./{package.name}\nSize: {len(content)}\n"
                f"SHA256: {hashlib.sha256(content).hexdigest()}\n\n"
            )
    (part / "etc/apt/sources.list").write_text("deb [trusted=yes] file:/srv/mirror ./\n")
    shutil.rmtree(part / "var" / "lib" / "apt" / "lists")
    (part / "etc/modprobe.d/lab.conf").write_text(MODPROBE)
    for unit in MASKED:
        (part / "etc/systemd/system" / unit).symlink_to("/dev/null")
    # Filled in by systemd when it first starts: else the first start would be a change.
    (part / "etc/machine-id").write_text(f"{hashlib.md5(b'lab').hexdigest()}\n")  # noqa: S324
    (part / "etc/resolv.conf").write_text("")
    (part / "etc/ssh/sshd_config.d/lab.conf").write_text("UseDNS no\n")


def _inside(part: Path, command: Sequence[str]) -> None:
    run(["chroot", str(part), "env", "DEBIAN_FRONTEND=noninteractive", *command])


def run(command: Sequence[str]) -> str:
    """The output of a program that has to succeed."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=BUILD_TIMEOUT
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout
