"""The audit on the node: digests of the switch's dump, which each controller checks.

So a flow that was changed by hand is found with one dump on the node, and without work for the
controller as long as nothing changes.
"""

import asyncio
import operator
import random
import time
from collections.abc import AsyncIterator, Callable, Collection, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Final, TypeVar

import structlog

from flows import names
from flows.diff import is_generation, is_ours
from flows.features import state
from flows.flow import Meter
from flows.pipeline import Feature
from node_agent import affinity, datapath, snapshot
from node_agent.appctl import AppctlError
from node_agent.controllers import ControllerApi, ControllerError, Controllers
from node_agent.generation import NewestGeneration
from node_agent.snapshot import Snapshot
from openflow import digest
from openflow.errors import SwitchError
from openflow.messages import InstalledFlow, InstalledGroup
from openflow.switch import Switch
from openflow.watch import connect
from settings import Agent
from wire import paths
from wire.documents import SwitchDigest, Verdict, decode_verdict

REPEAT: Final = 60.0
"""Seconds after which a digest that was right is sent again, although nothing changed: a
controller tells people how long ago each switch was proven to hold what it should."""
_PATIENCE: Final = 2.0
"""Seconds in which a round waits for verdicts."""

_NOT_LEARNED: Final = tuple(
    ((int(Feature.LEARNED) ^ 1 << bit) >> bit << bit + 56, 0xFF >> bit << bit + 56)
    for bit in reversed(range(8))
)
"""Cookies and masks that together match all flows but learned ones: for each bit of the feature,
the cookies that are equal to it above this bit, and differ in this bit. Clients decide how many
flows are learned, so learned flows must not make the audit slower."""

_AT_ONCE: Final = 1000
"""Flows of one answer: ovs-vswitchd makes it in some 5 ms."""
_FIRST_PARTS: Final = 8
"""Answers into which flows are divided whose number is not known yet."""
_MOST_BITS: Final = 8
_SLICE: Final = 250
"""Flows or groups that are digested without a break: 3 ms where none is known."""

