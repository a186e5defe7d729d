"""What the host's kernel does for pods and Services: `table ip sluice`, nothing else of nftables.

The rules are the same on every node but for its podCIDR; what comes and goes is in sets, so that
one more NodePort or hostPort is one element more. Translations of existing connections live in
conntrack: no change here touches them, except those of UDP, which would never end (`conntrack`).
"""

import asyncio
import re
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address, IPv4Network
from typing import Final, TypeAlias

import structlog

from flows.names import GATEWAY_PORT, HAIRPIN_ADDRESS, NODE_PORT_ADDRESS
from node_agent import conntrack, nft
from node_agent.cni_call import HostPort
from node_agent.leases import Lease, Leases
from node_agent.sysctl import Sysctls

NodePort: TypeAlias = tuple[int, int]
"""IANA's number of the protocol, and the port."""
OwnPort: TypeAlias = tuple[IPv4Address, int, int]
"""An address of the host itself, the protocol and the port."""

_Elements: TypeAlias = dict[str, dict[str, str]]
"""By set, key and value as nft prints them; a plain set's values are empty."""

_SETS: Final = ("node-ports", "own-addresses", "host-ports", "host-ports-at")
_ELEMENTS: Final = re.compile(r"\s*elements = \{([^}]*)\}")
_SET: Final = re.compile(
    rf"(?:set|map) ({'|'.join(_SETS)}) \{{\s*type [^\n]*\n(?:\s*elements = \{{([^}}]*)\}})?"
)

log = structlog.get_logger()


class HostTable:
    """Makes the table what configuration, Services and leases want it to be."""

    def __init__(self, leases: Leases, sysctls: Sysctls) -> None:
        self._leases = leases
        self._sysctls = sysctls
        self._ranges: tuple[IPv4Network, IPv4Network] | None = None
        self._wanted: AbstractSet[NodePort] | None = None
        self._own: Mapping[OwnPort, IPv4Address] = {}
        self._busy: AbstractSet[NodePort] = frozenset()
        self._node_ports: AbstractSet[NodePort] = frozenset()
        self._own_ports: AbstractSet[OwnPort] = frozenset()
        self._lock = asyncio.Lock()

    @property
    def node_ports(self) -> AbstractSet[NodePort]:
        """Those that are translated, as `converge` left them."""
        return self._node_ports

    @property
    def own_ports(self) -> AbstractSet[OwnPort]:
        """The same of ports that Services have at single addresses."""
        return self._own_ports

    def use(self, pod_cidr: IPv4Network, pod_range: IPv4Network) -> None:
        """Say what the node's ranges are; from here on there is a table to `converge`."""
        self._ranges = pod_cidr, pod_range

    def want(
        self,
        node_ports: AbstractSet[NodePort],
        own: Mapping[OwnPort, IPv4Address],
        busy: AbstractSet[NodePort],
    ) -> None:
        """Say which NodePorts there are, and on which ports a process of the host is.

        `own` has what Services have at single addresses, and what to translate these to. A port
        belongs to who was there first. Before it is said which there are, none is added or taken
        away.
        """
        self._wanted, self._own, self._busy = node_ports, own, busy

    async def converge(self) -> None:
        """Make the table so, by one transaction; what is so already is left alone.

        Raises `NftError`, and `OSError` where a sysctl cannot be set.
        """
        async with self._lock:
            if self._ranges is None:
                return
            found = await nft.listed("ip")
            before = _elements(found)
            there = {_node_port(key) for key in before["node-ports"]}
            own_there = {_own_port(k): IPv4Address(v) for k, v in before["own-addresses"].items()}
            node_ports, own = there, own_there
            if self._wanted is not None:
                node_ports = {*self._wanted} - (self._busy - there)
                own = {
                    at: stand_in
                    for at, stand_in in self._own.items()
                    if at in own_there or at[1:] not in self._busy
                }
            after = _wanted_elements(node_ports, own, _host_ports(self._leases.all()))
            skeleton = _skeleton(*self._ranges)
            if _ELEMENTS.sub("", found).split() == skeleton.split():
                change = _difference(before, after)
            else:
                anew = f"table ip {nft.TABLE} {{}}\ndelete table ip {nft.TABLE}\n{skeleton}\n"
                change = anew + _difference({name: {} for name in _SETS}, after)
            if change:
                await nft.apply(change)
            self._node_ports, self._own_ports = node_ports, own.keys()
            # Only now, when pods' packets to loopback addresses are dropped before.
            localnet = any(after[name] for name in ("host-ports", "host-ports-at"))
            self._sysctls.write(f"ipv4/conf/{GATEWAY_PORT}/route_localnet", str(int(localnet)))
            await self._forget_datagrams(_changed_udp(before, after))

    async def missing(self, lease: Lease) -> list[str]:
        """Which host ports of an attachment are not translated, in words. Raises `NftError`."""
        found = _elements(await nft.listed("ip"))
        wanted = _wanted_elements((), {}, _host_ports([lease]))
        return [
            f"the host does not send {key.replace(' . ', ' ')} to {value.replace(' . ', ' ')}"
            for name in _SETS
            for key, value in wanted[name].items()
            if found[name].get(key) != value
        ]

    async def _forget_datagrams(self, ports: set[int]) -> None:
        if not ports:
            return
        try:
            count = await asyncio.to_thread(conntrack.forget_udp, ports)
        except OSError as error:
            log.warning("old UDP connections go on as they did", ports=ports, reason=str(error))
        else:
            log.debug("UDP connections forgotten", ports=len(ports), connections=count)


