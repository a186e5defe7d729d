"""The connections of a node, kept below what its datapath can hold; see `limits`."""

import asyncio
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NoReturn

import structlog

from flows.pipeline import CT_ZONE, SNAT_ZONE
from node_agent import appctl, limits
from node_agent.appctl import AppctlError
from node_agent.local_switch import LocalSwitch, SwitchAwayError
from settings import Agent

INTERVAL: Final = 5.0
"""Seconds between two looks at the number of connections."""
SNAT_SHARE: Final = 8
"""The zone of translated sources has one of so many parts of all connections."""
_KERNEL: Final = Path("/proc/sys/net/netfilter")

log = structlog.get_logger()


class ConnectionLimits:
    """Keeps the connections of this node below what the datapath can hold."""

    def __init__(self, agent: Agent, switch: LocalSwitch) -> None:
        self._run = agent.ovs_run
        self._datapath = agent.datapath
        self._switch = switch
        self._imposed_on: tuple[int, int, int] | None = None
        """The ovs-vswitchd that was told its limits, and what they depend on: it keeps them in
        memory alone."""
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
        limit = capacity(self._datapath)
        chosen = await self._make_room(limit)
        # Last: room is made also on a datapath that has no limits for zones.
        await self._impose(limit)
        return chosen

    async def _make_room(self, capacity: int) -> list[IPv4Address]:
        used = await self._connections()
        if used * 2 <= capacity:
            return []
        opened = await self._switch.opened()
        chosen = most_of(opened, used, capacity)
        for address in chosen:
            log.warning(
                "too many connections: those of one address are forgotten",
                address=str(address), opened=opened[address], capacity=capacity,
            )  # fmt: skip
        if chosen:
            await self._switch.forget_opened({address: opened[address] for address in chosen})
        return chosen

    async def _connections(self) -> int:
        if self._datapath == "system":
            return int((_KERNEL / "nf_conntrack_count").read_text())
        return int(await self._dpctl("ct-get-nconns"))

    async def _impose(self, capacity: int) -> None:
        # A container's ovs-vswitchd may have the same pid again.
        started = (self._run / "ovs-vswitchd.pid").stat().st_mtime_ns
        process = appctl.pid(self._run), started, capacity
        if process == self._imposed_on:
            return
        if self._datapath != "system":
            await self._dpctl("ct-set-maxconns", str(limits.MOST_CONNECTIONS))
            await self._dpctl("ipf-set-max-nfrags", str(limits.MOST_FRAGMENTS))
        # Together they leave room for the node's own connections.
        await self._dpctl(
            "ct-set-limits",
            f"zone={CT_ZONE},limit={capacity * 3 // 4}",
            f"zone={SNAT_ZONE},limit={capacity // SNAT_SHARE}",
        )
        self._imposed_on = process

    async def _dpctl(self, command: str, *arguments: str) -> str:
        datapath = f"{self._datapath}@ovs-{self._datapath}"
        return await appctl.call(self._run, f"dpctl/{command}", datapath, *arguments)


def capacity(datapath: str) -> int:
    """How many connections a datapath of this type can track. Raises `OSError`, `ValueError`."""
    if datapath == "system":
        return int((_KERNEL / "nf_conntrack_max").read_text())
    return limits.MOST_CONNECTIONS


def most_of(opened: Counter[IPv4Address], used: int, capacity: int) -> list[IPv4Address]:
    """Choose whose connections are deleted, so that a table with `used` entries is half full.

    Those that opened most. Nobody who opened less than a 256th of what the table holds: 110 such
    pods together have less than half of it. A connection may have several entries (in the zone of
    translated sources, in the host's), so each counts as its share of `used`.
    """
    chosen: list[IPv4Address] = []
    left = float(used)
    share = max(1.0, used / max(1, opened.total()))
    for address, number in opened.most_common():
        if left * 2 <= capacity or number * 256 < capacity:
            break
        chosen.append(address)
        left -= number * share
    return chosen
