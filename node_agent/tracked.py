"""The connections that the switch tracks: which addresses they belong to.

Open vSwitch forgets connections over OpenFlow (`openflow.batch.Forget`), but it only tells by its
control socket what it still knows.
"""

import asyncio
import re
from collections import Counter
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from flows.pipeline import ZONE
from node_agent import appctl

_ENTRY: Final = re.compile(r"orig=\(src=([\d.]+),.*?reply=\(src=([\d.]+),")


async def counts(run: Path, datapath: str) -> Counter[IPv4Address]:
    """How many connections each address takes part in, as who opened them or who answers.

    Whoever answers is the address that packets were really sent to, whatever a Service made of it.
    `run` is the directory of ovs-vswitchd's sockets, `datapath` the type of its datapath. Raises
    `appctl.AppctlError`.
    """
    listed = await appctl.call(
        run, "dpctl/dump-conntrack", f"{datapath}@ovs-{datapath}", f"zone={ZONE}"
    )
    # There may be a million: not in the event loop.
    return await asyncio.to_thread(_counted, listed)


def _counted(listed: str) -> Counter[IPv4Address]:
    found: Counter[str] = Counter()
    for opener, answerer in _ENTRY.findall(listed):
        found[opener] += 1
        if answerer != opener:
            found[answerer] += 1
    return Counter({IPv4Address(address): number for address, number in found.items()})
