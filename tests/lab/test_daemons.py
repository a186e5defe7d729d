"""The lab's daemons: a kill is complete, and a daemon that does not start fails at once."""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.commands import LabError
from lab.daemons import Daemons, _wait_for_lock, lock_holder
from lab.daemons import kill as kill_processes
from tests.namespaces import namespace
from tests.waiting import wait_until

# Locks its pid file, listens, and ends its first thread while the second goes on.
LATE = """
import ctypes, fcntl, os, socket, sys, threading, time
lock = open(sys.argv[1], "w")
fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[2] + str(os.getpid()))
server.listen()
if sys.argv[3:] == ["exit"]:
    threading.Thread(target=time.sleep, args=(600,)).start()
    # exit(2), which ends this thread alone.
    ctypes.CDLL(None).syscall({"x86_64": 60, "aarch64": 93}[os.uname().machine], 0)
time.sleep(600)
"""


@pytest.fixture
def daemons(tmp_path: Path) -> Iterator[Daemons]:
    netns = f"sluice-t{os.getpid()}"
    with namespace(netns):
        made = Daemons(netns, tmp_path / "log")
        try:
            yield made
        finally:
            kill_processes(made.pids().values())


def start_late(daemons: Daemons, directory: Path, *arguments: str) -> int:
    lock, prefix = directory / "late.pid", str(directory / "late.")
    command = [sys.executable, "-c", LATE, str(lock), prefix, *arguments]
    return daemons.start(
        "late", command, listens_at=lambda pid: Path(f"{prefix}{pid}"), pid_file=lock
    )


def first_thread_has_ended(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_process_runs_until_its_last_thread_has_ended(daemons: Daemons, tmp_path: Path) -> None:
    pid = start_late(daemons, tmp_path, "exit")
    wait_until(lambda: first_thread_has_ended(pid))
    assert daemons.pid("late") == pid
    assert lock_holder(tmp_path / "late.pid") == pid


def test_lock_is_free_after_a_kill(daemons: Daemons, tmp_path: Path) -> None:
    pid = start_late(daemons, tmp_path, "exit")
    wait_until(lambda: first_thread_has_ended(pid))
    daemons.kill("late")
    assert lock_holder(tmp_path / "late.pid") is None
    assert daemons.pid("late") is None


def test_daemon_starts_while_its_predecessor_exits(daemons: Daemons, tmp_path: Path) -> None:
    before = start_late(daemons, tmp_path, "exit")
    wait_until(lambda: first_thread_has_ended(before))
    after = start_late(daemons, tmp_path)
    assert after != before
    assert lock_holder(tmp_path / "late.pid") == after


def test_daemon_that_ends_at_once_fails_with_its_log(daemons: Daemons, tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"has ended(.|\n)*already running as pid 7, aborting"):
        daemons.start(
            "short",
            ["sh", "-c", "echo already running as pid 7, aborting; exit 1"],
            listens_at=lambda _: tmp_path / "nobody",
        )


def test_lock_that_stays_is_reported_with_its_holder(daemons: Daemons, tmp_path: Path) -> None:
    pid = start_late(daemons, tmp_path)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(LabError, match=rf"process {pid} still locks"):
        _wait_for_lock(tmp_path / "late.pid", timeout=0.1)


def test_pid_file_of_nobody_is_free(tmp_path: Path) -> None:
    assert lock_holder(tmp_path / "absent") is None
    (tmp_path / "stale").write_text("1")
    assert lock_holder(tmp_path / "stale") is None
