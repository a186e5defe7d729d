"""Random faults in a cluster under traffic: `python -m lab.soak`, or `make soak MINUTES=N`.

Pods are added and deleted at random, daemons are killed, links are cut, and flows are changed by
hand, while traffic runs between pods that stay. The sequence depends on the seed alone. After each
step, and at the end by an independent check, the flows that the controller compiled, those that the
switches hold, and the pods that reach each other must agree. When all pods are deleted, nothing may
be left of them.
"""

import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import permutations
from random import Random
from secrets import randbits
from typing import Any, Literal

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from flows.pipeline import LAYOUT, Feature
from lab import Lab, LabError
from lab.daemons import kill
from lab.display import Steps
from lab.interrupt import one_interrupt
from lab.traces import OFCTL, traces
from lab.traffic import Outage, Ping, Stream, ping, stream

NAMESPACE = "soak"
MOST_PODS = 15
"""Beside those that stay. At the end each pings each."""
INTERVAL = 0.02
"""Seconds between two packets of each ping."""
PATIENCE = 180.0
"""Seconds after which a fault must be repaired: far more than the audit's interval."""
SLACK = 1.0
"""Seconds before and after a fault in which loss is expected too: packets are on their way, and
Open vSwitch learns late that a link changed."""


@dataclass(frozen=True)
class ExpectedLoss:
    """Packets between these nodes may be lost in this time."""

    why: str
    nodes: frozenset[str]
    tunnels_only: bool
    """Whether only packets between nodes may be lost, not those within one node."""
    begin: float
    end: float


def is_expected(outage: Outage, nodes: Sequence[str], expected: Sequence[ExpectedLoss]) -> bool:
    """Whether every packet lost between `nodes` was sent while a fault explains its loss."""
    across = len(set(nodes)) > 1
    at = outage.first
    for loss in sorted(expected, key=lambda loss: loss.begin):
        concerned = loss.nodes & set(nodes) and (across or not loss.tunnels_only)
        if concerned and loss.begin - SLACK <= at:
            at = max(at, loss.end + SLACK)
    return at > outage.last


@dataclass(frozen=True)
class Watched:
    """A ping that goes on all the time."""

    title: str
    nodes: tuple[str, str]
    ping: Ping


