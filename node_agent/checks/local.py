"""Check the machine that this runs on."""

from dataclasses import replace
from ipaddress import IPv4Network
from typing import Final

import msgspec

from node_agent import tls_files
from node_agent.checks.facts import Wanted
from node_agent.checks.findings import findings
from node_agent.checks.gather import gather
from node_agent.checks.host_facts import Places
from node_agent.faults import NodeFault
from settings import Agent, ClusterSettings, Settings
from wire.documents import NodeConfig
from wire.findings import NodeFindings, Peer
from wire.questions import Checked, CheckNode

POD_RANGE: Final = IPv4Network("10.244.0.0/16")
SERVICE_RANGE: Final = IPv4Network("10.96.0.0/12")
"""Those of the manifests in deploy/, where nobody says others."""


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
    return findings(await gather(wanted, places or Places()), wanted)


def wanted_before(node: str, settings: Settings) -> Wanted:
    """What a configuration file says about a node that has no Sluice yet."""
    cluster = settings.cluster or ClusterSettings(POD_RANGE, SERVICE_RANGE)
    made = Wanted(
        node=node,
        installed=False,
        pod_range=cluster.pod_range,
        service_range=cluster.service_range,
        tunnel=cluster.tunnel,
        mtu=cluster.mtu,
    )
    return made if settings.agent is None else _by_agent(made, settings.agent)


def wanted_after(agent: Agent, config: NodeConfig, peers: tuple[Peer, ...]) -> Wanted:
    """What an agent knows of its node."""
    made = Wanted(
        node=agent.node,
        installed=True,
        address=config.address,
        pod_range=config.pod_range,
        service_range=config.service_range,
        tunnel=config.tunnel,
        mtu=config.mtu,
        peers=peers,
    )
    return _by_agent(made, agent)


def places_of(agent: Agent) -> Places:
    """Where a configured agent finds things."""
    return replace(Places(), cni_conf=agent.cni_conf, ovsdb=agent.ovsdb, ovs_run=agent.ovs_run)


def _by_agent(given: Wanted, agent: Agent) -> Wanted:
    files = agent.tls
    if agent.enrolment is not None and given.installed:
        files = tls_files.kept(agent.state)
    return msgspec.structs.replace(
        given,
        datapath=agent.datapath,
        controllers=agent.controllers,
        openflow_port=agent.openflow_port,
        api_port=agent.api_port,
        healthz_port=agent.healthz_port,
        certificates=() if files is None else (files.certificate, files.ca),
    )
