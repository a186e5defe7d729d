"""What turns a network namespace into a machine for kubelet, containerd and their pods.

Each node gets a mount and a UTS namespace beside its network namespace, and cgroups below one of
its own. So the usual paths (`/run/containerd`, `/var/lib/kubelet`, `/etc/cni/net.d`, ...) are
each node's own, a manifest with a hostPath finds in them what it would find on a real machine, and
nothing of it is seen outside. The namespaces are kept by a file and not by a process, as `ip netns`
keeps its: they live until `remove`.
"""

import contextlib
import os
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path

from lab.commands import run
from lab.layout import LABS, LabLayout, NodeLayout
from lab.network import is_namespace

CGROUPS = Path("/sys/fs/cgroup")
_V2_CONTROLLERS = ("cpuset", "cpu", "memory", "pids", "hugetlb")


def create(node: NodeLayout) -> None:
    """Make the node's mount and UTS namespaces and its cgroups, unless there. Raises `LabError`."""
    _create_cgroups(node.cgroup)
    if is_there(node):
        return
    node.namespaces.mkdir(parents=True, exist_ok=True)
    for path in node.private_paths.values():
        path.mkdir(parents=True, exist_ok=True)
    # A mount namespace can be bound only where mounts are not propagated.
    if not os.path.ismount(node.namespaces):
        run(["mount", "--bind", str(node.namespaces), str(node.namespaces)])
    run(["mount", "--make-private", str(node.namespaces)])
    for kind in ("mnt", "uts"):
        (node.namespaces / kind).touch()
    # Slave: what is unmounted on the machine must not stay mounted here.
    unshare = ["unshare", f"--mount={node.namespaces / 'mnt'}", f"--uts={node.namespaces / 'uts'}"]
    run([*unshare, "--propagation=slave", "sh", "-euc", _script(node)])


def is_there(node: NodeLayout) -> bool:
    """Whether the node has namespaces of its own."""
    return all(is_namespace(node.namespaces / kind) for kind in ("mnt", "uts"))


def enter(node: NodeLayout, argv: Sequence[str]) -> list[str]:
    """The command that runs `argv` among the node's own mounts, where it has some."""
    if not is_there(node):
        return list(argv)
    paths = node.namespaces
    return ["nsenter", f"--mount={paths / 'mnt'}", f"--uts={paths / 'uts'}", *argv]


def processes(cgroup: str) -> set[int]:
    """Every process in a cgroup or below: those of all pods, whatever namespaces they have."""
    found = set()
    for hierarchy in _hierarchies():
        for path in (hierarchy / cgroup).rglob("cgroup.procs"):
            with contextlib.suppress(OSError):  # it has just been removed
                found |= set(map(int, path.read_text().split()))
    return found


def remove(node: NodeLayout) -> None:
    """Remove the node's namespaces, as a reboot does; its processes have ended before.

    What a machine keeps on its disk stays.
    """
    for kind in ("mnt", "uts"):
        if is_namespace(node.namespaces / kind):
            run(["umount", str(node.namespaces / kind)])
    _remove_cgroups(node.cgroup)


def _remove_cgroups(name: str) -> None:
    """A cgroup and those below it, which have no processes any more."""
    for hierarchy in _hierarchies():
        for path, _, _ in os.walk(hierarchy / name, topdown=False):
            with contextlib.suppress(FileNotFoundError):
                Path(path).rmdir()


def forget(layout: LabLayout) -> None:
    """Remove everything that the lab's machines have on disk, and the lab's cgroups."""
    _remove_cgroups(layout.cgroup)
    shutil.rmtree(layout.disk, ignore_errors=True)
    with contextlib.suppress(OSError):  # other labs are in it, or it was never made
        layout.disk.parent.rmdir()


def _script(node: NodeLayout) -> str:
    """What is mounted in the new namespace: /run is empty, the rest as it was but for our paths."""
    run, root = shlex.quote(str(node.disk / "run")), shlex.quote(str(node.directory / "root"))
    lines = [
        f"hostname {node.name}",
        # As after a boot. From the machine it has only the labs' directory.
        f"mkdir -p {run}",
        f"mount -n -t tmpfs -o mode=755 run {run}",
        f"mkdir {run}/netns {run}/{LABS.name} {run}/disk",
        f"mount -n --rbind {LABS} {run}/{LABS.name}",
        f"mount -n --bind {shlex.quote(str(node.disk))} {run}/disk",
        f"mount -n --move {run} /run",
    ]
    # Overlays, so that mount points can be made that the machine does not have.
    for top in ("etc", "opt", "var"):
        layers = f"lowerdir=/{top},upperdir={root}/{top},workdir={root}/{top}.work"
        lines += [
            f"mkdir -p {root}/{top} {root}/{top}.work",
            f"mount -n -t overlay -o {layers} {top} /{top}",
        ]
    # The disk at its own path, too, and not through the overlay.
    lines.append(f"mount -n --bind /run/disk {shlex.quote(str(node.disk))}")
    for path, kept in node.private_paths.items():
        lines += [f"mkdir -p {path}", f"mount -n --bind {shlex.quote(str(kept))} {path}"]
    lines += [
        # As under systemd: containers may ask for mounts that are made later.
        "mount -n --make-rshared /",
        # The machine's name servers cannot be reached from here.
        "rm -f /etc/resolv.conf",
        "touch /etc/resolv.conf",
    ]
    return "\n".join(lines)


def _create_cgroups(name: str) -> None:
    """As kubelet wants its root to be: in every hierarchy, with every controller."""
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir(parents=True, exist_ok=True)
        # From the top down: a cgroup can have only the controllers of its parent.
        for part in reversed(Path(name).parents[:-1]):
            _inherit(hierarchy / part)
        _inherit(hierarchy / name)


def _inherit(cgroup: Path) -> None:
    """Give a new cgroup its parent's CPUs and memory nodes (version 1) or controllers (2)."""
    for kind in ("cpus", "mems"):
        own = cgroup / f"cpuset.{kind}"
        # Empty in a new cgroup, in which nothing could run.
        if own.exists() and not _is_v2() and not own.read_text().strip():
            own.write_text((cgroup.parent / own.name).read_text())
    if _is_v2():
        for controller in _V2_CONTROLLERS:
            with contextlib.suppress(OSError):  # this kernel has none
                (cgroup.parent / "cgroup.subtree_control").write_text(f"+{controller}")


def _is_v2() -> bool:
    return (CGROUPS / "cgroup.controllers").exists()


def _hierarchies() -> list[Path]:
    """One in version 2 of cgroups, one for each controller in version 1."""
    if _is_v2():
        return [CGROUPS]
    return [path for path in CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
