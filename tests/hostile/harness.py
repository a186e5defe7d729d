"""Attacks, and what they cost their victims.

A lab of two nodes. On node1 are the attacker's pod and a victim's pair of pods, on node2 another
pair. `Hostile.attack` measures all victims before the attack, whenever the test asks during it, and
after it:

    def test_reset_flood(hostile: Hostile) -> None:
        with hostile.attack("pod", "reset flood") as attack:
            attack.run("default/attacker", PROGRAM, hostile.address("default/far"))
            attack.measure()
        assert attack.after.ping_lost == 0

Figures are printed and never asserted upon in time units: what a test asserts is what must hold on
any machine, for example that the victim still connects, that a bound of flows or memory holds, or
that ADD succeeds.
"""

import http.client
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from lab import Lab
from lab.processes import Process, running

Attacker = Literal["pod", "tenant", "outside", "stolen node", "stranger"]

LOAD = Path(__file__).with_name("load.py")
PORT = 7100
SECONDS = 1.0
"""How long each victim's rate is measured."""
PINGS = 50
PODS = {
    "default/attacker": "node1",
    "default/victim": "node1",
    "default/server": "node1",
    "default/far": "node2",
    "default/far-server": "node2",
}


class Measured(msgspec.Struct, frozen=True):
    """The state of all victims at one moment. Rates per second, times in seconds, memory in MB."""

    same_node_rate: float
    """Connections from `victim` to `server`, both on the attacker's node."""
    other_node_rate: float
    """Connections from `far` to `far-server`, both on the other node."""
    ping_lost: int
    """Of `PINGS` from `victim` to `far`, across the nodes."""
    add: float | None
    """An ADD on the other node; None if it failed."""
    healthz: float | None
    """The slowest of five answers of the controller's `/healthz`; None if one did not come."""
    memory: dict[str, float]
    """Resident: controller, agent and ovs-vswitchd of node1, agent2 and ovs-vswitchd2 of node2."""


class Row(msgspec.Struct, frozen=True):
    """One attack in the table and in build/hostile.json; `during` is the worst of each figure."""

    attacker: Attacker
    attack: str
    before: Measured
    during: Measured | None
    after: Measured


@dataclass
class Attack:
    """An attack that goes on."""

    hostile: "Hostile"
    attacker: Attacker
    name: str
    before: Measured
    during: list[Measured] = field(default_factory=list)
    _after: Measured | None = None
    _programs: ExitStack = field(default_factory=ExitStack)

    @property
    def after(self) -> Measured:
        assert self._after, "the attack goes on"
        return self._after

    def run(self, where: str, program: str, *arguments: str) -> Process:
        """Run a Python program in a part of the lab until the attack ends.

        Returns when it has printed `ready`.
        """
        command = self.hostile.lab.command(where, [sys.executable, "-c", program, *arguments])
        process = self._programs.enter_context(running(command))
        assert process.line() == "ready"
        return process

    def until(self, undo: Callable[[], object]) -> None:
        """Call this when the attack ends, however it does."""
        self._programs.callback(undo)

    def measure(self) -> Measured:
        """Measure all victims while the attack goes on."""
        self.during.append(self.hostile.measure())
        return self.during[-1]

    def end(self) -> None:
        self._programs.close()

    def row(self) -> Row:
        return Row(self.attacker, self.name, self.before, worst(self.during), self.after)


