"""What is wrong with a host: a pure function of its facts."""

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Final

from flows import names
from node_agent.checks.facts import Facts, PathMtu, Reached, Wanted
from node_agent.checks.leftovers import leftovers
from wire.findings import MAX_FINDINGS, MAX_UNCHECKED, Finding, NodeFindings, Severity
from wire.sentences import readable

OLDEST_KERNEL: Final = (5, 6)
"""Open vSwitch's timeout policies need 5.2 (its FAQ, Releases), our nftables maps 5.6."""
OLDEST_OPEN_VSWITCH: Final = (3, 1)
"""The first that can flush conntrack entries by OpenFlow (NXT_CT_FLUSH)."""
OLDEST_NFT: Final = (0, 9, 4)
"""The first with maps to an address and a port."""
TESTED_NFT: Final = (1, 0, 6)
"""The oldest that the tests use."""
OLDEST_PYTHON: Final = (3, 9)
LEAST_UPLINK_MTU: Final = 1280 + names.ENCAPSULATION_OVERHEAD
MOST_CLOCK_OFFSET: Final = 10.0
"""Seconds."""
NEAR_EXPIRY: Final = timedelta(days=60)
"""Or a sixth of the certificate's lifetime, if that is less: it should have been renewed."""


def findings(facts: Facts, wanted: Wanted) -> NodeFindings:
    """Everything that is wrong, errors first."""
    found = [
        *_software(facts, wanted),
        *_ranges(facts, wanted),
        *_ports(facts, wanted),
        *leftovers(facts),
        *_ways(facts, wanted),
        *_certificates(facts),
    ]
    found.sort(key=lambda each: each.severity is not Severity.ERROR)
    return NodeFindings(
        wanted.node,
        tuple(map(_bounded, found[:MAX_FINDINGS])),
        max(0, len(found) - MAX_FINDINGS),
        tuple(map(readable, facts.unchecked[:MAX_UNCHECKED])),
    )


def _bounded(given: Finding) -> Finding:
    return Finding(
        given.severity, readable(given.subject), readable(given.text), readable(given.cure)
    )


def _error(subject: str, text: str, cure: str) -> Finding:
    return Finding(Severity.ERROR, subject, text, cure)


def _warning(subject: str, text: str, cure: str) -> Finding:
    return Finding(Severity.WARNING, subject, text, cure)


# --- software ---


