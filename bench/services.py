"""service_*_vs_ovn, service_update_10k_vs_10: Services on three switches, against OVN.

For both, Services are at addresses of their own and have ten endpoints each, which need no pods.
OVN has them as load balancers of one logical switch with a port on each node.
"""

import asyncio
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from bench import in_process, ovn
from bench import service_objects as objects
from bench.controller import write_manifests
from bench.figures import Figure, steady_rounds, versus
from bench.nodes import bare_lab, ofctl, unique
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import Object, ServiceObject, ref
from lab import Lab, LabError
from lab.layout import NodeLayout

NODES = 3
PATIENCE = 120.0
PAUSE = 0.5
"""Seconds of quiet before what is measured."""


def measure(
    *, services: int = 1000, few: int = 10, many: int = 10_000, rounds: int = 7, loads: int = 5
) -> list[Figure]:
    """Against OVN one endpoint more, then all from nothing; then ours with many and few."""
    return [
        *_update(services, rounds),
        *_load(services, loads),
        *_flatness(few, many, rounds),
    ]


def _update(services: int, rounds: int) -> list[Figure]:
    ours: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    with (
        Lab(unique("svc")).running(nodes=NODES) as lab,
        bare_lab("ovn-u", NODES) as rival,
    ):
        sluice, other = Ours(lab, services), Ovn(rival, services)
        sluice.prepare(rounds)
        other.prepare()
        for turn in steady_rounds(ratios, rounds):
            number = turn % rounds % services
            ours.append(1000 * sluice.update(number))
            theirs.append(1000 * other.update(number))
            ratios.append(ours[-1] / theirs[-1])
    return versus("service_update_vs_ovn", "ms", ours, ("ovn", theirs), at_most=0.1)


def _load(services: int, rounds: int) -> list[Figure]:
    with bare_lab("load", NODES) as lab, bare_lab("ovn-l", NODES) as rival:
        other = Ovn(rival, 0)
        other.prepare()
        ours, theirs = asyncio.run(_loads(lab, other, services, rounds))
    return versus("service_load_vs_ovn", "s", ours, ("ovn", theirs), at_most=0.5)


def _flatness(few: int, many: int, rounds: int) -> list[Figure]:
    """Both are ours."""
    with_few: list[float] = []
    with_many: list[float] = []
    with (
        Lab(unique("many")).running(nodes=NODES) as large,
        Lab(unique("few")).running(nodes=NODES) as small,
    ):
        loaded, light = Ours(large, many), Ours(small, few)
        loaded.prepare(rounds)
        light.prepare(rounds)
        for number in range(rounds):
            with_many.append(1000 * loaded.update(number % few))
            with_few.append(1000 * light.update(number % few))
    name = "service_update_10k_vs_10"
    ratio, *_ = versus(name, "ms", with_many, ("few", with_few), at_most=1.2)
    return [ratio, Figure(f"{name}.10k", "ms", with_many), Figure(f"{name}.10", "ms", with_few)]


@dataclass(frozen=True)
class Ours:
    """A lab with Sluice whose controller reads the Services from its directory."""

    lab: Lab
    services: int

    @property
    def _nodes(self) -> Sequence[NodeLayout]:
        return self.lab.layout.nodes(NODES)

    def prepare(self, changing: int) -> None:
        """Write all Services down; return when every switch has them.

        Of the first few the slice is to be `changing`.
        """
        directory = self.lab.layout.cluster
        everything = [objects.service(number) for number in range(self.services)]
        for number in range(self.services):
            endpoints = objects.slice_of(self._nodes, number)
            if number < changing:
                # In a file of its own, as in a cluster an object comes alone.
                write_manifests(directory / "slices" / f"{number}.yaml", [endpoints])
            else:
                everything.append(endpoints)
        write_manifests(directory / "services.yaml", everything)
        deadline = time.monotonic() + PATIENCE
        while not all(len(_groups(node)) == self.services for node in self._nodes):
            if time.monotonic() > deadline:
                problems = self.lab.status()["problems"]
                raise LabError(f"Services that no switch has after {PATIENCE} s: {problems}")
            time.sleep(1)

    def update(self, number: int) -> float:
        """Seconds from one endpoint more in a slice's file until all switches said they have it."""
        seconds = asyncio.run(self._write(number, objects.ENDPOINTS + 1))
        _expect(self._nodes, number)
        asyncio.run(self._write(number, objects.ENDPOINTS))
        return seconds

    async def _write(self, number: int, endpoints: int) -> float:
        path = self.lab.layout.cluster / "slices" / f"{number}.yaml"
        manifest = objects.slice_of(self._nodes, number, endpoints)
        ready = self.lab.layout.directory / path.name
        write_manifests(ready, [manifest])
        async with in_process.sealed_anew(self._nodes) as sealed, asyncio.timeout(PATIENCE):
            await asyncio.sleep(PAUSE)
            began = time.monotonic()
            ready.rename(path)
            await sealed
            # The switches have it; now until the controller knows, too.
            while not self._in_sync():  # noqa: ASYNC110 - another process knows
                await asyncio.sleep(0)
            return time.monotonic() - began

    def _in_sync(self) -> bool:
        status = self.lab.ask("/v1/status")
        return status is not None and all(n["inSync"] for n in status["nodes"].values())


