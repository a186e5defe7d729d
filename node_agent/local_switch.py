"""The switch of this node, through its management socket. Restores flows after a restart.

ovs-vswitchd starts with empty tables. While OVSDB has the key `flow-restore-wait`, it waits: the
kernel's datapath goes on with its flows, the switch connects to no controller, and only local
clients can change it. So the key is always set. The agent removes it for a moment, so that the
running process reads that it is gone; after that, this process ignores the key.

    new connection ── first table empty? ── restore the snapshot
      ── set the flow of the newest generation ── clear the key ── set it again

So no controller connects before the switch says again which generation may write (`generation`).

A switch that starts while the agent is down waits for the agent. So the agent must be able to start
without the switch.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from functools import partial
from ipaddress import IPv4Address
from typing import Final, NoReturn

import structlog

from flows import names
from flows.diff import is_ours
from flows.features import state
from flows.pipeline import CT_ZONE, SNAT_ZONE
from node_agent import bridge, snapshot, tracked
from node_agent.appctl import AppctlError
from node_agent.faults import NodeFault
from node_agent.generation import NewestGeneration
from node_agent.ovsdb import Ovsdb, OvsdbError, Transaction
from node_agent.snapshot import FIRST_TABLE, SnapshotError
from openflow.batch import Batch
from openflow.conntrack import CtTuple, Forget, of_addresses
from openflow.errors import ConnectionLost, SwitchError
from openflow.switch import Rejected, Switch
from openflow.watch import connect
from settings import Agent

MOST_ROUNDS: Final = 5
"""Each is some flushes and a dump. Two are enough unless new connections are opened meanwhile."""
_ZONES: Final = (CT_ZONE, SNAT_ZONE)
_PAUSE: Final = 0.05
"""Seconds between attempts to connect. Short, because a waiting switch forwards nothing new."""
_LOOK_INTERVAL: Final = 3.0
"""Seconds between two checks of the key."""

log = structlog.get_logger()


class SwitchAwayError(NodeFault):
    """ovs-vswitchd does not answer, or a request failed; the text says which."""


async def forget_all(
    switch: Switch,
    addresses: Collection[IPv4Address],
    counts: Callable[[], Awaitable[Mapping[IPv4Address, int]]],
) -> None:
    """Delete every connection of these addresses from the switch, and verify that none is left.

    `counts` returns the number of connections of each address. Raises `ConnectionLost`,
    `Rejected`, `AppctlError`, and `SwitchAwayError` if some are left after `MOST_ROUNDS`.
    """
    left: dict[IPv4Address, int] = dict.fromkeys(addresses, 0)
    for _ in range(MOST_ROUNDS):
        # A dump costs the switch as much as several flushes, so there is one dump for several.
        for _ in range(_flushes(left)):
            forgets = [each for zone in _ZONES for each in of_addresses(zone, left)]
            await switch.apply(Batch.of_forgets(forgets))
        known = await counts()
        left = {address: known[address] for address in left if known.get(address)}
        if not left:
            return
    address, number = left.popitem()
    raise SwitchAwayError(f"{address} still has {number} connections")


def _flushes(counts: Mapping[IPv4Address, int]) -> int:
    """How many flushes are needed to delete so many connections.

    In the userspace datapath a flush walks a hash map that shrinks meanwhile, and misses entries
    that the map moves to places already passed: up to half of them.
    """
    return max(counts.values()).bit_length() + 1


class LocalSwitch:
    """One connection to br-int, renewed whenever it is lost."""

    def __init__(self, agent: Agent, ovsdb: Ovsdb, generation: NewestGeneration) -> None:
        self._run = agent.ovs_run
        self._datapath = agent.datapath
        self._socket = agent.ovs_run / f"{names.INTEGRATION_BRIDGE}.mgmt"
        self._snapshot = snapshot.file_of(agent)
        self._ovsdb = ovsdb
        self._generation = generation
        self._patience = agent.add_timeout
        self._switch: Switch | None = None
        self._going = asyncio.Event()
        """Set while there is a switch."""

    async def run(self) -> NoReturn:
        """Connect to the switch, again after each loss. Never ends."""
        problem = ""
        while True:
            try:
                async with connect(self._socket, self._generation.see) as switch:
                    problem = ""
                    await self._start_forwarding(switch)
                    await switch.monitor_flows(state.TABLE)
                    self._switch = switch
                    self._going.set()
                    await self._keep_restore_wait(switch)
            except (OSError, SwitchError, OvsdbError) as error:
                if str(error) != problem:
                    problem = str(error)
                    log.info("no connection to the switch", reason=problem)
            finally:
                self._switch = None
                self._going.clear()
            await asyncio.sleep(_PAUSE)

    async def forget_connections(self, address: IPv4Address) -> None:
        """Delete the connections of an address's previous owner.

        Returns when a dump shows that none is left. Waits for a switch that is starting.
        Raises `SwitchAwayError`.
        """
        async with self._reached() as switch:
            await forget_all(switch, [address], partial(tracked.counts, self._run, self._datapath))

    async def opened(self) -> Counter[IPv4Address]:
        """The number of connections that each address opened. Raises `AppctlError`."""
        return await tracked.opened(self._run, self._datapath)

    async def forget_opened(self, opened: Mapping[IPv4Address, int]) -> None:
        """Delete the connections that these addresses opened; the values are their numbers.

        Not verified, because such an address opens new ones meanwhile. Raises `SwitchAwayError`.
        """
        forgets = [
            Forget(zone, original=CtTuple(source=address)) for address in opened for zone in _ZONES
        ]
        async with self._reached() as switch:
            for _ in range(_flushes(opened)):
                await switch.apply(Batch.of_forgets(forgets))

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[Switch]:
        """The switch, once it forwards. Errors in the context become `SwitchAwayError`."""
        try:
            async with asyncio.timeout(self._patience):
                switch = await self._forwarding_switch()
            yield switch
        except TimeoutError:
            raise SwitchAwayError(f"ovs-vswitchd does not answer at {self._socket}") from None
        except (SwitchError, AppctlError) as error:
            raise SwitchAwayError(f"ovs-vswitchd at {self._socket}: {error}") from error

    async def _forwarding_switch(self) -> Switch:
        while self._switch is None:
            await self._going.wait()
        return self._switch

    async def _start_forwarding(self, switch: Switch) -> None:
        """Give a new ovs-vswitchd process the flows of the last one, and let it forward."""
        if not any(is_ours(flow.cookie) for flow in await switch.dump_flows(FIRST_TABLE)):
            await self._restore(switch)
        try:
            await self._generation.put_back(switch)
        except Rejected as error:
            # As in `_restore`.
            log.error("the generation is not set", reason=str(error))  # noqa: TRY400
        await self._release(switch)

    async def _restore(self, switch: Switch) -> None:
        try:
            found = await asyncio.to_thread(snapshot.load, self._snapshot)
            if found is not None:
                await found.restore(switch)
                log.warning("flows restored into an empty bridge", flows=len(found.flows))
        except (SnapshotError, Rejected) as error:
            # Go on: the switch connects to its controller only when it does not wait any more.
            log.error("flows not restored", reason=str(error))  # noqa: TRY400

    async def _release(self, switch: Switch) -> None:
        """Let the switch forward, then make the next process wait."""
        goal = 0

        def clear(transaction: Transaction) -> None:
            nonlocal goal
            goal = bridge.clear_restore_wait(transaction)

        await self._ovsdb.transact(clear)
        taken = asyncio.create_task(
            self._ovsdb.wait_until(lambda: bridge.applied(self._ovsdb, goal), None)
        )
        gone = asyncio.create_task(switch.wait_closed())
        try:
            # If this process ends first, the key must be set at once, for the next process.
            await asyncio.wait((taken, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
            gone.cancel()
        await self._ovsdb.transact(bridge.set_restore_wait)

    async def _keep_restore_wait(self, switch: Switch) -> None:
        """Set the key again whenever it is gone (`ovs-ctl restart` removes it), while connected."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_INTERVAL):
                    raise ConnectionLost(await switch.wait_closed())
            except TimeoutError:
                if not bridge.has_restore_wait(self._ovsdb):
                    await self._release(switch)
