"""What the host's kernel does for pods and Services: `table ip sluice`, nothing else of nftables.

The rules are the same on every node but for its podCIDR; what comes and goes is in sets, so that
one more NodePort or hostPort is one element more. Translations of existing connections live in
conntrack: no change here touches them, except those of UDP, which would never end (`conntrack`).
"""

import asyncio
import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from ipaddress import IPv4Address, IPv4Network
from typing import Final

import structlog

from flows.names import GATEWAY_PORT, HAIRPIN_ADDRESS, NODE_PORT_ADDRESS, gateway_address
from node_agent import conntrack, nft, routes
from node_agent.cni_call import HostPort
from node_agent.leases import Lease, Leases
from node_agent.sysctl import Sysctls
from wire.service_ports import SETS, Elements, NodePort, ServicePorts

_TRANSLATING_SETS: Final = tuple(
    name for name in SETS if name not in {"external-ports", "balancer-addresses"}
)
_ELEMENTS: Final = re.compile(r"\s*elements = \{([^}]*)\}")
_SET: Final = re.compile(
    rf"(?:set|map) ({'|'.join(SETS)}) \{{\s*type [^\n]*\n(?:\s*elements = \{{([^}}]*)\}})?"
)

_BIT: Final = f"0x{routes.MARK:08x}"
_MARK: Final = f"meta mark set meta mark | {_BIT}"
_ICMP_ERRORS: Final = (
    "destination-unreachable, source-quench, redirect, time-exceeded, parameter-problem"
)

log = structlog.get_logger()


class HostTable:
    """Keeps the table as configuration, Services and leases require."""

    def __init__(self, leases: Leases, sysctls: Sysctls) -> None:
        self._leases = leases
        self._sysctls = sysctls
        self._ranges: tuple[IPv4Network, IPv4Network] | None = None
        self._tunnel_port = 0
        self._wanted: ServicePorts | None = None
        self._busy: AbstractSet[NodePort] = frozenset()
        self._served = ServicePorts()
        self._lock = asyncio.Lock()
        self._printed: tuple[str, list[str]] | None = None
        """A skeleton that was set up, and how this version of nft prints it: not each one prints
        it as it was written."""

    @property
    def served(self) -> ServicePorts:
        """What is in the table, as `converge` left it."""
        return self._served

    @property
    def ranges(self) -> tuple[IPv4Network, IPv4Network] | None:
        """The node's podCIDR and the range of all pods; None: not known yet."""
        return self._ranges

    async def elements(self) -> Elements:
        """What the kernel has in the table now. Raises `NftError`."""
        return await asyncio.to_thread(_elements, await nft.listed("ip"))

    def use(self, pod_cidr: IPv4Network, pod_range: IPv4Network, tunnel_port: int) -> None:
        """Set the node's ranges and its tunnel's port; before that, `converge` does nothing."""
        self._ranges, self._tunnel_port = (pod_cidr, pod_range), tunnel_port

    def want(self, ports: ServicePorts, busy: AbstractSet[NodePort]) -> None:
        """Set what Services have here, and which ports processes of the host hold (`busy`).

        A port belongs to who had it first. Before the first call, `converge` adds and removes none
        of what Services have.
        """
        self._wanted, self._busy = ports, busy

    async def converge(self) -> None:
        """Make the table as required, in one transaction; what is already right is left alone.

        Raises `NftError`, and `OSError` where a sysctl cannot be set.
        """
        async with self._lock:
            if self._ranges is None:
                return
            found = await nft.listed("ip")
            # Sets may be large.
            before = await asyncio.to_thread(_elements, found)
            served = there = ServicePorts.read(before)
            if self._wanted is not None:
                served = self._wanted.without(self._busy, there)
            after = {**served.elements(), **_host_port_elements(self._leases.all())}
            skeleton = _skeleton(*self._ranges, self._tunnel_port)
            printed = _ELEMENTS.sub("", found).split()
            is_new = printed != skeleton.split() and (skeleton, printed) != self._printed
            if not is_new:
                change = _difference(before, after)
            else:
                anew = f"table ip {nft.TABLE} {{}}\ndelete table ip {nft.TABLE}\n{skeleton}\n"
                change = anew + _difference({name: {} for name in SETS}, after)
            if change:
                await nft.apply(change)
            if is_new:
                now = _ELEMENTS.sub("", await nft.listed("ip"))
                # One with fewer lines was changed by others in the meantime.
                is_whole = _line_count(now) == _line_count(skeleton)
                self._printed = (skeleton, now.split()) if is_whole else None
            self._served = served
            # Only now, when pods' packets to loopback addresses are dropped before.
            localnet = any(after[name] for name in ("host-ports", "host-ports-at"))
            self._sysctls.write(f"ipv4/conf/{GATEWAY_PORT}/route_localnet", str(int(localnet)))
            await self._forget_datagrams(_changed_udp(before, after))

    async def missing(self, lease: Lease) -> list[str]:
        """Which host ports of an attachment are not translated, in words. Raises `NftError`."""
        found = _elements(await nft.listed("ip"))
        return [
            f"the host does not send {key.replace(' . ', ' ')} to {value.replace(' . ', ' ')}"
            for name, elements in _host_port_elements([lease]).items()
            for key, value in elements.items()
            if found[name].get(key) != value
        ]

    async def _forget_datagrams(self, ports: set[int]) -> None:
        if not ports:
            return
        try:
            count = await asyncio.to_thread(conntrack.forget_udp, ports)
        except OSError as error:
            log.warning(
                "UDP connections keep their old translation", ports=ports, reason=str(error)
            )
        else:
            log.debug("UDP connections forgotten", ports=len(ports), connections=count)