@dataclass(frozen=True)
class Ovn:
    """A bare lab with OVN."""

    lab: Lab
    services: int

    @property
    def _nodes(self) -> Sequence[NodeLayout]:
        return self.lab.layout.nodes(NODES)

    def prepare(self) -> None:
        """Start it, with this many load balancers."""
        ovn.start(self.lab, NODES)
        ovn.bind_ports(self.lab, NODES)
        if self.services:
            self.load(range(self.services))

    def load(self, numbers: Iterable[int]) -> float:
        """Seconds that `ovn-nbctl` takes to add all of these, `--wait=hv`."""
        words: list[str] = []
        for number in numbers:
            words += ["--", "lb-add", *self._balancer(number, objects.ENDPOINTS)]
            words += ["--", "ls-lb-add", ovn.LOGICAL_SWITCH, objects.name(number)]
        return self._timed(words)

    def unload(self, numbers: Iterable[int]) -> None:
        """Take these away again."""
        self._timed([word for number in numbers for word in ("--", "lb-del", objects.name(number))])

    def update(self, number: int) -> float:
        """Seconds that `ovn-nbctl` takes to give a load balancer one backend more, `--wait=hv`."""
        change = ["--", "--may-exist", "lb-add"]
        time.sleep(PAUSE)
        seconds = self._timed([*change, *self._balancer(number, objects.ENDPOINTS + 1)])
        _expect(self._nodes, number)
        self._timed([*change, *self._balancer(number, objects.ENDPOINTS)])
        return seconds

    def _balancer(self, number: int, endpoints: int) -> list[str]:
        chosen = [objects.endpoint(self._nodes, number, index) for index in range(endpoints)]
        backends = ",".join(f"{address}:{objects.target_port(number)}" for _, address in chosen)
        vip = f"{objects.cluster_ip(number)}:{objects.PORT}"
        return [objects.name(number), vip, backends, "tcp"]

    def _timed(self, words: Sequence[str]) -> float:
        began = time.monotonic()
        ovn.nbctl(self.lab, "--wait=hv", *words)
        return time.monotonic() - began


async def _loads(
    lab: Lab, other: Ovn, services: int, rounds: int
) -> tuple[list[float], list[float]]:
    """Seconds from the bytes of both lists, as an API server gives them, to all acknowledgements.

    The controller is its own code in this process, without the API server: that one would take
    far longer to be given all of this. OVN's clock begins with `ovn-nbctl`.
    """
    nodes = lab.layout.nodes(NODES)
    lists = [
        msgspec.json.encode([objects.service(number) for number in range(services)]),
        msgspec.json.encode([objects.slice_of(nodes, number) for number in range(services)]),
    ]
    ours: list[float] = []
    theirs: list[float] = []
    ratios: list[float] = []
    async with in_process.controller(lab, NODES) as reconciler:
        for _ in steady_rounds(ratios, rounds):
            began = time.monotonic()
            made: list[Object] = [
                *in_process.decoded(lists[0], ServiceObject),
                *in_process.decoded(lists[1], SliceObject),
            ]
            reconciler.update(made, [])
            await in_process.acknowledged(reconciler, NODES)
            ours.append(time.monotonic() - began)
            if any(len(_groups(node)) != services for node in nodes):
                raise LabError("not every switch has the group of each Service")
            gone = [ref(o) for o in made]
            reconciler.update([], gone)
            await in_process.acknowledged(reconciler, NODES)

            theirs.append(await asyncio.to_thread(other.load, range(services)))
            if any(len(_groups(node)) != services for node in other.lab.layout.nodes(NODES)):
                raise LabError("not every switch has the group of each load balancer")
            await asyncio.to_thread(other.unload, range(services))
            ratios.append(ours[-1] / theirs[-1])
    return ours, theirs


def _groups(node: NodeLayout) -> list[str]:
    # Each part of a long answer has a heading.
    return [line for line in ofctl(node, "dump-groups").splitlines() if "group_id=" in line]


def _expect(nodes: Sequence[NodeLayout], number: int) -> None:
    """Raise `LabError` unless each node's switch has a bucket for the endpoint that was added."""
    _, address = objects.endpoint(nodes, number, objects.ENDPOINTS)
    added = f"{address}:{objects.target_port(number)}"
    for node in nodes:
        if added not in ofctl(node, "dump-groups"):
            raise LabError(f"{node.name} has not got the endpoint {added}")
