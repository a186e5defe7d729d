"""Pings that say which requests were lost.

The summary that ping prints does not: it counts as lost what is still on its way when it ends, and
with `-c` it waits for the last answer no longer than twice the longest round trip so far.
"""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from lab import Lab
from lab.processes import Process, running


def address(lab: Lab, pod: str) -> str:
    """The address of a pod, by NAMESPACE/NAME."""
    found = lab.pod(*pod.split("/")).address
    assert found
    return found


def lost(output: str) -> set[int]:
    """The requests without an answer, before the last answered one. Fails if none is answered."""
    answered = {int(number) for number in re.findall(r"icmp_seq=(\d+) ttl=", output)}
    assert answered, output
    return set(range(1, max(answered) + 1)) - answered


def ping(lab: Lab, where: str, to: str, *options: str) -> str:
    """Three requests, which must all be answered, without a limit for each."""
    # With -w, ping goes on until it has as many answers.
    command = ["ping", "-n", "-c", "3", "-i", "0.05", "-w", "60", *options, to]
    output = lab.exec(where, command, timeout=90).stdout
    assert not lost(output), output
    return output


@contextmanager
def ping_while(lab: Lab, where: str, to: str) -> Iterator[Process]:
    """A ping every 10 ms for as long as the context lasts; `ended` gives its output.

    Between nodes nobody may add or remove a pod meanwhile: with any flows, Open vSwitch's userspace
    datapath loses a packet of a tunnel in some ten changes of ports.
    """
    with running(lab.command(where, ["ping", "-n", "-i", "0.01", to])) as process:
        yield process


def ended(pinging: Process) -> str:
    """End `ping_while`; its output."""
    return pinging.end(signal.SIGINT)
