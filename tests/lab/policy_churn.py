"""Policies that change all the time, packets that never may pass, and packets that always may.

All objects are those of one namespace. In each of its states, some ports are open at the sender and
the others at the receiver, so none of them lets a packet through from end to end. But a mixture of
two states would. Port `ALWAYS` is open at both ends in every state.
"""

import random
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from lab import Lab
from lab.patience import PATIENCE
from tests.lab.policy_objects import Part, edit_pod
from tests.lab.stations import Probe, Stations
from tests.policy.manifests import namespace, network_policy

ALWAYS: Final = 8000
BY_POLICY: Final = range(8001, 8005)
"""Each is open at one end, by one policy for both ends, which is replaced."""
BY_POD_LABEL: Final = 8005
"""Pods with role red may send to it, and what comes from role blue is accepted."""
BY_NAMESPACE_LABEL: Final = 8006
"""Pods may send to namespaces of team red, and what comes from those of team blue is accepted."""
MEETING_PORT: Final = 40000
"""Of the connections between stations. A restart of ovs-vswitchd forgets that they are there."""
NEVER: Final = (*BY_POLICY, BY_POD_LABEL, BY_NAMESPACE_LABEL)

NEVER_PODS: Final = {"c/n1": "node1", "c/n2": "node2", "c/n3": "node1"}
"""Among them go the packets that may not pass, and no others: so what is denied to the other pods
is a fault."""
ALWAYS_PODS: Final = {"c/a1": "node1", "c/a2": "node2", "c/a3": "node1"}
PAUSE: Final = 0.003 * PATIENCE
"""Seconds between two packets of a pod."""
LONGEST_END: Final = 60.0 * PATIENCE
"""Seconds until the last change is done."""
CHANGES_PER_SECOND: Final = 10 / PATIENCE
_BLOCK: Final = 10_000_000
"""Numbers of packets to one target."""
_CELL: Final = {"podSelector": {"matchLabels": {"cell": "c"}}}


def udp(*ports: int) -> Part:
    return {"ports": [{"protocol": "UDP", "port": port} for port in ports]}


def both_ends(opened_at_sender: Sequence[int]) -> Part:
    """The policy that opens these ports at the sender, and the others at the receiver."""
    others = [port for port in BY_POLICY if port not in opened_at_sender]
    return network_policy(
        "c/both",
        podSelector=_CELL["podSelector"],
        egress=[{"to": [_CELL], **udp(ALWAYS, MEETING_PORT, *opened_at_sender)}],
        ingress=[{"from": [_CELL], **udp(ALWAYS, MEETING_PORT, *others)}],
        policyTypes=["Egress", "Ingress"],
    )


def _by_labels() -> list[Part]:
    def of_role(color: str) -> Part:
        return {"podSelector": {"matchLabels": {"role": color}}}

    def of_team(color: str) -> Part:
        return {"namespaceSelector": {"matchLabels": {"team": color}}}

    return [
        network_policy(
            "c/red-sends", **of_role("red"), egress=[{"to": [_CELL], **udp(BY_POD_LABEL)}],
            policyTypes=["Egress"],
        ),
        network_policy(
            "c/labels",
            podSelector=_CELL["podSelector"],
            egress=[{"to": [of_team("red")], **udp(BY_NAMESPACE_LABEL)}],
            ingress=[
                {"from": [of_role("blue")], **udp(BY_POD_LABEL)},
                {"from": [of_team("blue")], **udp(BY_NAMESPACE_LABEL)},
            ],
            policyTypes=["Egress", "Ingress"],
        ),
    ]  # fmt: skip


def labels(color: str) -> dict[str, str]:
    return {"cell": "c", "role": color}