def _host_ports(leases: Iterable[Lease]) -> dict[HostPort, IPv4Address]:
    """By host port, the pod's address. A sandbox that is to go may still be there: last wins."""
    claims: dict[tuple[int, IPv4Address | None, int], tuple[HostPort, IPv4Address]] = {}
    for lease in leases:
        for port in lease.host_ports:
            claims[port.claim] = port, lease.address
    return dict(claims.values())


def _host_port_elements(leases: Iterable[Lease]) -> Elements:
    anywhere, at = {}, {}
    for port, address in _host_ports(leases).items():
        key, value = f"{port.protocol} . {port.port}", f"{address} . {port.container_port}"
        if port.address is None:
            anywhere[key] = value
        else:
            at[f"{port.address} . {key}"] = value
    return {"host-ports": anywhere, "host-ports-at": at}


def _elements(listed: str) -> Elements:
    found: Elements = {name: {} for name in SETS}
    for name, elements in _SET.findall(listed):
        for element in filter(None, " ".join(elements.split()).split(", ")):
            key, _, value = element.partition(" : ")
            found[name][key] = value
    return found


def _difference(before: Elements, after: Elements) -> str:
    """The transaction from one to the other; empty where there is nothing to do."""
    lines = []
    for name in SETS:
        gone = before[name].items() - after[name].items()
        new = after[name].items() - before[name].items()
        if gone:
            keys = ", ".join(key for key, _ in sorted(gone))
            lines.append(f"delete element ip {nft.TABLE} {name} {{ {keys} }}\n")
        if new:
            elements = ", ".join(f"{k} : {v}" if v else k for k, v in sorted(new))
            lines.append(f"add element ip {nft.TABLE} {name} {{ {elements} }}\n")
    return "".join(lines)


def _changed_udp(before: Elements, after: Elements) -> set[int]:
    """The UDP ports of which the host translates connections differently now."""
    changed = set()
    for name in _TRANSLATING_SETS:
        for key, _ in before[name].items() ^ after[name].items():
            *_, protocol, port = key.split(" . ")
            if protocol == "17":
                changed.add(int(port))
    return changed


def _line_count(text: str) -> int:
    return sum(not line.isspace() for line in text.splitlines() if line)


