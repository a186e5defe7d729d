"""Whether the fabric carries packets of pods to peers behind a router.

The host's route to such a peer leads to the router, and says nothing about whether the router knows
the peer's podCIDR. So the agent connects to the gateway address of some of these peers, from its
own one. A peer is reported if its node address answers at the same port, and that one does not. Any
answer counts, also a refusal.
"""

import asyncio
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv4Network
from itertools import islice
from typing import Final, NoReturn

from flows import names
from node_agent.peer_routes import PeerRouting

PORT: Final = 10256
"""Where agents serve /healthz by default."""
INTERVAL: Final = 5.0
"""Seconds between two rounds."""
AT_ONCE: Final = 8
"""Peers of one round; the next round has the next ones."""
PATIENCE: Final = 2.0
"""Seconds for an answer."""
MOST_NAMED: Final = 5


class FabricProbe:
    """Asks peers behind routers in turn."""

    def __init__(self, peers: PeerRouting) -> None:
        self._peers = peers
        self._last: IPv4Network | None = None
        self._silent: dict[IPv4Network, IPv4Address] = {}
        """The peers that the fabric does not carry packets to: podCIDR and address."""

    def problem(self) -> str:
        """What the fabric does not carry; empty: nothing that is known of."""
        if not self._silent:
            return ""
        named = [f"{address} (pods {pods})" for pods, address in sorted(self._silent.items())]
        more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
        return (
            f"the network does not carry packets of pods to the nodes"
            f" {', '.join(named[:MOST_NAMED])}{more}: mode noEncap across routers needs routers"
            " that know the nodes' podCIDRs, by BGP or static routes; mode hybrid does not"
        )

    async def run(self) -> NoReturn:
        """Never ends."""
        while True:
            await asyncio.sleep(INTERVAL)
            routed, own = self._peers.routed, self._peers.gateway
            self._silent = {pods: at for pods, at in self._silent.items() if pods in routed}
            if own is None:
                continue
            chosen = self._next(routed)
            found = await asyncio.gather(*(_is_silent(own, pods, routed[pods]) for pods in chosen))
            for pods, silent in zip(chosen, found, strict=True):
                if silent:
                    self._silent[pods] = routed[pods]
                else:
                    self._silent.pop(pods, None)

    def _next(self, routed: Mapping[IPv4Network, IPv4Address]) -> list[IPv4Network]:
        """Those after the last ones, in the order of their ranges."""
        ordered: Iterable[IPv4Network] = sorted(routed)
        if self._last is not None:
            last = self._last
            ordered = sorted(routed, key=lambda pods: (pods <= last, pods))
        chosen = list(islice(ordered, AT_ONCE))
        if chosen:
            self._last = chosen[-1]
        return chosen


async def _is_silent(own: IPv4Address, pods: IPv4Network, address: IPv4Address) -> bool:
    """Whether a peer answers at its node address only. The gateway address is asked twice."""
    for _ in range(2):
        if await _answers(names.gateway_address(pods), own):
            return False
    return await _answers(address, None)


async def _answers(address: IPv4Address, source: IPv4Address | None) -> bool:
    local = (str(source), 0) if source is not None else None
    try:
        async with asyncio.timeout(PATIENCE):
            _, writer = await asyncio.open_connection(str(address), PORT, local_addr=local)
    except ConnectionRefusedError:
        return True
    except (TimeoutError, OSError):
        return False
    writer.close()
    return True
