"""Faults of a lab's control plane, for tests: a process that is stopped, a controller cut off."""

import os
import signal
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Literal

from lab import apiserver
from lab.commands import LabError, run
from lab.control import daemons
from lab.lab import Lab
from lab.layout import (
    API_PORT,
    CONTROL_ADDRESS,
    FIRST_NODE_ADDRESS,
    MOST_NODES,
    ControllerLayout,
)

Part = Literal["API server", "nodes", "controllers"]
"""What a controller can be cut off from: switches and agents are `nodes`."""
Verdict = Literal["drop", "reject"]
"""Packets vanish, or each side is told by a TCP reset that the connection is over."""

_TABLE = "sluice-lab-cut"


def pid(lab: Lab, where: str, daemon: str) -> int:
    """The process id of a daemon of the control plane. Raises `LabError` if it does not run."""
    found = daemons(_place(lab, where)).pid(daemon)
    if found is None:
        raise LabError(f"{daemon} in {where} does not run")
    return found


@contextmanager
def stopped(lab: Lab, where: str, daemon: str = "controller") -> Iterator[None]:
    """A daemon of the control plane does not run (SIGSTOP), but is there; then it goes on."""
    process = pid(lab, where, daemon)
    os.kill(process, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process, signal.SIGCONT)


@contextmanager
def cut_off(
    lab: Lab, where: str, parts: Collection[Part], verdict: Verdict = "drop"
) -> Iterator[None]:
    """A controller that no packet leads to or from: not those of these parts of the lab.

    The first controller (`control`) is beside the API server, so it cannot be cut off from that.
    """
    place = _place(lab, where)
    if "API server" in parts and place.address == CONTROL_ADDRESS:
        raise LabError("control has the API server itself, and cannot be cut off from it")
    run(["nft", "-f", "-"], netns=place.netns, stdin=_ruleset(parts, verdict))
    try:
        yield
    finally:
        run(["nft", "delete", "table", "inet", _TABLE], netns=place.netns)


def _ruleset(parts: Collection[Part], verdict: Verdict) -> str:
    nodes = f"{FIRST_NODE_ADDRESS}-{FIRST_NODE_ADDRESS + (MOST_NODES - 1)}"
    matches = {
        "API server": [
            f"ip {{way}} {CONTROL_ADDRESS} tcp {end} {apiserver.PORT}" for end in ("sport", "dport")
        ],
        "nodes": [f"ip {{way}} {nodes} meta l4proto tcp"],
        "controllers": [
            f"ip {{way}} != {nodes} tcp {end} {API_PORT}" for end in ("sport", "dport")
        ],
    }
    # Both chains see the resets that `reject` sends.
    resets = [] if verdict == "drop" else ["tcp flags rst accept"]
    action = "drop" if verdict == "drop" else "reject with tcp reset"
    chains = []
    for hook, way in (("input", "saddr"), ("output", "daddr")):
        rules = [match.format(way=way) for part in parts for match in matches[part]]
        body = "\n".join([*resets, *(f"{rule} {action}" for rule in rules)])
        chains.append(f"chain {hook} {{ type filter hook {hook} priority 0;\n{body}\n}}")
    return f"table inet {_TABLE} {{\n" + "\n".join(chains) + "\n}\n"


def _place(lab: Lab, where: str) -> ControllerLayout:
    number = int(where.removeprefix("control") or 1)
    return lab.layout.controller(number)
