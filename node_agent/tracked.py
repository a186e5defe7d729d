"""The connections that the switch tracks: which addresses they belong to.

Open vSwitch forgets connections over OpenFlow (`openflow.conntrack.Forget`), but it only tells by
its control socket what it still knows.
"""

import asyncio
import re
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from flows.pipeline import CT_ZONE, FROM_SERVICE, KNOWN
from node_agent import appctl

_ENTRY: Final = re.compile(r"orig=\(src=([\d.]+),.*?reply=\(src=([\d.]+),(?:[^\n]*?,mark=(\d+))?")


async def counts(run: Path, datapath: str) -> Counter[IPv4Address]:
    """How many connections each address takes part in, as who opened them or who answers.

    Whoever answers is the address that packets were really sent to, whatever a Service made of it.
    `run` is the directory of ovs-vswitchd's sockets, `datapath` the type of its datapath. Raises
    `appctl.AppctlError`.
    """
    # There may be very many: not in the event loop.
    return await asyncio.to_thread(_counted, await _listed(run, datapath))


async def opened(run: Path, datapath: str) -> Counter[IPv4Address]:
    """How many connections each address has opened. Otherwise as `counts`."""
    return await asyncio.to_thread(_counted, await _listed(run, datapath), answerers=False)


async def _listed(run: Path, datapath: str) -> str:
    return await appctl.call(
        run, "dpctl/dump-conntrack", f"{datapath}@ovs-{datapath}", f"zone={CT_ZONE}"
    )


def _counted(listed: str, *, answerers: bool = True) -> Counter[IPv4Address]:
    found: Counter[str] = Counter()
    for opener, answerer, mark in _ENTRY.findall(listed):
        if answerers and int(mark or 0) & (FROM_SERVICE | KNOWN) == FROM_SERVICE:
            # A Service chose an endpoint, and the packet was dropped later: no pod has the address.
            # Its next packet is judged as new. Who may write endpoints could make many of these.
            continue
        found[opener] += 1
        if answerers and answerer != opener:
            found[answerer] += 1
    return Counter({IPv4Address(address): number for address, number in found.items()})