def _skeleton(pod_cidr: IPv4Network, pod_range: IPv4Network, tunnel_port: int) -> str:
    # As nft 1.0.6 prints it. `_printed` keeps how another version prints it.
    #
    # received, tunnel-sent: the host does not track packets between the nodes' switches.
    # Each connection of a pod would be two more entries in the host's conntrack, because the
    # tunnel's source port is a hash of the connection. Every packet between pods of two nodes is
    # such a packet on both, so the chains that it passes first ask for what tells it apart: no
    # Service and no host port has the tunnel's port.
    #
    # from-peers: packets from pods of peers that use no tunnel. The host takes a pod's address only
    # from the interface that its own route to this pod leads to, and only a peer has such a route.
    # The switch then checks that the mode allows it (`PeerGuard`). Neither these nor the packets to
    # peers are tracked: the switch does that. Replies to the host are, because it has sent first.
    #
    # gateway, forward: the switch returns packets to Services without endpoints. They would go
    # into the switch again, so the host refuses them. They are not tracked: so the refusal belongs
    # to the connection of the packet that went in first, and is translated like it. The refusal
    # comes as late as `forward`, because an ICMP error to the host itself finds no way out of an
    # earlier hook. With route_localnet, pods could reach what listens on loopback addresses.
    #
    # mark-received, mark-sent: a Service has single ports of an external address. Marked packets
    # go into the switch (`routes`), with ICMP errors about their connections; all others go where
    # the host's other routes lead.
    #
    # refuse-received: what is for an address that Services alone have, and for none of their ports,
    # would go back to where it came from, and come again. Refused in `forward`, it would be too
    # late: the kernel would have told the client to use another router (ICMP redirect).
    #
    # input: a pod must not teach the host's routing table anything (path MTU, redirects).
    #
    # forward: a packet to a peer has to find a route (`peer_routes`); without one it would go round
    # between host and switch. It is dropped, not refused: the route may come back at once.
    #
    # forward: what conntrack does not know is not translated, and would leave the cluster with a
    # pod's address as its source.
    #
    # translations: a process's connection to a loopback address is left alone, except to a
    # hostPort. The switch itself translates its pods' connections to NodePorts and to addresses
    # that Services name. A Service's port at an own address goes before NodePorts.
    #
    # prerouting: first what the host's own stack serves to clients outside (`host_endpoints`).
    #
    # postrouting: what a pod's own node translates back into the switch comes back through the
    # host only if the host has sent it. Other nodes' switches take only addresses of this node's
    # podCIDR from the tunnel.
    return f"""
table ip {nft.TABLE} {{
    set node-ports {{
        type inet_proto . inet_service
    }}

    map own-addresses {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr
    }}

    set external-ports {{
        type ipv4_addr . inet_proto . inet_service
    }}

    set balancer-addresses {{
        type ipv4_addr
    }}

    map host-endpoints {{
        type inet_proto . inet_service : ipv4_addr . inet_service
    }}

    map host-endpoints-at {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    }}

    map host-ports {{
        type inet_proto . inet_service : ipv4_addr . inet_service
    }}

    map host-ports-at {{
        type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service
    }}

    chain received {{
        ip saddr {pod_range} goto from-peers
        udp dport {tunnel_port} fib daddr type local notrack
    }}

    chain from-peers {{
        iifname "lo" accept
        fib saddr . iif oif missing counter drop comment "a pod's address, by a wrong way"
        ip daddr {pod_cidr} ip daddr != {gateway_address(pod_cidr)} notrack
    }}

    chain tunnel-sent {{
        type filter hook output priority raw; policy accept;
        udp dport {tunnel_port} oifname != "{GATEWAY_PORT}" notrack
    }}

    chain gateway {{
        type filter hook prerouting priority raw; policy accept;
        iifname != "{GATEWAY_PORT}" goto received
        ip saddr {pod_cidr} ip daddr {pod_range} ip daddr != {pod_cidr} notrack accept
        ip saddr 127.0.0.0/8 counter drop
        ip daddr 127.0.0.0/8 counter drop
        ip daddr . meta l4proto . th dport @external-ports notrack
        fib daddr oifname "{GATEWAY_PORT}" notrack
    }}

    chain mark-received {{
        type filter hook prerouting priority mangle + 5; policy accept;
        ip daddr {pod_range} accept
        udp dport {tunnel_port} accept
        ip daddr . meta l4proto . th dport @external-ports \
{_MARK} ct mark set ct mark | {_BIT}
        ct state related ct mark & {_BIT} == {_BIT} {_MARK}
    }}

    chain mark-sent {{
        type route hook output priority mangle + 5; policy accept;
        udp dport {tunnel_port} accept
        ip daddr . meta l4proto . th dport @external-ports \
{_MARK} ct mark set ct mark | {_BIT}
    }}

    chain refuse-received {{
        type filter hook prerouting priority mangle + 6; policy accept;
        iifname "{GATEWAY_PORT}" accept
        ip daddr != @balancer-addresses accept
        meta mark & {_BIT} == {_BIT} accept
        fib daddr type local accept
        meta l4proto 6 counter reject with tcp reset
        counter reject
    }}

    chain input {{
        type filter hook input priority filter; policy accept;
        icmp type {{ {_ICMP_ERRORS} }} iifname "{GATEWAY_PORT}" ct state invalid,untracked \
counter drop comment "ICMP errors about no connection"
    }}

    chain forward {{
        type filter hook forward priority filter; policy accept;
        iifname != "{GATEWAY_PORT}" accept
        ip saddr {pod_cidr} ip daddr {pod_range} oifname != "{GATEWAY_PORT}" accept
        ip saddr {pod_cidr} ip daddr {pod_range} ip daddr != {pod_cidr} \
counter drop comment "from pods to a peer, without a route"
        oifname != "{GATEWAY_PORT}" ip saddr {pod_cidr} ct state invalid,untracked \
counter drop comment "from pods, not to be translated"
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
        iifname != "{GATEWAY_PORT}" \
dnat ip to ip daddr . meta l4proto . th dport map @host-endpoints-at
        iifname != "{GATEWAY_PORT}" fib daddr type local \
dnat ip to meta l4proto . th dport map @host-endpoints
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
        ip saddr != {gateway_address(pod_cidr)} ip daddr {pod_range} ip daddr != {pod_cidr} \
oifname "{GATEWAY_PORT}" fib saddr type local \
counter masquerade comment "from the host's other addresses to other nodes' pods"
        ct status dnat oifname "{GATEWAY_PORT}" ip saddr 127.0.0.0/8 \
counter masquerade comment "from the host to its own hostPorts"
        ct status dnat oifname "{GATEWAY_PORT}" ip saddr {pod_cidr} \
counter masquerade comment "from pods to their own node's hostPorts"
    }}
}}
"""
