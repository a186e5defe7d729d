"""What the settings and the cluster want of a node."""

from ipaddress import IPv4Network
from typing import Final

import msgspec

from node_agent import tls_files
from node_agent.checks.facts import Wanted
from settings import Agent, ClusterSettings, Settings
from wire.documents import NodeConfig
from wire.findings import Peer

POD_RANGE: Final = IPv4Network("10.244.0.0/16")
SERVICE_RANGE: Final = IPv4Network("10.96.0.0/12")
"""Those of the manifests in deploy/, where nobody says others."""


def wanted_before(
    node: str,
    settings: Settings,
    pod_range: IPv4Network | None = None,
    service_range: IPv4Network | None = None,
) -> Wanted:
    """What a configuration file, or these ranges, say about a node that has no Sluice yet."""
    cluster = settings.cluster or ClusterSettings(POD_RANGE, SERVICE_RANGE)
    made = Wanted(
        node=node,
        installed=False,
        pod_range=pod_range or cluster.pod_range,
        service_range=service_range or cluster.service_range,
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
