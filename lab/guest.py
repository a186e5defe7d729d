"""An emulated machine whose kernel has Open vSwitch's modules: the datapath that users run.

Debian's cloud kernel in qemu without KVM: this machine's own kernel may not have the modules. The
guest has a copy of this working tree and all that scripts/setup installs, runs one command there
as root, and is gone. It has no network.

 1. Its image is built once, in ${SLUICE_CACHE:-~/.cache/sluice}/kernel-test/: a Debian made by
    debootstrap, the kernel, and all that scripts/setup installs. It takes 5 minutes. There is one
    directory (1.5 GB) for each version of the sources; old ones can be deleted at any time.
 2. The working tree is copied into the guest each time, without the files that git ignores.
 3. What the command writes into /results is afterwards in build/NAME.out/, with the console.
"""

import contextlib
import fcntl
import hashlib
import io
import os
import select
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from lab.commands import LabError, lock_file
from lab.patience import BUILD_TIMEOUT, PROGRAM_TIMEOUT
from lab.processes import running

ROOT: Final = Path(__file__).resolve().parent.parent
PARTS: Final = ROOT / "lab" / "guest_root"
RESULTS: Final = "/results"
"""The directory in the guest whose files come back."""

PATIENCE: Final = 8
"""Factor for the lab's timeouts: the guest is slower than a real machine (`lab.patience`)."""
MEMORY: Final = "2G"
DISK: Final = "4G"
"""Of the image; a sparse file."""
ICOUNT: Final = "shift=1"
"""2 ns for each instruction."""
RESULTS_SIZE: Final = 64 << 20
TAIL: Final = 2000
"""Characters of the console's end that an error message shows."""


