"""Check the machine that this runs on."""

import asyncio
from dataclasses import replace

from node_agent.checks.facts import Wanted
from node_agent.checks.findings import findings
from node_agent.checks.gather import gather
from node_agent.checks.host_facts import Places
from node_agent.checks.wanted import wanted_after
from node_agent.faults import NodeFault
from settings import Agent
from wire.documents import NodeConfig
from wire.findings import NodeFindings
from wire.questions import Checked, CheckNode


class CheckError(NodeFault):
    """The node cannot be checked now; the text says why."""


async def answer_check(agent: Agent, config: NodeConfig | None, question: CheckNode) -> Checked:
    """An agent's answer. Raises `CheckError`."""
    if config is None:
        raise CheckError("no controller has said yet what the node should be")
    try:
        return Checked(await check(wanted_after(agent, config, question.peers), places_of(agent)))
    except TimeoutError:
        raise CheckError("the check was not done in time") from None


async def check(wanted: Wanted, places: Places | None = None) -> NodeFindings:
    """What is wrong. Raises `TimeoutError`."""
    facts = await gather(wanted, places or Places())
    # Of ten thousand chains they take a third of a second.
    return await asyncio.to_thread(findings, facts, wanted)


def places_of(agent: Agent) -> Places:
    """Where a configured agent finds things."""
    return replace(Places(), cni_conf=agent.cni_conf, ovsdb=agent.ovsdb, ovs_run=agent.ovs_run)