@dataclass
class Soak:
    """The cluster, what is done to it, and what went wrong."""

    lab: Lab
    nodes: list[str]
    random: Random
    say: Callable[[str], None]
    pods: dict[str, str] = field(default_factory=dict)
    """Those that come and go: name -> node."""
    made: int = 0
    done: Counter[str] = field(default_factory=Counter)
    expected: list[ExpectedLoss] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    # What happens

    def run_random_fault(self) -> None:
        """Cause one fault or change at random. All random choices are made before it begins."""
        faults: list[tuple[Callable[[], None], int]] = [
            (self.add_pods, 5 if len(self.pods) < MOST_PODS else 0),
            (self.delete_pods, 4 if self.pods else 0),
            (self.kill_daemons, 4),
            (self.tamper, 4),
            (self.cut_link, 2),
        ]
        functions, weights = zip(*faults, strict=True)
        fault = self.random.choices(functions, weights)[0]
        self.done[fault.__name__.replace("_", " ")] += 1
        fault()

    def add_pods(self) -> None:
        count = self.random.randint(1, min(4, MOST_PODS - len(self.pods)))
        new = {f"p{self.made + n}": self.random.choice(self.nodes) for n in range(count)}
        self.made += count
        self.say(f"add {_listed(f'{name} on {node}' for name, node in new.items())}")
        self._change_pods(new, [])

    def delete_pods(self) -> None:
        gone = self.random.sample(sorted(self.pods), self.random.randint(1, min(4, len(self.pods))))
        self.say(f"delete {_listed(gone)}")
        self._change_pods({}, gone)

    def kill_daemons(self) -> None:
        """SIGKILL some, wait, and start them again; no packet may be lost.

        Sometimes pods come and go while they die: it is tried again and again, as kubelet does.
        """
        daemons = self._daemons()
        victims = self.random.sample(sorted(daemons), self.random.randint(1, len(daemons)))
        pause = self.random.uniform(0, 2)
        new = {}
        gone = []
        if self.random.random() < 0.5 and len(self.pods) < MOST_PODS:
            new = {f"p{self.made}": self.random.choice(self.nodes)}
            self.made += 1
            gone = self.random.sample(sorted(self.pods), min(1, len(self.pods)))
        meanwhile = f", meanwhile add {_listed(new)}, delete {_listed(gone)}" if new else ""
        self.say(f"kill {_listed(victims)} for {pause:.1f} s{meanwhile}")
        with ThreadPoolExecutor(1) as pool:
            changing = pool.submit(self._change_pods, new, gone)
            kill(daemons[victim] for victim in victims)
            time.sleep(pause)
            # Not by `up`: it waits until no ADD runs, and ADDs wait for these daemons.
            for victim in victims:
                if victim.startswith("agent of "):
                    self.lab.start_daemon(victim.removeprefix("agent of "), "agent")
            self.lab.start_control()
            changing.result()
        self._wait_right()

    def cut_link(self) -> None:
        """A node's, which costs what the link loses, or the control plane's, which costs none."""
        end = self.random.choice([*self.nodes, "control"])
        pause = self.random.uniform(0.1, 2)
        self.say(f"cut the link of {end} for {pause:.1f} s")
        with self._expect_loss("a cut link", {end}, tunnels_only=True):
            self.lab.exec("fabric", ["ip", "link", "set", end, "down"])
            time.sleep(pause)
            self.lab.exec("fabric", ["ip", "link", "set", end, "up"])
            self._wait_right()

    def tamper(self) -> None:
        """Change a switch by hand. The audit has to find out and put it right."""
        node = self.random.choice(self.nodes)
        table = self.random.choice([table.number for table in LAYOUT.tables.values()])
        what, command = self.random.choice(
            [
                ("delete all flows", ["del-flows", "br-int"]),
                ("delete a table's flows", ["del-flows", "br-int", f"table={table}"]),
                ("alter a table's flows", ["mod-flows", "br-int", f"table={table},actions=drop"]),
                ("delete all meters", ["del-meters", "br-int"]),
                (
                    "add a flow that looks like ours",
                    ["add-flow", "br-int", f"cookie=0x0100000000000bad,table={table},{_UNUSED}"],
                ),
                # Users' own flows are left alone (docs/operations.md).
                (
                    "add a foreign flow",
                    ["add-flow", "br-int", f"cookie={_FOREIGN},table={table},{_UNUSED}"],
                ),
            ]
        )
        self.say(f"{what} of {node} (table {table})")
        with self._expect_loss("tampering", {node}, tunnels_only=False):
            self.lab.exec(node, [*OFCTL, *command])
            # Here it waits for the audit.
            self._wait_right()

    def _change_pods(self, new: dict[str, str], gone: Sequence[str]) -> None:
        nodes = {*new.values(), *(self.pods[name] for name in gone)}
        with self._expect_loss("pods come or go", nodes, tunnels_only=True):
            with ThreadPoolExecutor(8) as pool:
                added = [pool.submit(self._persist, self._add, *pod) for pod in new.items()]
                deleted = [pool.submit(self._persist, self._delete, name) for name in gone]
            for future in (*added, *deleted):
                future.result()
        for name in gone:
            del self.pods[name]
        self.pods |= new

    def _add(self, name: str, node: str) -> None:
        if any((pod.namespace, pod.name) == (NAMESPACE, name) for pod in self.lab.pods()):
            # Left by an attempt that could not be undone without the API server.
            self._delete(name)
        self.lab.pod_add(NAMESPACE, name, node)

    def _delete(self, name: str) -> None:
        self.lab.pod_del(NAMESPACE, name)

    def _persist(self, action: Callable[..., None], *arguments: str) -> None:
        """Try again until it is done, as kubelet does; in vain, it is an error of the run."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                return action(*arguments)
            except LabError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    def _daemons(self) -> dict[str, int]:
        status = self.lab.status()
        return {
            **status["control"]["pids"],
            **{f"agent of {name}": node["pids"]["agent"] for name, node in status["nodes"].items()},
        }

    @contextmanager
    def _expect_loss(self, why: str, nodes: set[str], *, tunnels_only: bool) -> Iterator[None]:
        begin = time.monotonic()
        yield
        end = time.monotonic()
        self.expected.append(ExpectedLoss(why, frozenset(nodes), tunnels_only, begin, end))

    def _wait_right(self) -> None:
        """Until controller and switches agree, and the pods that stay reach each other again."""
        deadline = time.monotonic() + PATIENCE
        while found := self.disagreements():
            if time.monotonic() > deadline:
                raise LabError(f"not repaired within {PATIENCE:g} s:\n" + "\n".join(found[:20]))
            time.sleep(0.1)
        for where, to in self._pairs(staying=True):
            # Until one is answered: then the datapath has the flows.
            self.lab.exec(where, ["ping", "-n", "-q", "-c1", "-i0.2", f"-w{PATIENCE:.0f}", to],
                          timeout=2 * PATIENCE)  # fmt: skip

    # What must agree

    def disagreements(self) -> list[str]:
        """Between what the controller wants and what it, or ovs-ofctl, finds on the switches."""
        found = []
        status = self.lab.ask("/v1/status")
        if status is None:
            return ["the controller does not answer"]
        for node in self.nodes:
            if not status["nodes"].get(node, {}).get("inSync"):
                found.append(f"{node}: not in sync")
                continue
            found += [f"{node}: {line}" for line in disagreements(self.lab, node)]
        return found

    def unreachable(self) -> list[str]:
        """Pairs of pods, all with all, of which one does not reach the other."""

        def reaches(pair: tuple[str, str]) -> bool:
            command = ["ping", "-n", "-q", "-c1", "-i0.2", "-w30", pair[1]]
            return self.lab.exec(pair[0], command, check=False).returncode == 0

        pairs = list(self._pairs(staying=False))
        with ThreadPoolExecutor(8) as pool:
            answers = pool.map(reaches, pairs)
            return [f"{a} does not reach {b}" for (a, b), ok in zip(pairs, answers, strict=True)
                    if not ok]  # fmt: skip

    def _pairs(self, *, staying: bool) -> Iterator[tuple[str, str]]:
        for one, other in permutations(self.lab.pods(), 2):
            if not staying or NAMESPACE not in (one.namespace, other.namespace):
                yield one.key, str(other.address)

    def judge(self, watched: Watched) -> str:
        """End a ping, note loss that no fault explains, and say how it went."""
        pinged = watched.ping.stop()
        unexpected = [o for o in pinged.outages if not is_expected(o, watched.nodes, self.expected)]
        for outage in unexpected:
            self.wrong.append(
                f"{watched.title}: {outage.lost} packets lost without a reason, sent from "
                f"{outage.first:.2f} to {outage.last:.2f}"
            )
        return f"{watched.title}: {pinged.sent} packets, {pinged.lost} lost, " + (
            "not all expected" if unexpected else "all expected" if pinged.lost else "none"
        )


_FOREIGN = "0xf0e1000000000001"
_LEARNED = re.compile(f"cookie={int(Feature.LEARNED):#x}[0-9a-f]{{14}}")
_UNDESIRED = ("foreign", "learned")
_UNUSED = "priority=1,dl_type=0x9999,actions=drop"


def disagreements(lab: Lab, node: str) -> list[str]:
    """Where what the controller wants a switch to hold, and a dump by ovs-ofctl, differ."""
    answer = lab.ask(f"/v1/nodes/{node}/flows")
    if answer is None:
        return ["the controller does not tell its flows"]
    compiled = {_as_dumped(row) for row in answer["flows"] if row["state"] not in _UNDESIRED}
    found = [f"{row['state']}: {_as_dumped(row)}" for row in answer["flows"]
             if row["state"] not in ("installed", *_UNDESIRED)]  # fmt: skip
    dump = lab.exec(node, [*OFCTL, "--no-names", "--no-stats", "dump-flows", "br-int"]).stdout
    installed = {
        line.strip()
        for line in dump.splitlines()
        if "actions=" in line and _FOREIGN not in line and not _LEARNED.search(line)
    }
    found += [f"compiled, not installed: {text}" for text in sorted(compiled - installed)]
    found += [f"installed, not compiled: {text}" for text in sorted(installed - compiled)]
    return found


def _as_dumped(row: dict[str, Any]) -> str:
    """A flow of the controller's answer as `ovs-ofctl --no-names --no-stats` prints it."""
    table = f"table={row['tableNumber']}, " if row["tableNumber"] else ""
    match = f",{row['match']}" if row["match"] else ""
    actions = re.sub(
        r"(table[:=]|resubmit\(,)(\w+)",
        lambda found: f"{found[1]}{LAYOUT.tables[found[2]].number}",
        row["actions"],
    )
    cookie = int(row["cookie"], 16)
    return f"cookie={cookie:#x}, {table}priority={row['priority']}{match} actions={actions}"


