"""The nftables rules of this node, in tables of our own, each change one atomic transaction."""

import asyncio
import re
import socket
from collections.abc import Iterable
from ipaddress import IPv4Network
from typing import Final

from flows.names import GATEWAY_PORT

_TABLE: Final = "sluice"


class NftError(Exception):
    """nft refused a transaction."""


async def apply(text: str) -> None:
    """Give one transaction to the kernel. Raises `NftError` with what nft says."""
    await _nft("-f", "-", stdin=text)


async def masquerade(pod_cidr: IPv4Network, pod_range: IPv4Network) -> None:
    """What pods send beyond the cluster leaves with the node's address. Raises `NftError`.

    A table that is so already is left alone, and its counter counts on. Otherwise it is replaced
    as a whole; translations of existing connections live in conntrack and stay as they are.
    """
    wanted = _masquerade(pod_cidr, pod_range)
    if (await _listed("ip")).split() != wanted.split():
        await apply(f"table ip {_TABLE} {{}}\ndelete table ip {_TABLE}\n{wanted}")


async def deafen_again(devices: Iterable[str]) -> None:
    """`deafen` those of these existing interfaces that are not. Raises `NftError`.

    Somebody flushed the ruleset: a restart of the nftables service does.
    """
    missing = sorted(set(devices) - await deaf())
    if not missing:
        return
    await apply("".join(forget(device) + deafen(device) for device in missing))
    # Kernels from 6.16 on take chains of devices that are not there: of one that was removed
    # meanwhile, together with its chain, another would be left for ever.
    if gone := set(missing) - {name for _, name in socket.if_nameindex()}:
        await apply("".join(map(forget, gone)))


async def deaf() -> set[str]:
    """The interfaces that are deafened. Raises `NftError`."""
    return set(_DEAF.findall(await _listed("netdev")))


_DEAF: Final = re.compile(
    r'chain (\S+) \{\s+type filter hook ingress device "\1" priority \S+; policy drop;\s+\}'
)


async def _listed(family: str) -> str:
    """Our table as nft prints it, without counters; empty where there is none."""
    every = await _nft("-s", "list", "tables", family)
    if f"table {family} {_TABLE}" not in every.splitlines():
        return ""
    return await _nft("-s", "list", "table", family, _TABLE)


async def _nft(*arguments: str, stdin: str = "") -> str:
    try:
        process = await asyncio.create_subprocess_exec(
            "nft", *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except OSError as error:
        raise NftError(f"nft cannot be run: {error.strerror}") from error
    output, errors = await process.communicate(stdin.encode())
    if process.returncode:
        raise NftError(f"nft: {' '.join(errors.decode(errors='replace').split())}")
    return output.decode(errors="replace")


def _masquerade(pod_cidr: IPv4Network, pod_range: IPv4Network) -> str:
    # As nft 1.0.6 prints it: what another version prints differently is set anew each time.
    return f"""
table ip {_TABLE} {{
    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {pod_cidr} ip daddr != {pod_range} oifname != "{GATEWAY_PORT}" \
counter masquerade comment "from pods to the world outside"
    }}
}}
"""


def deafen(device: str) -> str:
    """The kernel does not hear what this interface receives; Open vSwitch does.

    In the userspace datapath a packet socket feeds the switch, and the kernel's own stack gets
    every frame as well: without this a pod speaks to the node past every flow. One chain for
    each device, because kernels before 6.4 add none to an existing chain.
    """
    return f"""
table netdev {_TABLE} {{}}
add chain netdev {_TABLE} {device} {{ type filter hook ingress device "{device}" priority 0; \
policy drop; }}
"""


def forget(device: str) -> str:
    """Undo `deafen`, whether or not it was done: newer kernels keep the chain of a lost device."""
    return f"""
table netdev {_TABLE} {{}}
add chain netdev {_TABLE} {device}
delete chain netdev {_TABLE} {device}
"""