def _software(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    if _version(facts.kernel) < OLDEST_KERNEL:
        yield _error(
            f"kernel {facts.kernel}",
            f"it is older than {_dotted(OLDEST_KERNEL)}",
            f"install a kernel of {_dotted(OLDEST_KERNEL)} or later and reboot",
        )
    if wanted.datapath == "system":
        for module in ("openvswitch", wanted.tunnel):
            if not facts.modules.get(module, True):
                yield _error(
                    f"kernel module {module}",
                    f"the kernel {facts.kernel} does not have it",
                    "install the distribution's generic or cloud kernel, which has it"
                    " (`agent.datapath: netdev` needs no module, but is slow)",
                )
    yield from _open_vswitch(facts)
    if facts.nft == "":
        yield _error(
            "nft", "the program is not there", "install the package nftables (Debian: nftables)"
        )
    elif facts.nft is not None and _version(facts.nft) < OLDEST_NFT:
        yield _error(
            f"nft {facts.nft}",
            f"it is older than {_dotted(OLDEST_NFT)}",
            "install a newer nftables",
        )
    elif facts.nft is not None and _version(facts.nft) < TESTED_NFT:
        yield _warning(
            f"nft {facts.nft}",
            f"Sluice is not tested with versions before {_dotted(TESTED_NFT)}",
            "install a newer nftables",
        )
    if facts.nft_problem:
        yield _error(
            "nf_tables",
            f"nft cannot list its chains: {facts.nft_problem}",
            "load the kernel module nf_tables, and run this check as root",
        )
    if facts.python is not None and facts.python < OLDEST_PYTHON:
        yield _error(
            "/usr/bin/python3",
            f"it is {_dotted(facts.python)}, and the CNI plugin needs {_dotted(OLDEST_PYTHON)}"
            if facts.python
            else "it is not there, and the CNI plugin runs by it",
            f"install Python {_dotted(OLDEST_PYTHON)} or later (Debian: python3)",
        )


def _open_vswitch(facts: Facts) -> Iterator[Finding]:
    given = facts.open_vswitch
    start = "install and start Open vSwitch (Debian: openvswitch-switch)"
    if given.database:
        yield _error("ovsdb-server", f"it does not answer: {given.database}", start)
    if given.switch:
        yield _error("ovs-vswitchd", f"it does not answer: {given.switch}", start)
    if given.version and _version(given.version) < OLDEST_OPEN_VSWITCH:
        yield _error(
            f"Open vSwitch {given.version}",
            f"it is older than {_dotted(OLDEST_OPEN_VSWITCH)}",
            f"install Open vSwitch {_dotted(OLDEST_OPEN_VSWITCH)} or later",
        )
    if given.other_owner:
        yield _error(
            f"bridge {names.INTEGRATION_BRIDGE}",
            f"it belongs to {given.other_owner}, and Sluice does not share it",
            f"remove that system, then `ovs-vsctl del-br {names.INTEGRATION_BRIDGE}`",
        )


# --- ranges and addresses ---


def _ranges(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    ranges = {"cluster.podRange": wanted.pod_range, "cluster.serviceRange": wanted.service_range}
    if wanted.pod_range.overlaps(wanted.service_range):
        yield _error(
            "cluster.podRange",
            f"{wanted.pod_range} overlaps cluster.serviceRange {wanted.service_range}",
            "give the cluster other ranges",
        )
    own = {each.address for each in facts.addresses}
    if wanted.address is not None and own and wanted.address not in own:
        yield _error(
            f"address {wanted.address}",
            f"Node {wanted.node} says so (status.addresses, InternalIP), and no interface has it",
            "give the kubelet the right address (--node-ip)",
        )
    for field, network in ranges.items():
        cure = f"choose another range, or remove what takes addresses of {network}"
        for each in facts.addresses:
            # NodeLocal DNSCache has an address of the Service range on purpose.
            is_nodes = each.address == wanted.address
            if each.link in _OURS or not (field == "cluster.podRange" or is_nodes):
                continue
            if each.address in network:
                yield _error(
                    f"address {each.address} on {each.link}", f"it lies in {field} {network}", cure
                )
        for route in facts.routes:
            # For the whole range, ours has the best metric.
            whole = route.network == network and route.metric
            if route.link not in _OURS and route.network.subnet_of(network) and not whole:
                yield _error(
                    f"route {route.network} on {route.link}",
                    f"it takes addresses of {field} {network}",
                    cure,
                )


_OURS: Final = frozenset({names.GATEWAY_PORT, names.INTEGRATION_BRIDGE})


# --- ports and firewalls of the host ---


def _ports(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    taken = {(each.protocol, each.port) for each in facts.listeners}
    if not wanted.installed:
        ports = {("UDP", wanted.tunnel_port): "the tunnel"}
        if wanted.healthz_port:
            ports["TCP", wanted.healthz_port] = "agent.healthzPort"
        if wanted.address is not None and str(wanted.address) in wanted.controllers:
            ports["TCP", wanted.openflow_port] = "controller.openflow"
            ports["TCP", wanted.api_port] = "controller.api"
        for (protocol, port), use in ports.items():
            if (protocol, port) in taken:
                flag = "u" if protocol == "UDP" else "t"
                yield _error(
                    f"port {port}/{protocol}",
                    f"another program has it, and Sluice needs it ({use})",
                    f"stop that program (`ss -ln{flag}p 'sport = :{port}'` shows it;"
                    " kube-proxy has 10256)",
                )
    for link in facts.links:
        is_ours = link.name in {f"genev_sys_{link.tunnel_port}", f"vxlan_sys_{link.tunnel_port}"}
        if link.tunnel_port == wanted.tunnel_port and link.kind == wanted.tunnel and not is_ours:
            yield _error(
                f"interface {link.name}",
                f"it takes the packets to the tunnel's port {link.tunnel_port}/UDP",
                f"`ip link delete {link.name}`, or choose the other `cluster.tunnel`",
            )
    for chain in facts.chains:
        drops = (chain.hook, chain.policy) == ("forward", "drop")
        if drops and chain.table != "sluice" and not chain.names_gateway:
            yield _warning(
                chain.title,
                f"it drops forwarded packets, and no rule of it accepts those of"
                f" {names.GATEWAY_PORT}: clients outside reach no NodePort on this node",
                f"accept what comes in or goes out by {names.GATEWAY_PORT}",
            )


# --- ways to others ---


def _ways(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    yield from (_blocked(each) for each in facts.reached if _is_blocked(each, wanted))
    yield from _sessions(facts, wanted)
    if facts.clock_offset is not None and abs(facts.clock_offset) > MOST_CLOCK_OFFSET:
        way = "ahead of" if facts.clock_offset > 0 else "behind"
        yield _error(
            "clock",
            f"it is {abs(facts.clock_offset):.0f} s {way} the controller's: certificates and"
            " tokens may be refused",
            "synchronise the clocks of both machines (chrony, systemd-timesyncd)",
        )
    mtus = {link.name: link.mtu for link in facts.links}
    uplinks = {each.link for each in facts.addresses if each.address == wanted.address}
    for name in sorted(uplinks - {"lo"}):
        if mtus.get(name, LEAST_UPLINK_MTU) < LEAST_UPLINK_MTU:
            yield _error(
                f"interface {name}",
                f"its MTU is {mtus[name]}, and pods would have less than 1280 bytes",
                f"give it an MTU of {LEAST_UPLINK_MTU} or more",
            )
    for peer in facts.silent:
        yield _error(
            f"Node {peer.name} ({peer.address})",
            f"no datagram to its UDP port {wanted.tunnel_port} is answered",
            f"open UDP port {wanted.tunnel_port} between all nodes in every firewall, in both"
            " directions",
        )
    small = {each.peer for each in facts.paths if not each.through_tunnel and _is_small(each)}
    for path in facts.paths:
        # Inside the tunnel it is the same fault once more.
        if not (path.through_tunnel and path.peer in small and path.found is not None):
            yield from _path(path, wanted)


def _is_small(path: PathMtu) -> bool:
    return path.found is not None and path.found < path.wanted


def _is_blocked(given: Reached, wanted: Wanted) -> bool:
    # Before installation nobody listens there.
    return bool(given.problem) and (wanted.installed or not given.refused)


def _blocked(given: Reached) -> Finding:
    return _error(
        f"controller {given.host}, port {given.port}/TCP",
        f"it cannot be reached from this node: {given.problem}",
        "start the controller"
        if given.refused
        else f"open TCP port {given.port} from the nodes to the controller in every firewall"
        " between them",
    )


def _sessions(facts: Facts, wanted: Wanted) -> Iterator[Finding]:
    """Controllers that accept a connection of this program, and have none of the switch."""
    sessions = facts.open_vswitch.sessions
    is_one_connected = any(each.is_connected for each in sessions)
    reached = {each.host for each in facts.reached if each.port == wanted.openflow_port}
    reached -= {each.host for each in facts.reached if each.problem}
    for each in sessions:
        _, _, rest = each.target.partition(":")
        host, _, port = rest.rpartition(":")
        if each.is_connected or host not in reached or not wanted.installed:
            continue  # One that cannot be reached has a finding already.
        if not each.why:
            continue  # Open vSwitch writes its state down each 5 s: it may just have connected.
        make = _warning if is_one_connected else _error
        others = "; another controller serves this node" if is_one_connected else ""
        yield make(
            f"controller {host}, port {port}/TCP",
            f"the switch has no session with it: {each.why}{others}",
            "look at the controller's log: it may hang, or refuse the node's certificate",
        )


def _path(path: PathMtu, wanted: Wanted) -> Iterator[Finding]:
    peer = f"Node {path.peer.name} ({path.peer.address})"
    port = wanted.tunnel_port
    if path.through_tunnel and path.found is None:
        yield _error(
            peer,
            f"nothing comes through the tunnel to it: no answer from {path.peer.gateway}",
            f"open UDP port {port} between all nodes in every firewall, in both directions",
        )
    elif _is_small(path) and path.found is not None:
        mtu = path.found if path.through_tunnel else path.found - names.ENCAPSULATION_OVERHEAD
        yield _error(
            peer,
            f"packets of {path.wanted} bytes {'of pods ' * path.through_tunnel}do not arrive"
            f" there, those of {path.found} do: large packets between pods are lost",
            f"raise the MTU of the path, or set `cluster.mtu: {mtu}`",
        )


# --- certificates ---


def _certificates(facts: Facts) -> Iterator[Finding]:
    for each in facts.certificates:
        left = each.not_after - facts.now
        life = each.not_after - each.not_before
        renew = (
            "renew the CA, and give its certificate to all nodes and controllers"
            if each.is_ca
            else "renew it; with enrolment the agent's log says why it is not renewed"
        )
        if left <= timedelta():
            yield _error(each.path, f"it expired on {each.not_after:%Y-%m-%d %H:%M} UTC", renew)
        elif facts.now < each.not_before:
            yield _error(
                each.path,
                f"it is not valid before {each.not_before:%Y-%m-%d %H:%M} UTC",
                "correct the clock of this node or of the machine that signed it",
            )
        elif left < min(NEAR_EXPIRY, life / 6):
            yield _warning(each.path, f"it expires on {each.not_after:%Y-%m-%d %H:%M} UTC", renew)


# --- versions ---


def _version(text: str) -> tuple[int, ...]:
    """The numbers at the start: (6, 1, 0) of `6.1.0-18-amd64`; none: a very old one."""
    found = re.match(r"v?(\d{1,9})(?:\.(\d{1,9}))?(?:\.(\d{1,9}))?", text)
    return tuple(int(each) for each in found.groups() if each is not None) if found else ()


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