def _listed(words: Any) -> str:
    return ", ".join(words) or "nothing"


@contextmanager
def traffic(lab: Lab, soak: Soak) -> Iterator[tuple[list[Watched], Stream]]:
    """Pings within and between the nodes, from the hosts, and one stream."""
    pods = {node: [lab.pod_add("default", f"{letter}-{node}", node) for letter in "ab"]
            for node in soak.nodes}  # fmt: skip
    with ExitStack() as running:

        def watch(where: str, at: str, node: str, to: Any) -> Watched:
            title = f"{where} to {to.key}"
            return Watched(title, (at, node), running.enter_context(
                ping(lab, where, str(to.address), INTERVAL)))  # fmt: skip

        watched = []
        for node, (one, other) in pods.items():
            watched.append(watch(one.key, node, node, other))
            watched.append(watch(node, node, node, other))
            far = soak.random.choice([n for n in soak.nodes if n != node] or [node])
            watched.append(watch(one.key, node, far, pods[far][1]))
        first, last = pods[soak.nodes[0]][0], pods[soak.nodes[-1]][1]
        yield watched, running.enter_context(stream(lab, first.key, last.key, str(last.address)))


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0), default=2, show_default=True)
@click.option("--seed", type=int, help="Of an earlier run, to have the same things happen.")
@click.option("--nodes", type=click.IntRange(min=1), default=3, show_default=True)
@click.option("--source", type=click.Choice(["dir", "kube"]), default="dir", show_default=True)
@click.option("--name", default="soak", show_default=True, help="What to call the lab.")
@click.option("--keep", is_flag=True, help="Leave the lab up if something is wrong.")
def main(
    minutes: float,
    seed: int | None,
    nodes: int,
    source: Literal["dir", "kube"],
    name: str,
    keep: bool,
) -> None:
    """Cause random faults in a cluster under traffic, and check that it recovers."""
    console = Console(highlight=False, soft_wrap=True, file=sys.stdout)
    seed = randbits(32) if seed is None else seed
    console.print(f"The seed is {seed}: --seed {seed} (SEED={seed}) repeats this run.")
    try:
        with one_interrupt():
            lab = Lab(name)
            with Steps(console) as steps:
                found = not lab.up(nodes=nodes, source=source, report=steps)
            if found:
                raise click.ClickException(f"lab {name} is up already; choose another --name")
            wrong = ["the run did not finish"]
            try:
                wrong = run(console, lab, nodes, minutes * 60, seed)
            except LabError as error:
                wrong = [str(error)]
            finally:
                if not (wrong and keep):
                    lab.down()
    except LabError as error:
        raise click.ClickException(str(error)) from error
    except KeyboardInterrupt:
        console.print("Interrupted.")
        sys.exit(128 + signal.SIGINT)
    if wrong:
        console.print(f"[bold red]Something is wrong[/] (seed {seed}):")
        for line in wrong:
            console.print(f"  {escape(line)}")
        sys.exit(1)
    console.print("[green]Compiled, installed and reachable agree, and nothing is left over.[/]")