@dataclass
class Churn:
    """The objects, and a thread that changes them."""

    lab: Lab
    seed: int = 0
    with_pods: bool = True
    """Whether pods come and go, too."""
    changes: int = 0
    pods_changed: int = 0
    problem: BaseException | None = None
    _stop: threading.Event = field(default_factory=threading.Event)

    def prepare(self) -> None:
        """Make namespace and pods, without policies."""
        self.lab.apply(namespace("c", team="red"))
        for pod, node in {**NEVER_PODS, **ALWAYS_PODS}.items():
            self.lab.pod_add(*pod.split("/"), node, labels("blue"))

    def isolate(self) -> None:
        """Make the policies."""
        for each in (both_ends(BY_POLICY[:2]), *_by_labels()):
            self.lab.apply(each)

    def change(self, chance: random.Random) -> None:
        """One change of one object."""
        kind = chance.randrange(10)
        if kind < 5:
            self.lab.apply(both_ends(chance.sample(BY_POLICY, chance.randrange(5))))
        elif kind < 7 or (kind == 9 and not self.with_pods):
            edit_pod(self.lab, chance.choice(list(NEVER_PODS)), labels(_color(chance)))
        elif kind < 9:
            self.lab.apply(namespace("c", team=_color(chance)))
        else:
            self.pods_changed += 2
            node = chance.choice(("node1", "node2"))
            self.lab.pod_add("c", "passing", node, labels(_color(chance)))
            self.lab.pod_del("c", "passing")
        self.changes += 1

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the context lasts, objects change ten times a second."""
        self._stop.clear()
        thread = threading.Thread(target=self._run)
        thread.start()
        try:
            yield
        finally:
            self._stop.set()
            thread.join(timeout=LONGEST_END)
            assert not thread.is_alive()
        if self.problem is not None:
            raise self.problem

    def _run(self) -> None:
        chance = random.Random(self.seed)  # noqa: S311  # no secret
        try:
            while not self._stop.wait(1 / CHANGES_PER_SECOND):
                self.change(chance)
        except BaseException as problem:  # noqa: BLE001  # the main thread raises it
            self.problem = problem


def _color(chance: random.Random) -> str:
    return chance.choice(("red", "blue"))


class Traffic:
    """Streams of first packets: those that never may pass, and those that always may."""

    def __init__(self, stations: Stations) -> None:
        self._stations = stations
        self._targets: dict[int, tuple[Probe, int]] = {}
        """By the first number of a block: what its packets are, and how many were sent."""

    @classmethod
    @contextmanager
    def of(cls, churn: Churn) -> Iterator["Traffic"]:
        """The stations; afterwards the pods have their policies."""
        with Stations.at(churn.lab, (*NEVER_PODS, *ALWAYS_PODS)) as stations:
            churn.isolate()
            traffic = cls(stations)
            traffic.check()
            yield traffic

    def check(self) -> None:
        """Wait until what passes is what every state says."""
        self._stations.check({probe: probe.port == ALWAYS for probe in self._probes()})

    def _probes(self) -> Iterator[Probe]:
        for pods, ports in ((NEVER_PODS, NEVER), (ALWAYS_PODS, (ALWAYS,))):
            for source in pods:
                for destination in pods:
                    if source != destination:
                        for port in ports:
                            yield Probe(source, destination, "UDP", port)

    @contextmanager
    def flowing(self) -> Iterator["Passed"]:
        """While the context lasts, packets flow; what has passed is known after it."""
        passed = Passed()
        blocks: dict[int, Probe] = {}
        streams: dict[str, list[int]] = {}
        for probe in self._probes():
            first = self._stations.numbers(2 * _BLOCK)[_BLOCK] // _BLOCK * _BLOCK
            blocks[first] = probe
            streams.setdefault(probe.source, []).append(first)
        for source, firsts in streams.items():
            targets = [
                (self._stations.addresses[blocks[first].destination], blocks[first].port, first)
                for first in firsts
            ]
            self._stations.say(source, "stream", targets=targets, pause=PAUSE)
        try:
            yield passed
        finally:
            pods = [*NEVER_PODS, *ALWAYS_PODS]
            for source in streams:  # ends the stream
                self._stations.say(source, "end", word="", to=[], pause=0)
            for source, firsts in streams.items():
                for first, sent in zip(firsts, self._stations.answer(source), strict=True):
                    passed.sent[blocks[first]] = sent
                self._stations.answer(source)
        of = {p: {s for s in pods if s != p} for p in pods}
        for place, numbers in self._stations.seen(of).items():
            for number in numbers:
                probe = blocks[number - number % _BLOCK]
                assert probe.destination == place
                passed.arrived.setdefault(probe, set()).add(number % _BLOCK)


@dataclass
class Passed:
    """What has become of the packets of some seconds."""

    sent: dict[Probe, int] = field(default_factory=dict)
    arrived: dict[Probe, set[int]] = field(default_factory=dict)

    @property
    def leaked(self) -> dict[Probe, set[int]]:
        """Which packets have passed that never may."""
        return {probe: of for probe, of in self.arrived.items() if probe.port != ALWAYS}

    @property
    def lost(self) -> dict[Probe, list[int]]:
        """Which packets have not passed that always may."""
        return {
            probe: missing
            for probe, sent in self.sent.items()
            if probe.port == ALWAYS
            and (missing := sorted(set(range(sent)) - self.arrived.get(probe, set())))
        }
