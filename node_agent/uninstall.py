"""Removes Sluice from a node: everything that an agent has made here, and nothing else.

Each step does what is left to do, so an interrupted run can be repeated.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog
from pyroute2 import AsyncIPRoute, NetlinkError

from flows import names
from node_agent import (
    bridge,
    generation,
    install,
    link_addresses,
    nft,
    peer_routes,
    pod_link,
    routes,
    services,
    snapshot,
    tls_files,
)
from node_agent.faults import NodeFault
from node_agent.leases import Lease, LeaseError, Leases
from node_agent.ovsdb import Ovsdb, Transaction
from node_agent.sysctl import Sysctls
from settings import Agent

_PATIENCE: Final = 10.0
"""Seconds for each daemon of Open vSwitch to answer."""

log = structlog.get_logger()


class UninstallError(NodeFault):
    """Something is in the way, or is left; the text says what."""


async def uninstall(agent: Agent, *, force: bool) -> None:
    """Remove bridge, interfaces, nftables rules, CNI files and state of this node.

    Pods that are attached lose their network: without `force` there must be none, or nothing is
    changed. Raises `UninstallError`.
    """
    _refuse_running_agent(agent)
    async with _ovsdb(agent) as ovsdb:
        attached = [lease for lease in _leases(agent, ovsdb) if _is_link(lease.port)]
        if attached and not force:
            titles = ", ".join(sorted({lease.title for lease in attached}))
            raise UninstallError(
                f"Node {agent.node}: {len(attached)} attachments would lose their network: {titles}"
                "; remove these pods while the agent runs (kubectl drain), or use --force"
            )
        try:
            # First what attracts pods.
            install.remove(agent)
            await _remove_bridge(agent, ovsdb)
            # A killed ovs-vswitchd has left the internal ports, and the next does not know them.
            internal = (names.GATEWAY_PORT, names.INTEGRATION_BRIDGE)
            for link in (*internal, *(lease.port for lease in attached)):
                await pod_link.remove(link)
            await nft.remove()
            async with AsyncIPRoute() as netlink:
                await routes.remove_rules(netlink)
                await peer_routes.remove(netlink)
            Sysctls.of(agent).forward_as_before()
            _remove_state(agent)
        except UninstallError:
            raise
        except (OSError, NetlinkError, NodeFault) as error:
            raise UninstallError(f"Node {agent.node}: {error}") from error
    log.info("Sluice is gone from this node", node=agent.node)


def _refuse_running_agent(agent: Agent) -> None:
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe,
        contextlib.suppress(FileNotFoundError, ConnectionRefusedError),
    ):
        probe.connect(str(agent.socket))
        raise UninstallError(
            f"Node {agent.node}: its agent runs, and would make everything anew: stop it first"
        )


@asynccontextmanager
async def _ovsdb(agent: Agent) -> AsyncIterator[Ovsdb]:
    ovsdb = Ovsdb(agent.ovsdb)
    session = asyncio.create_task(ovsdb.run())
    try:
        # `wait_until` is told of changes by a session; before the first there is nobody to tell.
        if not await ovsdb.wait_until(lambda: ovsdb.connected, _PATIENCE):
            raise UninstallError(
                f"Node {agent.node}: ovsdb-server does not answer at {agent.ovsdb}, and bridge "
                f"{names.INTEGRATION_BRIDGE} is in its database"
            )
        yield ovsdb
    finally:
        session.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await session


def _leases(agent: Agent, ovsdb: Ovsdb) -> list[Lease]:
    """All attachments that either OVSDB or the lease file knows of, each once."""
    found = {lease.port: lease for lease in bridge.attachments(ovsdb)}
    file = agent.state / "leases.sqlite"
    if file.exists():
        try:
            leases = Leases(file, agent.node, agent.quarantine)
        except LeaseError as error:
            # It goes anyway, and OVSDB says the same.
            log.warning("the lease file is not asked", reason=str(error))
        else:
            found |= {lease.port: lease for lease in leases.all()}
            leases.close()
    return list(found.values())


def _is_link(name: str) -> bool:
    return name in {link for _, link in socket.if_nameindex()}


async def _remove_bridge(agent: Agent, ovsdb: Ovsdb) -> None:
    goal = 0

    def change(transaction: Transaction) -> None:
        nonlocal goal
        goal = bridge.remove(transaction, agent)

    await ovsdb.transact(change)
    if not await ovsdb.wait_until(lambda: bridge.applied(ovsdb, goal), _PATIENCE):
        raise UninstallError(
            f"Node {agent.node}: bridge {names.INTEGRATION_BRIDGE} is out of the database, but "
            "ovs-vswitchd does not take that in: is it running? The rest waits for it"
        )


def _remove_state(agent: Agent) -> None:
    """Files by name: the directories are the user's to choose, and may hold more."""
    state = snapshot.file_of(agent)
    replaced = (
        services.file_of(agent),
        peer_routes.file_of(agent),
        generation.file_of(agent),
        link_addresses.file_of(agent),
    )
    tls_files.remove(agent.state)
    for path in (
        agent.socket,
        *agent.state.glob("leases.sqlite*"),
        state,
        state.with_suffix(".part"),
        *replaced,
        *(left for file in replaced for left in agent.state.glob(f".{file.name}.*")),
    ):
        path.unlink(missing_ok=True)
    for directory in (agent.state, agent.socket.parent):
        # Not empty, or a mount point.
        with contextlib.suppress(OSError):
            directory.rmdir()