def run(console: Console, lab: Lab, nodes: int, seconds: float, seed: int) -> list[str]:
    """What went wrong."""
    began = time.monotonic()
    with Progress(
        BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}"),
        console=console, disable=not console.is_terminal,
    ) as progress:  # fmt: skip
        bar = progress.add_task("", total=seconds)

        def say(line: str) -> None:
            now = time.monotonic()
            console.print(f"{now:10.2f}  {now - began:6.1f} s  {line}", markup=False)
            progress.update(bar, completed=now - began, description=escape(line))

        names = [f"node{number + 1}" for number in range(nodes)]
        soak = Soak(lab, names, Random(seed), say)  # noqa: S311  no secret
        before = {node: traces(lab, node) for node in names}
        with traffic(lab, soak) as (watched, streaming):
            while time.monotonic() - began < seconds:
                soak.run_random_fault()
            say("the traffic ends")
            with ThreadPoolExecutor(len(watched)) as pool:
                for told in pool.map(soak.judge, watched):
                    say(told)
            sent, received = streaming.stop()
            say(f"the stream: {sent.bytes} bytes sent, {received.bytes} received")
            if sent != received:
                soak.wrong.append(f"the stream is not what was sent: {sent}, {received}")
        say(
            "done: " + _listed(f"{count} times {what}" for what, count in sorted(soak.done.items()))
        )
        say("compare what is compiled with what is installed")
        soak.wrong += soak.disagreements()
        say(f"let all of {len(lab.pods())} pods ping each other")
        soak.wrong += soak.unreachable()
        say("delete all pods")
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda pod: lab.pod_del(pod.namespace, pod.name), lab.pods()))
        soak.wrong += left_over(lab, before)
    return soak.wrong


def left_over(
    lab: Lab, before: dict[str, dict[str, list[Any]]], patience: float = PATIENCE
) -> list[str]:
    """What differs from before there were pods, once it no longer changes for the better."""
    for node in before:
        lab.exec(node, [*OFCTL, "del-flows", "br-int", f"cookie={_FOREIGN}/-1"])
    deadline = time.monotonic() + patience
    while True:
        found = [
            f"{node}: {kind} were {_listed(map(str, wanted))}, are {_listed(map(str, now[kind]))}"
            for node, kinds in before.items()
            for now in [traces(lab, node)]
            for kind, wanted in kinds.items()
            if now[kind] != wanted
        ]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.2)


if __name__ == "__main__":
    main()
