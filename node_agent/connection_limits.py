"""The connections of a node, kept below what its datapath can hold; see `limits`."""

import asyncio
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NoReturn

import structlog

from flows.pipeline import CT_ZONE
from node_agent import appctl, limits
from node_agent.appctl import AppctlError
from node_agent.local_switch import LocalSwitch, SwitchAwayError
from settings import Agent

INTERVAL: Final = 5.0
"""Seconds between two looks at the number of connections."""
_KERNEL: Final = Path("/proc/sys/net/netfilter")

log = structlog.get_logger()


class ConnectionLimits:
    """Keeps the connections of this node below what the datapath can hold."""

    def __init__(self, agent: Agent, switch: LocalSwitch) -> None:
        self._run = agent.ovs_run
        self._datapath = agent.datapath
        self._switch = switch
        self._imposed_on = 0
        """The pid of the ovs-vswitchd that was told its limits: it keeps them in memory alone."""
        self._problem = ""

    async def run(self) -> NoReturn:
        """Look for ever."""
        while True:
            try:
                await self.look()
                self._problem = ""
            except (AppctlError, SwitchAwayError, OSError, ValueError) as error:
                if str(error) != self._problem:
                    self._problem = str(error)
                    log.warning("connections are not bounded now", reason=self._problem)
            await asyncio.sleep(INTERVAL)

    async def look(self) -> list[IPv4Address]:
        """Impose the limits on a new ovs-vswitchd; where the table is half full, make room.

        Returns whose connections were taken away. Raises `AppctlError`, `SwitchAwayError`,
        `OSError`, `ValueError`.
        """
        capacity = self._capacity()
        await self._impose(capacity)
        if await self._connections() * 2 <= capacity:
            return []
        opened = await self._switch.opened()
        chosen = most_of(opened, capacity)
        for address in chosen:
            log.warning(
                "too many connections: those of one address are forgotten",
                address=str(address), opened=opened[address], capacity=capacity,
            )  # fmt: skip
        if chosen:
            await self._switch.forget_opened({address: opened[address] for address in chosen})
        return chosen

    def _capacity(self) -> int:
        if self._datapath == "system":
            return int((_KERNEL / "nf_conntrack_max").read_text())
        return limits.MOST_CONNECTIONS

    async def _connections(self) -> int:
        if self._datapath == "system":
            return int((_KERNEL / "nf_conntrack_count").read_text())
        return int(await self._dpctl("ct-get-nconns"))

    async def _impose(self, capacity: int) -> None:
        pid = appctl.pid(self._run)
        if pid == self._imposed_on:
            return
        if self._datapath != "system":
            await self._dpctl("ct-set-maxconns", str(limits.MOST_CONNECTIONS))
            await self._dpctl("ipf-set-max-nfrags", str(limits.MOST_FRAGMENTS))
        # The node's own connections, and those of other zones, always find room.
        await self._dpctl("ct-set-limits", f"zone={CT_ZONE},limit={capacity * 3 // 4}")
        self._imposed_on = pid

    async def _dpctl(self, command: str, *arguments: str) -> str:
        datapath = f"{self._datapath}@ovs-{self._datapath}"
        return await appctl.call(self._run, f"dpctl/{command}", datapath, *arguments)


def most_of(opened: Counter[IPv4Address], capacity: int) -> list[IPv4Address]:
    """Whose connections are to go so that a table that is half full is so no more.

    Those that have opened most, and nobody who has opened less than a 16th of what the table holds.
    """
    chosen: list[IPv4Address] = []
    left = opened.total()
    for address, number in opened.most_common():
        if left * 2 <= capacity or number * 16 < capacity:
            break
        chosen.append(address)
        left -= number
    return chosen
