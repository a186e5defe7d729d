"""The audit on the node: digests of the switch's dump, which the controller checks.

So a flow that was changed by hand is found with one dump on the node, and without work for the
controller as long as nothing changes.
"""

import asyncio
import random
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from flows import names
from flows.diff import is_generation, is_ours
from flows.features import state
from flows.flow import Meter
from flows.pipeline import Feature
from node_agent import affinity, datapath, snapshot
from node_agent.appctl import AppctlError
from node_agent.controllers import ControllerError, Controllers
from node_agent.snapshot import Snapshot
from openflow import digest
from openflow.errors import SwitchError
from openflow.messages import InstalledFlow, InstalledGroup
from openflow.switch import Switch
from openflow.watch import connect
from settings import Agent
from wire import paths
from wire.documents import SwitchDigest, Verdict, decode_verdict, encode

REPEAT: Final = 60.0
"""Seconds after which a digest that was right is sent again, although nothing changed: the
controller tells people how long ago each switch was proven to hold what it should."""
_TIMEOUT: Final = 15.0
"""Seconds that the controller may take to answer."""

_NOT_LEARNED: Final = tuple(
    ((int(Feature.LEARNED) ^ 1 << bit) >> bit << bit + 56, 0xFF >> bit << bit + 56)
    for bit in reversed(range(8))
)
"""Cookies and masks that together match all flows but learned ones: for each bit of the feature,
the cookies that are equal to it above this bit, and differ in this bit. Clients decide how many
flows are learned, so learned flows must not make the audit slower."""

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Dump:
    """Everything that a switch holds, and its digest."""

    flows: list[InstalledFlow]
    groups: list[InstalledGroup]
    meters: Collection[Meter]
    digest: SwitchDigest


async def look(switch: Switch, datapath_flows: int = 0) -> Dump:
    """Dump a switch. Raises `ConnectionLost`, `RequestRejected`.

    The controller may change the switch between two of these dumps. So the seals come first: a
    digest whose seals are older than its flows is superseded. One whose flows are older than its
    seals would be drift.
    """
    seals = [
        flow.cookie
        for flow in await switch.dump_flows(state.TABLE)
        if state.is_seal(flow.table, flow.cookie)
    ]
    flows = [
        flow
        for cookie, mask in _NOT_LEARNED
        for flow in await switch.dump_flows(None, cookie, mask)
    ]
    groups = await switch.dump_groups()
    meters = await switch.dump_meters()
    ours = [flow for flow in flows if is_ours(flow.cookie)]
    generations = sum(is_generation(flow.cookie) for flow in flows)
    our_groups = [group for group in groups if group.id in names.GROUPS]
    return Dump(
        flows,
        groups,
        meters.values(),
        SwitchDigest(
            seals=seals,
            sums=digest.sums(
                (flow.cookie, digest.of_entry(flow.raw))
                for flow in ours
                if not state.is_seal(flow.table, flow.cookie)
            ),
            meters=digest.of_meters(meters.values()),
            groups=digest.total(map(digest.of_group_entry, our_groups)),
            foreign=len(flows) - len(ours) - generations + len(groups) - len(our_groups),
            datapath_flows=datapath_flows,
        ),
    )


async def audit_loop(agent: Agent, bridge: Path) -> None:
    """Look at the bridge (its management socket) again and again; tell the controller what is new.

    A digest that the controller confirmed is sent again after it changed, or after `REPEAT`.
    The last correct dump is saved as the snapshot, for a switch that loses its flows. Each round
    also deletes expired learned flows (`affinity`).
    """
    found_right: SwitchDigest | None = None
    repeat_at = 0.0
    clock = asyncio.get_running_loop().time
    async with Controllers(agent) as controllers:
        while True:
            # At random, so that a thousand agents do not come at one moment.
            await asyncio.sleep(agent.audit_interval * random.uniform(0.8, 1.2))  # noqa: S311
            try:
                async with connect(bridge) as switch:
                    dump = await look(switch, await _cached_flows(agent))
                    long = await switch.dump_flows(None, affinity.COOKIE, affinity.COOKIE_MASK)
                    await affinity.forget_idle(switch, long)
                if dump.digest == found_right and clock() < repeat_at:
                    continue
                saved, found_right = found_right, None
                verdict = await _tell(controllers, agent.node, dump.digest)
            except (OSError, SwitchError, ControllerError) as error:
                log.debug("no audit", reason=str(error) or repr(error))
                continue
            if verdict is Verdict.RIGHT:
                found_right = dump.digest
                repeat_at = clock() + REPEAT * random.uniform(0.8, 1.2)  # noqa: S311
                if found_right != saved:
                    await _keep(agent, dump)
            elif verdict is Verdict.DRIFT:
                log.warning("the switch differs from what it should hold; the controller repairs")


async def _cached_flows(agent: Agent) -> int:
    try:
        return await datapath.cached_flows(agent.ovs_run)
    except AppctlError:
        return 0


async def _keep(agent: Agent, dump: Dump) -> None:
    found = Snapshot.of(dump.flows, dump.groups, dump.meters)
    try:
        await asyncio.to_thread(snapshot.save, snapshot.file_of(agent), found)
    except (OSError, ValueError) as error:
        log.warning("snapshot not saved", reason=str(error))


async def _tell(controllers: Controllers, node: str, found: SwitchDigest) -> Verdict:
    verdict: Verdict = await controllers.ask(
        "POST",
        paths.path_for(paths.DIGEST, node),
        answers={200: decode_verdict},
        timeout=_TIMEOUT,
        data=encode(found),
    )
    return verdict