def _host_ports(leases: Iterable[Lease]) -> dict[HostPort, IPv4Address]:
    """By host port, the pod's address. A sandbox that is to go may still be there: last wins."""
    claims: dict[tuple[int, IPv4Address | None, int], tuple[HostPort, IPv4Address]] = {}
    for lease in leases:
        for port in lease.host_ports:
            claims[port.claim] = port, lease.address
    return dict(claims.values())


def _wanted_elements(
    node_ports: Iterable[NodePort],
    own: Mapping[OwnPort, IPv4Address],
    host_ports: Mapping[HostPort, IPv4Address],
) -> _Elements:
    anywhere, at = {}, {}
    for port, address in host_ports.items():
        key, value = f"{port.protocol} . {port.port}", f"{address} . {port.container_port}"
        if port.address is None:
            anywhere[key] = value
        else:
            at[f"{port.address} . {key}"] = value
    plain = {f"{protocol} . {port}": "" for protocol, port in node_ports}
    own_elements = {f"{a} . {p} . {n}": str(stand_in) for (a, p, n), stand_in in own.items()}
    return dict(zip(_SETS, (plain, own_elements, anywhere, at), strict=True))


def _elements(listed: str) -> _Elements:
    found: _Elements = {name: {} for name in _SETS}
    for name, elements in _SET.findall(listed):
        for element in filter(None, " ".join(elements.split()).split(", ")):
            key, _, value = element.partition(" : ")
            found[name][key] = value
    return found


def _node_port(key: str) -> NodePort:
    protocol, _, port = key.partition(" . ")
    return int(protocol), int(port)


def _own_port(key: str) -> OwnPort:
    address, _, rest = key.partition(" . ")
    return IPv4Address(address), *_node_port(rest)


def _difference(before: _Elements, after: _Elements) -> str:
    """The transaction from one to the other; empty where there is nothing to do."""
    lines = []
    for name in _SETS:
        gone = before[name].items() - after[name].items()
        new = after[name].items() - before[name].items()
        if gone:
            keys = ", ".join(key for key, _ in sorted(gone))
            lines.append(f"delete element ip {nft.TABLE} {name} {{ {keys} }}\n")
        if new:
            elements = ", ".join(f"{k} : {v}" if v else k for k, v in sorted(new))
            lines.append(f"add element ip {nft.TABLE} {name} {{ {elements} }}\n")
    return "".join(lines)


def _changed_udp(before: _Elements, after: _Elements) -> set[int]:
    """The UDP ports that lead elsewhere now."""
    changed = set()
    for name in _SETS:
        for key, _ in before[name].items() ^ after[name].items():
            *_, protocol, port = key.split(" . ")
            if protocol == "17":
                changed.add(int(port))
    return changed


def _skeleton(pod_cidr: IPv4Network, pod_range: IPv4Network) -> str:
    # As nft 1.0.6 prints it: what another version prints differently is set anew each time.
    #
    # gateway, forward: what the switch hands back, because no endpoint is there, would go into it
    # again, and is refused. Conntrack does not look at it: so the answer is one to the packet that
    # went in before, and is translated like it. It is refused as late as that because an ICMP
    # error to the host itself finds no way out of an earlier hook.
    # With route_localnet pods could reach what listens on the host's loopback addresses.
    #
    # translations: a process's connection to a loopback address is left alone, except to a
    # hostPort. The switch itself translates its pods' connections to NodePorts, and to addresses
    # that Services name: an own address that one names goes before NodePorts.
    #
    # postrouting: what a pod's own node translates back into the switch comes back by the host
    # only if the host has sent it.
    return f"""
table ip {nft.TABLE} {{
    set node-ports {{
        type inet_proto . inet_service
    }}

    map own-addresses {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr
    }}

    map host-ports {{
        type inet_proto . inet_service : ipv4_addr . inet_service
    }}

    map host-ports-at {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    }}

    chain gateway {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "{GATEWAY_PORT}" accept
        ip saddr 127.0.0.0/8 counter drop
        ip daddr 127.0.0.0/8 counter drop
        fib daddr oifname "{GATEWAY_PORT}" notrack
    }}

    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname != "{GATEWAY_PORT}" accept
        oifname != "{GATEWAY_PORT}" accept
        ct state untracked meta l4proto 6 counter reject with tcp reset
        ct state untracked counter reject
    }}

    chain translations {{
        dnat ip to ip daddr . meta l4proto . th dport map @host-ports-at
        dnat ip to meta l4proto . th dport map @host-ports
        iifname != "{GATEWAY_PORT}" \
dnat to ip daddr . meta l4proto . th dport map @own-addresses
        iifname != "{GATEWAY_PORT}" ip daddr != 127.0.0.0/8 meta l4proto . th dport @node-ports \
dnat to {NODE_PORT_ADDRESS}
    }}

    chain prerouting {{
        type nat hook prerouting priority dstnat; policy accept;
        fib daddr type local jump translations
    }}

    chain output {{
        type nat hook output priority -100; policy accept;
        fib daddr type local jump translations
    }}

    chain postrouting {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {pod_cidr} ip daddr != {pod_range} oifname != "{GATEWAY_PORT}" \
counter masquerade comment "from pods to the world outside"
        ip saddr {HAIRPIN_ADDRESS} oifname != "{GATEWAY_PORT}" \
counter masquerade comment "from Services to the world outside"
        ct status dnat oifname "{GATEWAY_PORT}" ip saddr 127.0.0.0/8 \
counter masquerade comment "from the host to its own hostPorts"
        ct status dnat oifname "{GATEWAY_PORT}" ip saddr {pod_cidr} \
counter masquerade comment "from pods to their own node's hostPorts"
    }}
}}
"""
