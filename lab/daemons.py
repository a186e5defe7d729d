"""Processes that outlive the command which started them, and how they are found again."""

import contextlib
import fcntl
import os
import select
import signal
import socket
import struct
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
        self,
        name: str,
        argv: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        listens_at: Callable[[int], Path] | None = None,
        pid_file: Path | None = None,
    ) -> int:
        """Start a daemon in a session of its own unless it runs already; return its process id.

        `listens_at` gives the path of a unix socket at which the process with this id listens
        when it has started: then return only when it does. `pid_file` is the file that the daemon
        locks: then start it only when the lock is free. Raises `LabError` with the end of its log
        if the daemon ends instead, and if a lock or a start takes more than 30 s.
        """
        running = self.pid(name)
        if running is not None and not _is_exiting(running):
            return running
        if running is not None:
            kill([running])
        if pid_file is not None:
            _wait_for_lock(pid_file)
        pid = self._spawn(name, argv, environment)
        if listens_at is not None and not self._wait_for(
            name, lambda: _listener(listens_at(pid)) == pid, timeout=30
        ):
            raise LabError(f"{name} in {self.netns} does not start\n{self.tail(name)}")
        return pid

    def _spawn(self, name: str, argv: Sequence[str], environment: Mapping[str, str] | None) -> int:
        self.directory.mkdir(parents=True, exist_ok=True)
        command = inside(self.netns, argv)
        log = os.fspath(self.log(name))
        append = os.O_WRONLY | os.O_CREAT | os.O_APPEND
        # A Popen insists on being waited for; nobody waits for a daemon.
        pid = os.posix_spawnp(
            command[0],
            command,
            os.environ | (environment or {}),
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, log, append, 0o644),
                (os.POSIX_SPAWN_DUP2, 1, 2),
            ],
            setsid=True,
            setsigmask=(),
            setsigdef=(signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE),
        )
        self._record(name).write_text(f"{pid} {_start_time(pid)}")
        return pid

    def kill(self, name: str) -> None:
        """SIGKILL a daemon; return when the whole process has ended. Raises `LabError`."""
        pid = self.pid(name)
        if pid is None:
            raise LabError(f"{name} in {self.netns} does not run")
        kill([pid])

    def pid(self, name: str) -> int | None:
        """The process id of a daemon of which any thread still runs."""
        try:
            pid, started = map(int, self._record(name).read_text().split())
        except (OSError, ValueError):  # never started, or we were killed while writing
            return None
        return pid if _start_time(pid) == started else None

    def pids(self) -> dict[str, int]:
        """All that run, by name."""
        found = {path.stem: self.pid(path.stem) for path in sorted(self.directory.glob("*.pid"))}
        return {name: pid for name, pid in found.items() if pid is not None}

    def ended(self) -> list[str]:
        """The names of those that were started and have ended since."""
        names = sorted(path.stem for path in self.directory.glob("*.pid"))
        return [name for name in names if self.pid(name) is None]

    def log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def forget_ended(self) -> None:
        """Forget those that have ended, before they are started again: `check` reports them."""
        for name in self.ended():
            self._record(name).unlink()

    def check(self) -> None:
        """Raise `LabError` with the end of its log if one that was started has ended."""
        for name in self.ended():
            self._check(name)

    def wait(
        self,
        condition: Callable[[], bool],
        *,
        timeout: float,
        cancelled: Callable[[], bool] = lambda: False,
        pause: float = 0.02,
    ) -> bool:
        """Wait until `condition` holds; False if that takes more than `timeout` s.

        `pause` s pass between two checks. Raises `LabError` as soon as a daemon ends, or when
        `cancelled` returns True.
        """

        def check() -> None:
            self.check()
            if cancelled():
                raise LabError(f"{self.netns}: given up")

        return _wait(condition, check, timeout=timeout, pause=pause)

    def _wait_for(self, name: str, condition: Callable[[], bool], *, timeout: float) -> bool:
        """The same while one daemon runs, whatever becomes of the others."""
        return _wait(condition, lambda: self._check(name), timeout=timeout)

    def _check(self, name: str) -> None:
        if self.pid(name) is None:
            raise LabError(f"{name} in {self.netns} has ended\n{self.tail(name)}")

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


def _wait(
    condition: Callable[[], bool],
    check: Callable[[], None],
    *,
    timeout: float,
    pause: float = 0.02,
) -> bool:
    """Wait until `condition` holds; False after `timeout` s. `check` raises to give up earlier."""
    deadline = time.monotonic() + timeout * PATIENCE
    while not condition():
        check()
        if time.monotonic() > deadline:
            return False
        time.sleep(pause * PATIENCE)
    return True


def _start_time(pid: int) -> int | None:
    """When a process began, in ticks since boot (proc(5), stat, field 22); None if it has ended.

    A process whose first thread has ended still runs while another of its threads does.
    """
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        dead = after_name[0] in "ZX" and len(_threads(pid)) < 2
    except OSError:
        return None
    return None if dead else int(after_name[19])


def _threads(pid: int) -> list[Path]:
    return list(Path(f"/proc/{pid}/task").iterdir())


def _is_exiting(pid: int) -> bool:
    """Whether the first thread of a process has ended, while others still run."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"


def _listener(path: Path) -> int | None:
    """The process id of who listens at a unix socket (unix(7), SO_PEERCRED); None if nobody does.

    A socket file of an earlier process refuses the connection, so it is not taken for the new one.
    """
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(1)
        try:
            connection.connect(os.fspath(path))
            peer = connection.getsockopt(
                socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
            )
        except OSError:
            return None
    return int(struct.unpack("3i", peer)[0])


def _wait_for_lock(path: Path, timeout: float = 30) -> None:
    """Wait until nobody locks a pid file. Raises `LabError` with the process that does."""
    holder = None

    def is_free() -> bool:
        nonlocal holder
        holder = lock_holder(path)
        return holder is None

    if not _wait(is_free, lambda: None, timeout=timeout):
        raise LabError(f"process {holder} still locks {path}")


_LOCK = struct.Struct("hhqqi4x")
"""`struct flock` of 64 bits: type, whence, start, length, process id."""


def lock_holder(path: Path) -> int | None:
    """The process that holds a lock of fcntl(2) on a file; None if nobody does."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        asked = _LOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        kind, _, _, _, pid = _LOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_GETLK, asked))
    finally:
        os.close(descriptor)
    return None if kind == fcntl.F_UNLCK else pid


def processes_in(namespaces: Iterable[str]) -> set[int]:
    """Every process whose network namespace is one of these, except our own."""
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

    A process has ended when all of its threads have, and so what it locked is free: a pidfd tells
    just that (pidfd_open(2)), while `/proc` shows a zombie as soon as the first thread has ended.
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


def kill_all(find: Callable[[], set[int]], timeout: float = 60) -> None:
    """`kill` what `find` returns until it returns nothing: a process may just start another.

    Raises `LabError` if some are left after `timeout` s.
    """
    deadline = time.monotonic() + timeout * PATIENCE
    while pids := find():
        if time.monotonic() > deadline:
            raise LabError(f"new processes are started again and again: {sorted(pids)}")
        kill(pids)