_T = TypeVar("_T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Dump:
    """Everything that a switch holds, and its digest."""

    flows: list[InstalledFlow]
    groups: list[InstalledGroup]
    meters: Collection[Meter]
    digest: SwitchDigest


class Earlier:
    """What the last look found, which makes the next one cheaper. At the start nothing is known."""

    def __init__(self) -> None:
        self.flows = [_AT_ONCE * _FIRST_PARTS] * len(_NOT_LEARNED)
        """How many flows each part of `_NOT_LEARNED` had."""
        self.digests: dict[int, tuple[bytes, int]] = {}
        """By cookie and by id of a group: a hash of its bytes, and its digest, which takes several
        times as long."""
        self._now: dict[int, tuple[bytes, int]] = {}

    def begin(self) -> None:
        """Keep what is found from now on, and use what was found before."""
        self.digests, self._now = self._now, {}

    def of_flow(self, flow: InstalledFlow) -> int:
        """As `digest.of_entry`."""
        content = digest.without_counters(flow.raw)
        return self._digest(flow.cookie, content, lambda: digest.of_entry(flow.raw))

    def of_group(self, group: InstalledGroup) -> int:
        """As `digest.of_group_entry`."""
        # Cookies of ours are far above the ids of groups.
        return self._digest(group.id, group.raw, lambda: digest.of_group_entry(group))

    def _digest(self, key: int, content: bytes, make: Callable[[], int]) -> int:
        content_hash = blake2b(content, digest_size=16).digest()
        known = self.digests.get(key)
        if known is None or known[0] != content_hash:
            known = content_hash, make()
        self._now[key] = known
        return known[1]


async def look(
    switch: Switch,
    datapath_flows: int = 0,
    generation: int | None = None,
    earlier: Earlier | None = None,
) -> Dump:
    """Dump a switch. Raises `ConnectionLost`, `RequestRejected`.

    `generation` is the newest that is known.

    The controller may change the switch between two of these dumps. So the seals come first: a
    digest whose seals are older than its flows is superseded. One whose flows are older than its
    seals would be drift.

    Neither the switch nor this process stops doing other things for long: while Open vSwitch makes
    an answer it serves nobody else, so each question is about some `_AT_ONCE` flows.
    """
    earlier = earlier or Earlier()
    earlier.begin()
    seals = [
        flow.cookie
        for flow in await switch.dump_flows(state.TABLE)
        if state.is_seal(flow.table, flow.cookie)
    ]
    flows: list[InstalledFlow] = []
    sums = [0] * digest.RANGES
    async for found in _flows(switch, earlier):
        flows += found
        async for some in _slices(found):
            digests = (
                (flow.cookie, earlier.of_flow(flow))
                for flow in some
                if is_ours(flow.cookie) and not state.is_seal(flow.table, flow.cookie)
            )
            sums = [*map(operator.add, sums, digest.sums(digests))]
    groups = await switch.dump_groups()
    meters = await switch.dump_meters()
    ours = sum(is_ours(flow.cookie) for flow in flows)
    generations = sum(is_generation(flow.cookie) for flow in flows)
    our_groups = [group for group in groups if group.id in names.GROUPS]
    group_sum = 0
    async for some_groups in _slices(our_groups):
        group_sum += sum(map(earlier.of_group, some_groups))
    return Dump(
        flows,
        groups,
        meters.values(),
        SwitchDigest(
            seals=seals,
            sums=[digest.total([value]) for value in sums],
            meters=digest.of_meters(meters.values()),
            groups=digest.total([group_sum]),
            foreign=len(flows) - ours - generations + len(groups) - len(our_groups),
            datapath_flows=datapath_flows,
            generation=generation or 0,
            features=max(Feature),
        ),
    )


async def _flows(switch: Switch, earlier: Earlier) -> AsyncIterator[list[InstalledFlow]]:
    """All flows but learned ones, some at a time."""
    for part, (cookie, mask) in enumerate(_NOT_LEARNED):
        # The last bits of a cookie are those of a digest: each value of them has as many flows.
        bits = min(_MOST_BITS, (earlier.flows[part] // _AT_ONCE).bit_length())
        count = 0
        for value in range(1 << bits):
            found = await switch.dump_flows(None, cookie | value, mask | (1 << bits) - 1)
            count += len(found)
            yield found
        earlier.flows[part] = count


async def _slices(items: Sequence[_T]) -> AsyncIterator[Sequence[_T]]:
    """Of a size that holds the event loop for a few milliseconds."""
    for start in range(0, len(items), _SLICE):
        yield items[start : start + _SLICE]
        await asyncio.sleep(0)


class _Judge:
    """What one controller says of the digests of this node's switch."""

    def __init__(self, controller: ControllerApi) -> None:
        self._controller = controller
        self._judged: SwitchDigest | None = None
        self._verdict: Verdict | None = None
        self._losses = 0
        self._repeat_at = 0.0
        self._task: asyncio.Task[None] | None = None

    def verdict(self, found: SwitchDigest) -> Verdict | None:
        """Of this digest; None: there is none yet."""
        return self._verdict if found == self._judged else None

    def ask(self, found: SwitchDigest, tasks: asyncio.TaskGroup) -> asyncio.Task[None] | None:
        """Send a digest, if it is due and the controller is not still busy with another one."""
        if self._task is not None and not self._task.done():
            return None
        is_proven = (
            self.verdict(found) is Verdict.RIGHT
            and self._losses == self._controller.losses
            and time.monotonic() < self._repeat_at
        )
        self._task = None if is_proven else tasks.create_task(self._ask(found))
        return self._task

    async def _ask(self, found: SwitchDigest) -> None:
        losses = self._controller.losses
        try:
            verdict = await self._controller.report(paths.DIGEST, found, {200: decode_verdict})
        except ControllerError as error:
            log.debug("no verdict", controller=self._controller.url, reason=str(error))
            # What it said before may be out of date, and it may never take it back.
            self._judged = self._verdict = None
            return
        self._judged, self._verdict, self._losses = found, verdict, losses
        self._repeat_at = time.monotonic() + REPEAT * random.uniform(0.8, 1.2)  # noqa: S311


async def audit_loop(
    agent: Agent, controllers: Controllers, bridge: Path, generation: NewestGeneration
) -> None:
    """Look at the bridge (its management socket) again and again; tell each controller what is new.

    A digest that a controller confirmed is sent to it again after it changed, after `REPEAT`, and
    after the controller was away. A dump that one controller finds right, and none finds wrong, is
    saved as the snapshot, for a switch that loses its flows. Each round also deletes expired
    learned flows (`affinity`). Never ends.
    """
    judges = [_Judge(controller) for controller in controllers.each]
    saved: SwitchDigest | None = None
    earlier = Earlier()
    async with asyncio.TaskGroup() as tasks:
        while True:
            # At random, so that a thousand agents do not come at one moment.
            await asyncio.sleep(agent.audit_interval * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                async with connect(bridge) as switch:
                    cached = await _cached_flows(agent)
                    dump = await look(switch, cached, generation.number, earlier)
                    long = await switch.dump_flows(None, affinity.COOKIE, affinity.COOKIE_MASK)
                    await affinity.forget_idle(switch, long)
            except (OSError, SwitchError) as error:
                log.debug("no audit", reason=str(error) or repr(error))
                continue
            if asked := [task for each in judges if (task := each.ask(dump.digest, tasks))]:
                # One that is silent may answer later; its verdict then counts in a later round.
                await asyncio.wait(asked, timeout=_PATIENCE)
            verdicts = {each.verdict(dump.digest) for each in judges}
            if Verdict.DRIFT in verdicts:
                log.warning("the switch differs from what it should hold; the controller repairs")
            elif Verdict.RIGHT in verdicts and dump.digest != saved and await _keep(agent, dump):
                saved = dump.digest


async def _cached_flows(agent: Agent) -> int:
    try:
        return await datapath.cached_flows(agent.ovs_run)
    except AppctlError:
        return 0


async def _keep(agent: Agent, dump: Dump) -> bool:
    """Save the snapshot; whether it is saved."""
    found = Snapshot.of(dump.flows, dump.groups, dump.meters)
    try:
        await asyncio.to_thread(snapshot.save, snapshot.file_of(agent), found)
    except (OSError, ValueError) as error:
        log.warning("snapshot not saved", reason=str(error))
        return False
    return True