@dataclass
class Hostile:
    """A lab with victims in it."""

    lab: Lab
    record: Callable[[Row], None]
    """Given the row of each attack."""
    _adds: int = 0

    @contextmanager
    def attack(self, attacker: Attacker, name: str) -> Iterator[Attack]:
        """Measure before; after the context, end the attack's programs and measure once more.

        `name` is a phrase for the table. If the context raises, the attack is not recorded.
        """
        attack = Attack(self, attacker, name, self.measure())
        try:
            yield attack
        finally:
            attack.end()
        attack._after = self.measure()
        self.record(attack.row())

    def address(self, pod: str) -> str:
        """A pod's address, by NAMESPACE/NAME."""
        found = self.lab.pod(*pod.split("/")).address
        assert found
        return found

    def measure(self) -> Measured:
        """Measure all victims now, one after another."""
        return Measured(
            same_node_rate=self._rate("default/victim", "default/server"),
            other_node_rate=self._rate("default/far", "default/far-server"),
            ping_lost=self._pings_lost("default/victim", self.address("default/far")),
            add=self._add("node2"),
            healthz=self._healthz(),
            memory=self.memory(),
        )

    def memory(self) -> dict[str, float]:
        """Resident memory of each daemon that runs, in MB."""
        status = self.lab.status()
        one, two = status["nodes"]["node1"]["pids"], status["nodes"]["node2"]["pids"]
        pids = {
            "controller": status["controller"]["pid"],
            "agent": one["agent"],
            "ovs-vswitchd": one["ovs-vswitchd"],
            "agent2": two["agent"],
            "ovs-vswitchd2": two["ovs-vswitchd"],
        }
        return {name: resident(pid) for name, pid in pids.items() if pid}

    def _rate(self, client: str, server: str) -> float:
        words = [sys.executable, "-I", str(LOAD), "connect", self.address(server), str(PORT)]
        said = self.lab.exec(client, [*words, str(SECONDS)], timeout=60).stdout
        return int(said.split()[0]) / SECONDS

    def _pings_lost(self, where: str, to: str) -> int:
        command = ["ping", "-n", "-q", "-c", str(PINGS), "-i", "0.02", "-W", "1", to]
        said = self.lab.exec(where, command, timeout=60, check=False).stdout
        found = re.search(r"(\d+) received", said)
        return PINGS - int(found[1]) if found else PINGS

    def _add(self, node: str) -> float | None:
        self._adds += 1
        name = f"added-{self._adds}"
        began = time.monotonic()
        try:
            self.lab.pod_add("default", name, node)
        except Exception:  # noqa: BLE001  an ADD that fails is a figure, too
            return None
        took = time.monotonic() - began
        self.lab.pod_del("default", name)
        return took

    def _healthz(self) -> float | None:
        slowest = 0.0
        for _ in range(5):
            began = time.monotonic()
            if not self._is_healthy():
                return None
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    def _is_healthy(self) -> bool:
        connection = http.client.HTTPConnection("controller", timeout=30)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(30)
            connection.sock.connect(str(self.lab.layout.api_socket))
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()


def resident(pid: int) -> float:
    """A process's resident memory in MB (proc(5), status, VmRSS)."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    return int(found[1]) / 1024 if found else 0.0


def worst(measured: list[Measured]) -> Measured | None:
    """The worst of each figure."""
    if not measured:
        return None

    def slowest(times: list[float | None]) -> float | None:
        known = [each for each in times if each is not None]
        return max(known) if len(known) == len(times) else None

    names = sorted({name for each in measured for name in each.memory})
    return Measured(
        same_node_rate=min(each.same_node_rate for each in measured),
        other_node_rate=min(each.other_node_rate for each in measured),
        ping_lost=max(each.ping_lost for each in measured),
        add=slowest([each.add for each in measured]),
        healthz=slowest([each.healthz for each in measured]),
        memory={name: max(each.memory.get(name, 0) for each in measured) for name in names},
    )


@contextmanager
def victims(lab: Lab, record: Callable[[Row], None]) -> Iterator[Hostile]:
    """The pods of `PODS` in a lab of two nodes or more, with a server in each of the servers."""
    for pod, node in PODS.items():
        lab.pod_add(*pod.split("/"), node)
    with ExitStack() as servers:
        for pod in ("default/server", "default/far-server"):
            command = lab.command(pod, [sys.executable, "-I", str(LOAD), "serve", str(PORT)])
            assert servers.enter_context(running(command)).line() == "ready"
        yield Hostile(lab, record)


def to_json(row: Row) -> dict[str, Any]:
    built: dict[str, Any] = msgspec.to_builtins(row)
    return built
