"""Who reaches whom with a first packet: `station.py` in pods, on nodes and outside.

A packet that arrives is seen. That one does not arrive is known as soon as a later one has arrived
that went the same way: on a connection that was established before, which no policy concerns.
"""

import json
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from lab import Lab
from lab.patience import PATIENCE
from lab.processes import Process, running
from tests.lab.pings import address

PROGRAM = Path(__file__).with_name("station.py")
APART = 0.05 * (PATIENCE - 1)
"""Seconds between the packets and the word that ends them. In the kernel's datapath a first packet
waits for ovs-vswitchd while later ones of a connection go past it."""
PAUSE = 0.0005 * PATIENCE
"""Seconds between packets: the sockets of the userspace datapath hold some 90."""
LONGEST_CHANGE = 60.0 * PATIENCE
"""Seconds in which a change must be in force."""
MOST_ATTEMPTS = 4
"""Times that a word is said."""
PORTLESS = {"ICMP", "FRAGMENTS"}


class Probe(NamedTuple):
    """A first packet from one place to another. A place is a pod, a node, or `outside`."""

    source: str
    destination: str
    protocol: str = "TCP"
    port: int = 80
    via: str = ""
    """The address that it is sent to, where that is not the destination's own: a Service's."""


class Stations:
    """A station in each of these places, which all have met."""

    def __init__(self, processes: Mapping[str, Process], addresses: Mapping[str, str]) -> None:
        self.addresses = addresses
        self._processes = processes
        self._rounds = 0
        self._numbers = 0

    @classmethod
    @contextmanager
    def at(cls, lab: Lab, places: Collection[str]) -> Iterator["Stations"]:
        """Start them. No policy may be there yet that forbids UDP among them."""
        with ExitStack() as stack:
            processes = {place: stack.enter_context(_station(lab, place)) for place in places}
            stations = cls(processes, {place: place_address(lab, place) for place in places})
            for place in places:
                stations.ask(place, "meet", to=stations._met(place))
            yield stations

    def _met(self, place: str) -> list[str]:
        """The addresses of those to whom it sends packets; only pods send to others than pods."""
        if place == "outside":
            return []  # it does not know the way to pods
        others = (p for p in self.addresses if p != place)
        return [self.addresses[p] for p in others if "/" in place or "/" in p]

    def say(self, place: str, verb: str, **more: Any) -> None:
        """Have a station begin something; `answer` has what it says to it."""
        self._processes[place].say(f"{json.dumps({'verb': verb, **more})}\n")

    def answer(self, place: str) -> Any:
        return json.loads(self._processes[place].line())

    def ask(self, place: str, verb: str, **more: Any) -> Any:
        """What a station answers; fails if that is a complaint."""
        self.say(place, verb, **more)
        answer = self.answer(place)
        assert not isinstance(answer, str), f"{place}: {verb}: {answer}"
        return answer

    def numbers(self, count: int) -> range:
        """Numbers for so many packets that no other packet has."""
        self._numbers += count
        return range(self._numbers - count, self._numbers)

    def seen(self, of: Mapping[str, Collection[str]]) -> dict[str, list[int]]:
        """What stations have seen when all is in that was sent to them; by place.

        `of`: by place, who has sent to it.
        """
        for attempt in range(MOST_ATTEMPTS):
            self._rounds += 1
            told = defaultdict(list)
            for place, senders in of.items():
                for sender in senders:
                    told[sender].append(self.addresses[place])
            for sender, to in told.items():
                self.ask(sender, "end", word=f"{self._rounds} {sender}", to=to, pause=APART)
            for place, senders in of.items():
                words = [f"{self._rounds} {sender}" for sender in senders]
                self.say(place, "collect", words=words)
            heard = {place: self.answer(place) for place in of}
            # A word may be lost, as any packet may, while a switch starts again.
            if attempt + 1 == MOST_ATTEMPTS or not any(isinstance(h, str) for h in heard.values()):
                break
        complaints = [h for h in heard.values() if isinstance(h, str)]
        assert not complaints, complaints
        return heard

    def arrived(self, probes: Iterable[Probe]) -> set[Probe]:
        """Send one packet for each; those that have arrived."""
        probes = list(probes)
        numbered = dict(zip(self.numbers(len(probes)), probes, strict=True))
        to_send, of = defaultdict(list), defaultdict(set)
        for number, probe in numbered.items():
            to = probe.via or self.addresses[probe.destination]
            to_send[probe.source].append([to, probe.protocol, probe.port, number])
            of[probe.destination].add(probe.source)
        for source, packets in to_send.items():
            self.ask(source, "send", packets=packets, pause=PAUSE)
        found = set()
        for place, numbers in self.seen(of).items():
            for number in numbers:
                probe = numbered[number]
                assert place == probe.destination, f"{probe} has arrived at {place}"
                found.add(probe)
        return found

    def check(self, expected: Mapping[Probe, bool]) -> None:
        """Wait until exactly the expected ones arrive, twice."""
        allowed = {probe for probe, is_allowed in expected.items() if is_allowed}
        end = time.monotonic() + LONGEST_CHANGE
        times = 0
        while times < 2:
            found = self.arrived(expected)
            times = times + 1 if found == allowed else 0
            assert times or time.monotonic() < end, (
                f"passes, and must not: {named(found - allowed)}; "
                f"does not pass, and must: {named(allowed - found)}"
            )


def named(probes: Collection[Probe]) -> list[str]:
    """The first of them, as text."""
    return [f"{p.source} to {p.destination} {p.protocol} {p.port}" for p in sorted(probes)[:20]]


@contextmanager
def _station(lab: Lab, place: str) -> Iterator[Process]:
    command = lab.command(place, [sys.executable, "-I", str(PROGRAM)])
    with running(command) as process:
        assert process.line() == "ready"
        yield process


def place_address(lab: Lab, place: str) -> str:
    """The address by which others know a place; a node's own, not its gateway's."""
    if "/" in place:
        return address(lab, place)
    status = lab.status()
    return str(status["nodes"].get(place, status["outside"])["address"])
