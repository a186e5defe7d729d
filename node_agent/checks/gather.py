"""Look at a host: all its facts."""

import asyncio
import os
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Final

from pyroute2 import NetlinkError

from flows import names
from node_agent import install
from node_agent.checks import echo, host_facts, probes
from node_agent.checks.facts import (
    Certificate,
    CniFile,
    Facts,
    HostAddress,
    Link,
    PathMtu,
    Reached,
    Wanted,
)
from node_agent.checks.host_facts import Notes, Places
from node_agent.checks.network_facts import network
from settings import MOST_CONTROLLERS
from wire.findings import Peer

LONGEST: Final = 45.0
"""Seconds for everything."""


async def gather(wanted: Wanted, places: Places) -> Facts:
    """Everything that the findings depend on. Raises `TimeoutError` after `LONGEST`."""
    notes = Notes()
    async with asyncio.timeout(LONGEST + 2 * wanted.together):
        try:
            links, addresses, routes = await network()
        except (NetlinkError, OSError) as error:
            notes.append(f"interfaces, addresses and routes: {error}")
            links, addresses, routes = [], [], []
        # Before this program itself listens at the tunnel's port.
        listeners = await asyncio.to_thread(host_facts.listeners, places)
        async with asyncio.TaskGroup() as tasks:
            chains = tasks.create_task(host_facts.nft_chains())
            legacy = tasks.create_task(host_facts.legacy_chains(places, notes))
            nft = tasks.create_task(host_facts.nft_version())
            python = tasks.create_task(_python(wanted, places))
            ovs = tasks.create_task(host_facts.open_vswitch(places))
            controllers = tasks.create_task(_controllers(wanted, notes))
            silent = tasks.create_task(_silent(wanted, notes))
            paths = tasks.create_task(_paths(wanted, links, addresses, notes))
            release = os.uname().release
            needed = ("openvswitch", wanted.tunnel) if wanted.datapath == "system" else ()
            files = tasks.create_task(asyncio.to_thread(_files, wanted, places, notes))
            modules = await asyncio.to_thread(host_facts.modules, places, release, needed, notes)
    found, tables, problem = chains.result()
    cni_files, certificates = files.result()
    reached, offset = controllers.result()
    return Facts(
        kernel=release,
        modules=modules,
        python=python.result(),
        nft=nft.result(),
        nft_problem=problem,
        chains=(*found, *legacy.result()),
        tables=tuple(tables),
        open_vswitch=ovs.result(),
        links=tuple(links),
        addresses=tuple(addresses),
        routes=tuple(routes),
        cni_files=cni_files,
        certificates=certificates,
        listeners=listeners,
        reached=reached,
        paths=paths.result(),
        silent=silent.result(),
        clock_offset=offset,
        now=datetime.now(UTC),
        unchecked=tuple(notes),
    )


def _files(
    wanted: Wanted, places: Places, notes: Notes
) -> tuple[tuple[CniFile, ...], tuple[Certificate, ...]]:
    """What files say. Blocks: they may be large."""
    certificates = (
        each for path in wanted.certificates for each in host_facts.certificates(path, notes)
    )
    return (
        tuple(host_facts.cni_files(places, notes)),
        tuple(certificates),
    )


async def _python(wanted: Wanted, places: Places) -> tuple[int, ...] | None:
    """None for an agent: in a container it sees another Python than the container runtime runs."""
    # A compiled plugin needs nothing of the host.
    if wanted.installed or install.compiled_shim().exists():
        return None
    return await host_facts.python_version(places)


async def _controllers(wanted: Wanted, notes: Notes) -> tuple[tuple[Reached, ...], float | None]:
    """Which controllers are reached, and how far the clock is ahead of theirs."""
    ways = [
        (host, port)
        for host in wanted.controllers[:MOST_CONTROLLERS]
        for port in (wanted.openflow_port, wanted.api_port)
    ]
    reached = tuple(await asyncio.gather(*(probes.reach(*way) for way in ways)))
    for way in reached:
        if way.port != wanted.api_port or way.problem:
            continue
        for scheme in ("https", "http"):
            offset = await probes.clock_offset(f"{scheme}://{way.host}:{way.port}")
            if offset is not None:
                return reached, offset
    if wanted.controllers and wanted.installed:
        notes.append("the clock: no controller says what time it is")
    return reached, None


async def _silent(wanted: Wanted, notes: Notes) -> tuple[Peer, ...]:
    """The peers that do not answer at the tunnel's port. This host answers meanwhile."""
    if not wanted.together:
        return ()
    try:
        async with echo.answering(wanted.tunnel_port):
            found = await echo.silent(wanted.peers, wanted.tunnel_port, wanted.together)
            # Others may have begun later.
            await asyncio.sleep(wanted.together / 2)
    except OSError as error:
        notes.append(f"the tunnel's port {wanted.tunnel_port}/UDP: {error.strerror}")
        return ()
    return found


async def _paths(
    wanted: Wanted, links: Iterable[Link], addresses: Iterable[HostAddress], notes: Notes
) -> tuple[PathMtu, ...]:
    mtus = {link.name: link.mtu for link in links}
    peers = probes.some_peers(wanted.peers)
    if not peers:
        return ()
    own = next((mtus.get(each.link) for each in addresses if each.address == wanted.address), None)
    ways: list[tuple[Peer, int, bool]] = []
    for peer in peers:
        if own is not None:
            # As much as the tunnel may send: less than the interface if `cluster.mtu` says so.
            most = own if wanted.mtu is None else wanted.mtu + names.ENCAPSULATION_OVERHEAD
            ways.append((peer, min(own, most), False))
        if peer.gateway is not None and (gateway := mtus.get(names.GATEWAY_PORT)):
            ways.append((peer, gateway, True))
    try:
        found = await asyncio.gather(
            *(
                probes.path_mtu(peer.gateway if inside and peer.gateway else peer.address, most)
                for peer, most, inside in ways
            )
        )
    except OSError as error:
        notes.append(f"path MTU to other nodes: {error}")
        return ()
    silent = [
        peer.name
        for (peer, _, inside), mtu in zip(ways, found, strict=True)
        if mtu is None and not inside
    ]
    if silent:
        notes.append(
            f"path MTU to {', '.join(silent)}: no answer to ICMP echo requests from their"
            " addresses; open ICMP between the nodes"
        )
    return tuple(
        PathMtu(peer, most, mtu, inside)
        for (peer, most, inside), mtu in zip(ways, found, strict=True)
    )
