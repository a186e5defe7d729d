"""The switch of this node, through its management socket; restores its flows after a restart.

ovs-vswitchd starts with empty tables. While OVSDB has the key `flow-restore-wait`, it waits: the
kernel's datapath goes on with its flows, the switch connects to no controller, and only local
clients can change it. So the key is always set, and is removed only for the moment in which a
running switch reads it; a switch that has once read its absence ignores it from then on.

    new connection ── first table empty? ── restore the snapshot ── release ── hold again

A switch that starts while the agent is down waits for the agent. So nothing that the agent needs
to start may depend on the switch.
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
from flows.pipeline import CT_ZONE
from node_agent import bridge, snapshot, tracked
from node_agent.appctl import AppctlError
from node_agent.faults import NodeFault
from node_agent.ovsdb import Ovsdb, OvsdbError, Transaction
from node_agent.snapshot import FIRST_TABLE, SnapshotError
from openflow.batch import Batch, Forget
from openflow.codec import CtTuple
from openflow.errors import ConnectionLost, SwitchError
from openflow.switch import Rejected, Switch
from openflow.watch import connect
from settings import Agent

MOST_ROUNDS: Final = 5
"""Of flushes and a dump. The second ends with none, unless connections come meanwhile."""
_PAUSE: Final = 0.05
"""Seconds between attempts to connect. Short: all this time the node may forward nothing."""
_LOOK_INTERVAL: Final = 3.0
"""Seconds between two looks whether the next process is still to wait."""

log = structlog.get_logger()


class SwitchAwayError(NodeFault):
    """ovs-vswitchd does not answer, or does not do what it is asked; the text says which."""


async def forget_all(
    switch: Switch,
    addresses: Collection[IPv4Address],
    counts: Callable[[], Awaitable[Mapping[IPv4Address, int]]],
) -> None:
    """Have the switch forget every connection of these addresses, and verify that it has.

    `counts` says how many connections each address has. Raises `ConnectionLost`, `Rejected`,
    `AppctlError`, and `SwitchAwayError` where some are left after `MOST_ROUNDS`.
    """
    left: dict[IPv4Address, int] = dict.fromkeys(addresses, 0)
    for _ in range(MOST_ROUNDS):
        # A dump costs the switch as much as some flushes: not one after each.
        for _ in range(_flushes(left)):
            await switch.apply(Batch.forgetting(CT_ZONE, left))
        known = await counts()
        left = {address: known[address] for address in left if known.get(address)}
        if not left:
            return
    address, number = left.popitem()
    raise SwitchAwayError(f"{address} still has {number} connections")


def _flushes(counts: Mapping[IPv4Address, int]) -> int:
    """How many flushes forget all of so many connections.

    In the userspace datapath one flush walks a hash map that shrinks under it, and misses what the
    map moves behind it: up to half of what it was to forget.
    """
    return max(counts.values()).bit_length() + 1


class LocalSwitch:
    """One connection to br-int, renewed whenever it is lost."""

    def __init__(self, agent: Agent, ovsdb: Ovsdb) -> None:
        self._run = agent.ovs_run
        self._datapath = agent.datapath
        self._socket = agent.ovs_run / f"{names.INTEGRATION_BRIDGE}.mgmt"
        self._snapshot = snapshot.file_of(agent)
        self._ovsdb = ovsdb
        self._patience = agent.add_timeout
        self._switch: Switch | None = None
        self._going = asyncio.Event()
        """Set while there is a switch."""

    async def run(self) -> NoReturn:
        """Connect to the switch again and again, for ever."""
        problem = ""
        while True:
            try:
                async with connect(self._socket) as switch:
                    problem = ""
                    await self._start_forwarding(switch)
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
        """Make this switch forget the connections of an address's previous owner.

        Returns when a dump shows that none is left. Waits for a switch that is just starting.
        Raises `SwitchAwayError`.
        """
        async with self._reached() as switch:
            await forget_all(switch, [address], partial(tracked.counts, self._run, self._datapath))

    async def opened(self) -> Counter[IPv4Address]:
        """How many connections each address has opened. Raises `AppctlError`."""
        return await tracked.opened(self._run, self._datapath)

    async def forget_opened(self, opened: Mapping[IPv4Address, int]) -> None:
        """Forget the connections that these addresses have opened, so many each.

        Not verified: who opened that many opens more meanwhile. Raises `SwitchAwayError`.
        """
        forgets = [Forget(CT_ZONE, original=CtTuple(source=address)) for address in opened]
        async with self._reached() as switch:
            for _ in range(_flushes(opened)):
                await switch.apply(Batch.of_forgets(forgets))

    @asynccontextmanager
    async def _reached(self) -> AsyncIterator[Switch]:
        """The switch, once it goes. Whatever fails in the context is a `SwitchAwayError`."""
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
        """Make a new process of the switch forward as the last one did."""
        if not any(is_ours(flow.cookie) for flow in await switch.dump_flows(FIRST_TABLE)):
            await self._restore(switch)
        await self._release(switch)

    async def _restore(self, switch: Switch) -> None:
        try:
            found = await asyncio.to_thread(snapshot.load, self._snapshot)
            if found is not None:
                await found.restore(switch)
                log.warning("flows restored into an empty bridge", flows=len(found.flows))
        except (SnapshotError, Rejected) as error:
            # No reason to wait for ever: the switch connects to its controller only after the wait.
            log.error("flows not restored", reason=str(error))  # noqa: TRY400

    async def _release(self, switch: Switch) -> None:
        """Let the switch forward, and make its next process wait again."""
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
            # If this process ends now, the next one has to wait.
            await asyncio.wait((taken, gone), return_when=asyncio.FIRST_COMPLETED)
        finally:
            taken.cancel()
            gone.cancel()
        await self._ovsdb.transact(bridge.set_restore_wait)

    async def _keep_restore_wait(self, switch: Switch) -> None:
        """Renew the hold until the connection ends: `ovs-ctl restart` removes the same key."""
        while True:
            try:
                async with asyncio.timeout(_LOOK_INTERVAL):
                    raise ConnectionLost(await switch.wait_closed())
            except TimeoutError:
                if not bridge.has_restore_wait(self._ovsdb):
                    await self._release(switch)
