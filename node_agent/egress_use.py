"""The ledger of a gateway: which connections use the source ports of its egress addresses.

The switch tells what it tracks in the zone of translated sources by its control socket, on both
datapaths. It is counted in a thread, and the next look comes later the more there is.
"""

import asyncio
import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from heapq import nsmallest
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, NoReturn

import structlog

from flows.features.protocols import ICMP, LAYER_4_NAMES
from flows.pipeline import SNAT_ZONE
from node_agent import appctl, connection_limits
from node_agent.controllers import TAKEN_OR_UNKNOWN, Controllers
from settings import Agent
from wire import paths
from wire.egress import (
    MAX_ADDRESSES,
    MAX_DESTINATIONS,
    MAX_PODS,
    AddressUse,
    DestinationUse,
    EgressUse,
    PodUse,
)

INTERVAL: Final = 5.0
"""Seconds between two looks."""
_LISTED: Final = 2_000.0
"""Connections that are listed in a second, on average: the more there are, the rarer is a look."""
_LONGEST: Final = 60.0
"""Seconds between two looks, however many there are."""
_ENTRY: Final = re.compile(
    r"^(\w+),orig=\(src=([\d.]+),dst=([\d.]+)(?:,sport=\d+,dport=(\d+))?[^)]*\),"
    r"reply=\(src=[\d.]+,dst=([\d.]+)",
    re.MULTILINE,
)
_PROTOCOLS: Final = {"icmp": ICMP, **{name: number for number, name in LAYER_4_NAMES.items()}}
_Destination = tuple[str, str, str]
"""Protocol, address and port, as Open vSwitch prints them."""

log = structlog.get_logger()


async def look(run: Path, datapath: str, sending: Collection[IPv4Address]) -> EgressUse:
    """Who uses the ports of these addresses now.

    `run` is the directory of ovs-vswitchd's sockets. Raises `appctl.AppctlError`, `OSError`.
    """
    listed = await appctl.call(
        run, "dpctl/dump-conntrack", f"{datapath}@ovs-{datapath}", f"zone={SNAT_ZONE}"
    )
    capacity = connection_limits.capacity(datapath) // connection_limits.SNAT_SHARE
    return await asyncio.to_thread(count, listed, sending, capacity)


def count(listed: str, sending: Collection[IPv4Address], capacity: int) -> EgressUse:
    """Count what Open vSwitch has listed."""
    used: dict[str, dict[_Destination, Counter[str]]] = {
        str(address): defaultdict(Counter) for address in sorted(sending)[:MAX_ADDRESSES]
    }
    tracked = 0
    # One by one: `findall` would hold all threads up until it has found the last one.
    for found in _ENTRY.finditer(listed):
        protocol, pod, destination, port, address = found.groups(default="")
        tracked += 1
        if (of_address := used.get(address)) is not None and protocol in _PROTOCOLS:
            of_address[protocol, destination, port][pod] += 1
    return EgressUse(
        tuple(_use(address, found) for address, found in used.items()), tracked, capacity
    )


def _use(address: str, found: dict[_Destination, Counter[str]]) -> AddressUse:
    pods: Counter[str] = Counter()
    for each in found.values():
        pods.update(each)
    # Not `sorted`: one call for very many destinations would hold all threads up.
    by_ports = nsmallest(
        MAX_DESTINATIONS, found.items(), key=lambda item: (-item[1].total(), item[0])
    )
    destinations = tuple(
        DestinationUse(
            IPv4Address(destination),
            _PROTOCOLS[protocol],
            int(port or 0),
            of_pods.total(),
            _most(of_pods.items()),
        )
        for (protocol, destination, port), of_pods in by_ports
    )
    return AddressUse(
        IPv4Address(address), pods.total(), len(found), _most(pods.items()), destinations
    )


def _most(pods: Iterable[tuple[str, int]]) -> tuple[PodUse, ...]:
    ordered = sorted(pods, key=lambda item: (-item[1], item[0]))
    return tuple((IPv4Address(pod), number) for pod, number in ordered[:MAX_PODS])


async def report_loop(
    controllers: Controllers, agent: Agent, sending: Callable[[], Collection[IPv4Address]]
) -> NoReturn:
    """Tell all controllers, as long as this node is a gateway. Never ends."""
    was_gateway, problem = False, ""
    while True:
        tracked = 0
        addresses = sending()
        if addresses or was_gateway:
            try:
                use = await look(agent.ovs_run, agent.datapath, addresses)
                tracked = use.tracked
            except (appctl.AppctlError, OSError, ValueError) as error:
                if str(error) != problem:
                    log.warning("egress connections are not counted", reason=str(error))
                problem = str(error)
            else:
                problem, was_gateway = "", bool(addresses)
                await asyncio.gather(
                    *(each.tell(paths.EGRESS, use, TAKEN_OR_UNKNOWN) for each in controllers.each)
                )
        pause = min(INTERVAL + tracked / _LISTED, _LONGEST)
        # At random, so that a thousand agents do not come at one moment.
        await asyncio.sleep(pause * random.uniform(0.8, 1.2))  # noqa: S311
