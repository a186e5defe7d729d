"""Processes that outlive the command which started them, and how they are found again."""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab.commands import LabError, inside
from lab.layout import NAMESPACES
from lab.patience import PATIENCE


@dataclass(frozen=True)
class Daemons:
    """The daemons of one namespace.

    `directory` has NAME.log with what each one said, and NAME.pid with its process id and start
    time: the two together name one process for ever, while process ids are used again.
    """

    netns: str
    directory: Path

    def start(
        self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None = None
    ) -> int:
        """Start a daemon in a session of its own unless it runs already; return its process id."""
        running = self.pid(name)
        if running is not None:
            return running
        self.directory.mkdir(parents=True, exist_ok=True)
        command = inside(self.netns, argv)
        log = os.fspath(self.log(name))
        writing = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        # A Popen would insist on being waited for; a daemon is nobody's to wait for.
        pid = os.posix_spawnp(
            command[0],
            command,
            os.environ | (environment or {}),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, writing, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )
        self._record(name).write_text(f"{pid} {_start_time(pid)}")
        return pid

    def pid(self, name: str) -> int | None:
        """The process id of a daemon that runs."""
        try:
            pid, started = map(int, self._record(name).read_text().split())
        except (OSError, ValueError):  # never started, or we were killed while writing
            return None
        return pid if _start_time(pid) == started else None

    def pids(self) -> dict[str, int]:
        """All that run, by name."""
        found = {path.stem: self.pid(path.stem) for path in sorted(self.directory.glob("*.pid"))}
        return {name: pid for name, pid in found.items() if pid is not None}

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def forget_ended(self) -> None:
        """Forget those that have ended, as before starting them again; `check` names them else."""
        for record in self.directory.glob("*.pid"):
            if self.pid(record.stem) is None:
                record.unlink()

    def check(self) -> None:
        """Raise `LabError` with the end of its log if one that was started has ended."""
        for record in sorted(self.directory.glob("*.pid")):
            if self.pid(record.stem) is None:
                raise LabError(f"{record.stem} in {self.netns} has ended\n{self.tail(record.stem)}")

    def wait(
        self,
        condition: Callable[[], bool],
        *,
        timeout: float,
        cancelled: Callable[[], bool] = lambda: False,
        pause: float = 0.02,
    ) -> bool:
        """Wait for something that the daemons bring about; False if it takes more than `timeout` s.

        `pause` s pass between two looks at it. Raises `LabError` as soon as one of them ends, or
        `cancelled` says so.
        """
        deadline = time.monotonic() + timeout * PATIENCE
        while not condition():
            self.check()
            if cancelled():
                raise LabError(f"{self.netns}: given up")
            if time.monotonic() > deadline:
                return False
            time.sleep(pause * PATIENCE)
        return True

    def tail(self, name: str, lines: int = 15) -> str:
        """The last lines of a daemon's log, with a heading."""
        try:
            text = self.log(name).read_text(errors="replace")
        except OSError as error:
            return f"({error.filename}: {error.strerror})"
        return "\n".join(
            [f"the end of {self.log(name)}:", *(text.splitlines()[-lines:] or ["(it is empty)"])]
        )

    def _record(self, name: str) -> Path:
        return self.directory / f"{name}.pid"


def _start_time(pid: int) -> int | None:
    """When a process began, in ticks since boot (proc(5), stat, field 22); None if it is dead."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if after_name[0] in "ZX" else int(after_name[19])


def processes_in(namespaces: Iterable[str]) -> set[int]:
    """Every process whose network namespace is one of these, ours excepted."""
    wanted = set()
    for name in namespaces:
        with contextlib.suppress(OSError):
            status = (NAMESPACES / name).stat()
            wanted.add((status.st_dev, status.st_ino))
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            status = (process / "ns" / "net").stat()
            if (status.st_dev, status.st_ino) in wanted:
                found.add(int(process.name))
    return found - {os.getpid()}


def kill(pids: Iterable[int], timeout: float = 10) -> None:
    """SIGKILL processes and wait until they have ended. Raises `LabError` if one does not.

    Without asking first: everything that they keep is thrown away with the lab.
    """
    opened: dict[int, int] = {}  # by file descriptor
    try:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                opened[os.pidfd_open(pid)] = pid
        poll = select.poll()
        for descriptor in opened:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
            poll.register(descriptor, select.POLLIN)
        waiting = set(opened)
        while waiting:
            ended = poll.poll(timeout * PATIENCE * 1000)
            if not ended:
                stuck = ", ".join(str(opened[descriptor]) for descriptor in waiting)
                raise LabError(f"processes do not end on SIGKILL: {stuck}")
            for descriptor, _ in ended:
                poll.unregister(descriptor)
                waiting.discard(descriptor)
                with contextlib.suppress(ChildProcessError):  # not our child: init's to wait for
                    os.waitpid(opened[descriptor], os.WNOHANG)
    finally:
        for descriptor in opened:
            os.close(descriptor)
