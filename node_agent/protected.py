"""Addresses that this host needs itself: no Service may take traffic for them away.

The controller refuses the ones that it knows. This is the second check, at the node, which also
holds for what is remembered on disk: a host that cannot reach its controllers any more could never
learn that the Service is gone.
"""

import asyncio
import socket
from collections.abc import Iterable, Iterator
from contextlib import suppress
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path
from typing import Any, Final

from pyroute2 import AsyncIPRoute

from node_agent import routes

RESOLV_CONF: Final = (Path("/etc/resolv.conf"), Path("/run/systemd/resolve/resolv.conf"))
_RESOLVE_TIMEOUT: Final = 5.0
"""Seconds to look up a controller's name."""


class Protected:
    """Collects them; remembers what a controller's name meant when it cannot be looked up."""

    def __init__(
        self, controllers: Iterable[str], resolv_conf: Iterable[Path] = RESOLV_CONF
    ) -> None:
        self._controllers = tuple(controllers)
        self._resolv_conf = tuple(resolv_conf)
        self._resolved: dict[str, set[IPv4Address]] = {}

    async def addresses(
        self, netlink: AsyncIPRoute, told: Iterable[IPv4Address] = ()
    ) -> dict[IPv4Address, str]:
        """Each with what it is, in words. `told`: what the controller says to protect.

        Raises `NetlinkError`.
        """
        found = dict.fromkeys(told, "an address that the cluster needs")
        for route in await routes.dump(netlink):
            found |= dict.fromkeys(_gateways(route), "a gateway of this host")
        found |= dict.fromkeys(self._nameservers(), "a DNS server of this host")
        for name in self._controllers:
            found |= dict.fromkeys(await self._resolve(name), "a Sluice controller")
        async for entry in await netlink.get_addr(family=socket.AF_INET):
            text = entry.get_attr("IFA_LOCAL") or entry.get_attr("IFA_ADDRESS")
            found[IPv4Address(text)] = "an address of this host"
        return found

    def _nameservers(self) -> Iterator[IPv4Address]:
        for path in self._resolv_conf:
            try:
                lines = path.read_text(errors="replace").splitlines()
            except OSError:
                continue
            for line in lines:
                match line.split():
                    case ["nameserver", text, *_]:
                        with suppress(AddressValueError):
                            yield IPv4Address(text)

    async def _resolve(self, name: str) -> set[IPv4Address]:
        with suppress(AddressValueError):
            return {IPv4Address(name)}
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(_RESOLVE_TIMEOUT):
                answers = await asyncio.get_running_loop().getaddrinfo(
                    name, None, family=socket.AF_INET, type=socket.SOCK_STREAM
                )
            self._resolved[name] = {IPv4Address(address[0]) for *_, address in answers}
        return self._resolved.get(name, set())


def _gateways(route: Any) -> Iterator[IPv4Address]:
    for hop in routes.hops(route):
        if text := hop.get_attr("RTA_GATEWAY"):
            yield IPv4Address(text)