@dataclass(frozen=True)
class Guest:
    """A command, and the machine that runs it.

    `name` is that of its messages and of its directory of results, build/NAME.out. The command
    runs in the root of the tree, with `files` (from here, by their path in the tree) added.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, Path] = field(default_factory=dict)
    longest_silence: float = 15 * 60
    """Seconds without output after which the guest counts as hung."""
    longest_run: float = 60 * 60
    counts_instructions: bool = False
    """One processor, whose clock is the number of instructions that it has executed: then what
    else runs on this machine changes nothing that the guest measures. It is slower."""

    @property
    def output(self) -> Path:
        return ROOT / "build" / f"{self.name}.out"

    def run(self) -> int:
        """Build the image if necessary, boot, and show the console; the command's exit code.

        Raises `LabError` if the guest panics, hangs, takes too long or ends without results.
        """
        if os.geteuid() != 0:
            raise LabError("building a Debian root directory needs root: use sudo")
        if missing := [p for p in ("qemu-system-x86_64", "debootstrap") if not shutil.which(p)]:
            raise LabError(f"not installed: {', '.join(missing)}; run scripts/setup --kernel")
        with tempfile.TemporaryDirectory(prefix=f"sluice-{self.name}-") as scratch:
            tree, results = Path(scratch) / "tree.tar", Path(scratch) / "results.tar"
            _pack_tree(tree, self.script(), self.files)
            image = self._find_or_build_image(tree)
            with results.open("wb") as disk:
                disk.truncate(RESULTS_SIZE)
            shutil.rmtree(self.output, ignore_errors=True)
            self.output.mkdir(parents=True)
            return self._run(image, tree, results)

    def _run(self, image: Path, tree: Path, results: Path) -> int:
        started = time.monotonic()
        self._say("booting; the command begins in about a minute ...")
        tail = self._boot(image, tree, results)
        where = self.output.relative_to(ROOT)
        self._say(f"the guest ran for {time.monotonic() - started:.0f} s; see {where}/")
        try:
            subprocess.run(
                ["tar", "-xf", results, "-C", self.output], check=True, timeout=PROGRAM_TIMEOUT
            )
            return int((self.output / "exit-code").read_text())
        except (subprocess.SubprocessError, FileNotFoundError, ValueError):
            raise LabError(f"the guest ended without results; its last output:\n{tail}") from None

    def script(self) -> str:
        """The command, for a shell in the guest."""
        variables = {
            "SLUICE_PATIENCE": str(PATIENCE),
            "SLUICE_DATAPATH": "system",
            "TERM": "dumb",
            **self.environment,
        }
        words = [f"{name}={value}" for name, value in variables.items()]
        return shlex.join(["env", *words, *self.command]) + "\n"

    def _find_or_build_image(self, tree: Path) -> Path:
        cache = Path(os.environ.get("SLUICE_CACHE") or Path.home() / ".cache" / "sluice").resolve()
        target = cache / "kernel-test" / _cache_key()
        with self._only_one(target.parent):
            if not target.exists():
                self._build_image(target, tree)
        return target

    @contextlib.contextmanager
    def _only_one(self, directory: Path) -> Iterator[None]:
        """Hold the lock of a cache directory, and remove leftovers of killed builds."""
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("another run is building; waiting for it ...")
                lock_file(lock, fcntl.LOCK_EX)
            for leftover in directory.glob("*.part"):
                shutil.rmtree(leftover)
            yield

    def _build_image(self, target: Path, tree: Path) -> None:
        """Build an ext4 file system, and the kernel and initrd that boot it."""
        started = time.monotonic()
        self._say(f"making the image once, in {target} (about 5 min)")
        part = target.with_name(f"{target.name}.part")
        root = part / "root"
        root.mkdir(parents=True)
        # In a mount namespace, so that its mounts disappear with it.
        unshared = ["unshare", "--mount", "--propagation", "private"]
        ext4 = ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-d", str(root)]
        try:
            subprocess.run(
                [*unshared, PARTS / "install", root, tree], check=True, timeout=BUILD_TIMEOUT
            )
            for name in ("vmlinuz", "initrd"):
                (found,) = (root / "boot").glob(f"{name}*")
                shutil.copy(found, part / name)
            self._say("mke2fs ...")
            subprocess.run([*ext4, part / "root.ext4", DISK], check=True, timeout=BUILD_TIMEOUT)
        except subprocess.SubprocessError as error:
            raise LabError(f"the image was not made: {error}") from None
        shutil.rmtree(root)
        part.rename(target)
        self._say(f"made in {time.monotonic() - started:.0f} s")

    def _boot(self, image: Path, tree: Path, results: Path) -> str:
        """Run the machine until it ends, show its console, and return the last part."""
        command_line = (
            "root=/dev/vda rw init=/guest-init console=ttyS0 quiet "
            "panic=-1 oops=panic mitigations=off nowatchdog "
            "transparent_hugepage=never rcupdate.rcu_expedited=1"
        )
        processors = ["-smp", "2", "-accel", "tcg,thread=multi"]
        if self.counts_instructions:
            processors = ["-smp", "1", "-accel", "tcg,thread=single", "-icount", ICOUNT]
        machine: list[str | Path] = [
            "setpriv", "--pdeathsig", "KILL",  # qemu ends with this process
            "nice", "-n", "10", "qemu-system-x86_64",
            "-machine", "q35", "-cpu", "max,la57=off,erms=off,fsrm=off", "-m", MEMORY, *processors,
            "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-kernel", image / "vmlinuz", "-initrd", image / "initrd", "-append", command_line,
            # qemu writes changes of the root file system to a temporary file.
            "-drive", f"file={image / 'root.ext4'},format=raw,if=virtio,snapshot=on",
            "-drive", f"file={tree},format=raw,if=virtio,readonly=on",
            "-drive", f"file={results},format=raw,if=virtio",
        ]  # fmt: skip
        tail = ""
        deadline = time.monotonic() + self.longest_run
        with (
            (self.output / "console.log").open("wb") as log,
            running([*map(str, machine)], stdin=subprocess.DEVNULL) as process,
        ):
            console = process.popen.stdout
            assert console is not None  # noqa: S101  # `running` has asked for it
            while True:
                left = max(0, deadline - time.monotonic())
                wait = min(self.longest_silence, left)
                if not select.select([console], [], [], wait)[0]:
                    what, limit = "says nothing", self.longest_silence
                    if left < limit:
                        what, limit = "is not done", self.longest_run
                    raise LabError(f"the guest {what} after {limit / 60:.0f} min:\n{tail}")
                said = os.read(console.fileno(), 1 << 16)
                if not said:
                    return tail
                log.write(said)
                text = said.decode(errors="replace").replace("\r", "")
                sys.stdout.write(text)
                sys.stdout.flush()
                tail = (tail + text)[-TAIL:]

    def _say(self, message: str) -> None:
        sys.stderr.write(f"{self.name}: {message}\n")
        sys.stderr.flush()


def _cache_key() -> str:
    sources = [ROOT / "requirements.lock", ROOT / "pyproject.toml", ROOT / "scripts" / "setup"]
    digest = hashlib.sha256()
    for path in [*sources, *sorted(PARTS.iterdir())]:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return f"bookworm-{digest.hexdigest()[:12]}"


def _pack_tree(archive: Path, script: str, files: Mapping[str, Path]) -> None:
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        listed, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True, timeout=PROGRAM_TIMEOUT
    ).stdout
    with tarfile.open(archive, "w") as tar:
        for name in filter(None, names.split("\0")):
            if (ROOT / name).exists():  # git still lists a file that was just deleted
                tar.add(ROOT / name, name)
        for name, path in files.items():
            tar.add(path, name)
        content = script.encode()
        member = tarfile.TarInfo("build/guest-command")
        member.size = len(content)
        tar.addfile(member, io.BytesIO(content))
