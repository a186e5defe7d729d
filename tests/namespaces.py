"""A network namespace for a test that needs no lab."""

import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import TypeVar

from pyroute2 import netns

from lab.patience import PROGRAM_TIMEOUT

T = TypeVar("T")


@contextmanager
def namespace(name: str, *addresses: str) -> Iterator[None]:
    """A namespace with these addresses (and prefix lengths; "nodad" may follow) on a link."""
    subprocess.run(["ip", "netns", "add", name], check=True, timeout=PROGRAM_TIMEOUT)
    try:
        for command in (
            "link set lo up",
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            *(f"address add {address} dev d0" for address in addresses),
        ):
            subprocess.run(
                ["ip", "-n", name, *command.split()], check=True, timeout=PROGRAM_TIMEOUT
            )
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True, timeout=PROGRAM_TIMEOUT)


def inside(name: str, function: Callable[[], T]) -> T:
    """The result of a function that a thread of its own runs in a network namespace."""
    outcome: list[Future[T]] = []

    def call() -> None:
        done: Future[T] = Future()
        outcome.append(done)
        try:
            netns.setns(f"/run/netns/{name}")
            done.set_result(function())
        except BaseException as error:  # noqa: BLE001  raised again by the caller's thread
            done.set_exception(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(timeout=60)
    return outcome[0].result(timeout=0)
