"""Ports of the nodes' bridges, and which of them are attachments.

A switch that reports invented ports harms its own node only: the number of ports is bounded, and
the cost of judging one port does not grow with the number of others.
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from typing import Final, TypeVar

from controller.inventory.nodes import Nodes
from controller.inventory.pods import Pods, port_prefixes
from controller.problems import BridgeRef, Note, PortRef
from controller.sources.objects import PodObject
from flows import names
from flows.view import Attachment, Key, Node

ATTACHMENT_OFPORTS: Final = range(names.FIRST_ATTACHMENT_OFPORT, names.LAST_ATTACHMENT_OFPORT + 1)
MAX_CLAIMANTS: Final = 8
"""Ports that may claim one address or ofport. A sandbox that replaces another one makes two. If
more ports claim it, none of them is accepted."""

MAX_PORTS: Final = 1024
"""Ports of one node that are judged. A kubelet runs 110 pods by default."""
MAX_REFUSED: Final = 256
"""Ports beyond these whose names are remembered, so that the problem ends when they are removed."""
MAX_NAMED: Final = 5
"""Refused ports that the problem names."""

K = TypeVar("K")

PortClaim = IPv4Address | int
"""An address or an ofport."""


@dataclass(frozen=True, slots=True)
class BridgePort:
    """An OpenFlow port of a node's bridge, as the switch reported it."""

    name: str
    ofport: int
    mac: str

    @property
    def address(self) -> IPv4Address | None:
        """The address that its MAC holds."""
        return names.address_of(self.mac)

    @property
    def claims(self) -> tuple[PortClaim, ...]:
        """The values that no other port of the node may have."""
        address = self.address
        return (self.ofport,) if address is None else (self.ofport, address)


@dataclass(slots=True)
class _Bridge:
    """The ports of one node that have an attachment's name."""

    ports: dict[str, BridgePort] = field(default_factory=dict)
    by_prefix: dict[str, set[str]] = field(default_factory=dict)
    claimants: dict[PortClaim, set[str]] = field(default_factory=dict)
    owners: dict[str, str] = field(default_factory=dict)
    """By port, the Pod (`NAMESPACE/NAME`) that it has, or had until that was removed."""
    beyond: dict[str, None] = field(default_factory=dict)
    """Ports that are refused because the node has too many, in their order."""

    def add(self, port: BridgePort) -> set[str]:
        """Add a port; the names of all ports that have to be judged because of that."""
        self.ports[port.name] = port
        self.by_prefix.setdefault(port.name[: names.PREFIX_LENGTH], set()).add(port.name)
        for claim in port.claims:
            self.claimants.setdefault(claim, set()).add(port.name)
        return self.rivals(port.name) | {port.name}

    def drop(self, name: str) -> set[str]:
        """Remove a port; the names of all ports that have to be judged because of that."""
        rivals = self.rivals(name)
        port = self.ports.pop(name)
        self.owners.pop(name, None)
        _discard(self.by_prefix, name[: names.PREFIX_LENGTH], name)
        for claim in port.claims:
            _discard(self.claimants, claim, name)
        return rivals | {name}

    def rivals(self, name: str) -> set[str]:
        """The ports whose verdict depends on whether this port is there and is accepted.

        Of a crowd that stays larger than `MAX_CLAIMANTS` none does: they are refused either way.
        """
        crowds = (self.claimants.get(claim, set()) for claim in self.ports[name].claims)
        return {name for crowd in crowds if len(crowd) <= MAX_CLAIMANTS + 1 for name in crowd}


class Ports:
    """The ports of all bridges. Each method returns the keys of the view that it changed.

    An attachment lasts as long as its port. A Pod that is deleted while its containers still run
    keeps its connections until the CNI DEL removes the port. A port that is new, or that this
    process sees for the first time, needs a Pod that exists: nobody could tell otherwise whose it
    is.
    """

    def __init__(self, nodes: Nodes, pods: Pods, note: Note) -> None:
        self.attachments: dict[str, dict[str, Attachment]] = {}
        """See `ClusterView.attachments`."""
        self._nodes = nodes
        self._pods = pods
        self.followers: Final[list[Callable[[str, str], None]]] = []
        """Called with node and port of each attachment that was added, changed or removed."""
        self._note = note
        self._bridges: dict[str, _Bridge] = {}
        nodes.followers.append(self._follow_nodes)
        pods.followers.append(self._follow_pod)

    def put_all(self, node: str, ports: Iterable[BridgePort]) -> set[Key]:
        """All ports of a node's bridge, after its switch connected."""
        new = {port.name: port for port in ports if names.is_attachment_port(port.name)}
        bridge = self._bridges.setdefault(node, _Bridge())
        bridge.beyond.clear()
        # Judge all ports: the problems of the last session ended with it.
        concerned = set(new)
        for name in bridge.ports.keys() - new.keys():
            concerned |= bridge.drop(name)
        # If there are too many, every controller accepts the same ones.
        for port in sorted(new.values(), key=lambda port: (port.ofport, port.name)):
            concerned |= self._add(bridge, port)
        # Judge all ports: problems end with a session, and begin with the next one.
        return self._judge(node, concerned | bridge.ports.keys())

    def put(self, node: str, port: BridgePort) -> set[Key]:
        """A port was added or changed."""
        if not names.is_attachment_port(port.name):
            return set()
        return self._judge(node, self._add(self._bridges.setdefault(node, _Bridge()), port))

    def remove(self, node: str, name: str) -> set[Key]:
        """A port was removed."""
        bridge = self._bridges.get(node)
        if bridge is None:
            return set()
        bridge.beyond.pop(name, None)
        return self._judge(node, bridge.drop(name) if name in bridge.ports else ())

    def adopt(self, node: str, attachments: Iterable[Attachment]) -> None:
        """Take what another inventory has accepted, as it is.

        Ports that come later must not claim an address or an ofport of these.
        """
        self.attachments[node] = {each.port: each for each in attachments}
        for each in self.attachments[node]:
            for follower in self.followers:
                follower(node, each)

    def with_prefix(self, node: str, prefix: str) -> Collection[str]:
        """The names of the ports on a node that begin with this prefix."""
        bridge = self._bridges.get(node)
        return bridge.by_prefix.get(prefix, ()) if bridge else ()

    @staticmethod
    def _add(bridge: _Bridge, port: BridgePort) -> set[str]:
        old = bridge.ports.get(port.name)
        if old == port:
            return set()
        if old is None and len(bridge.ports) >= MAX_PORTS:
            if len(bridge.beyond) < MAX_REFUSED:
                bridge.beyond[port.name] = None
            return set()
        concerned = bridge.drop(port.name) if old else set()
        bridge.beyond.pop(port.name, None)
        return concerned | bridge.add(port)

    def _follow_nodes(self, changed: Collection[str]) -> set[Key]:
        touched: set[Key] = set()
        for node in changed:
            if bridge := self._bridges.get(node):
                touched |= self._judge(node, bridge.ports)
        return touched

    def _follow_pod(self, old: PodObject | None, new: PodObject | None) -> set[Key]:
        touched: set[Key] = set()
        concerned = {
            (pod.spec.node_name, prefix)
            for pod in (old, new)
            if pod is not None
            for prefix in port_prefixes(pod)
        }
        for node, prefix in concerned:
            bridge = self._bridges.get(node)
            if bridge is None or prefix not in bridge.by_prefix:
                continue
            ports = bridge.by_prefix[prefix]
            if old and new and old.metadata.uid == new.metadata.uid:
                # It goes on, perhaps elsewhere: its ports are what it says now.
                for name in ports:
                    bridge.owners.pop(name, None)
            touched |= self._judge(node, ports.union(*map(bridge.rivals, ports)))
        return touched

    def _judge(self, node: str, concerned: Collection[str]) -> set[Key]:
        bridge = self._bridges[node]
        accepted = self.attachments.setdefault(node, {})
        touched = set()
        # In the same order in every controller, because only the first problems are kept.
        for name in sorted(concerned):
            verdict = self._verdict(node, bridge, name)
            attachment = verdict if isinstance(verdict, Attachment) else None
            self._note(PortRef(node, name), "" if isinstance(verdict, Attachment) else verdict)
            if accepted.get(name) == attachment:
                continue
            if attachment is None:
                del accepted[name]
            else:
                accepted[name] = attachment
            touched.add(Key(node, "attachment", name))
            for follower in self.followers:
                follower(node, name)
        self._note(BridgeRef(node), _too_many(bridge.beyond))
        if not accepted:
            del self.attachments[node]
        if not bridge.ports and not bridge.beyond:
            del self._bridges[node]
        return touched

    def _verdict(self, node: str, bridge: _Bridge, name: str) -> Attachment | str:
        """The attachment, or why there is none; empty: the port is gone."""
        port = bridge.ports.get(name)
        if port is None:
            return ""
        owner = self._owner(node, bridge, name)
        accepted_node = self._nodes.accepted.get(node)
        if accepted_node is None:
            excluded = bool(self._nodes.exclusion(node))
            return f"Node {node} is {'excluded' if excluded else 'unknown or refused'}"
        if _belongs_to_pod(name) and not owner:
            return f"no Pod with spec.nodeName {node} has this port's name"
        if problem := _ofport_problem(bridge, port):
            return problem
        address = port.address
        if address is None:
            return f"MAC {port.mac} holds no address"
        problem = _range_problem(accepted_node, address) or self._rival(node, bridge, port, address)
        return problem or Attachment(name, port.ofport, address, owner)

    def _owner(self, node: str, bridge: _Bridge, name: str) -> str:
        """The Pod (`NAMESPACE/NAME`) that a port belongs to; empty: none, or none is known."""
        if pod := self._pods.owner(node, name):
            bridge.owners[name] = f"{pod.metadata.namespace}/{pod.metadata.name}"
        return bridge.owners.get(name, "")

    def _rival(self, node: str, bridge: _Bridge, port: BridgePort, address: IPv4Address) -> str:
        """Why another port gets the address of this one; empty: none does."""
        claimants = bridge.claimants[address]
        if len(claimants) > MAX_CLAIMANTS:
            return f"more than {MAX_CLAIMANTS} ports have address {address}"
        # A claimant that is refused for another reason does not count.
        newest = _newest(
            bridge.ports[name]
            for name in claimants
            if bridge.ports[name].ofport in ATTACHMENT_OFPORTS
            and (not _belongs_to_pod(name) or self._owner(node, bridge, name))
        )
        if newest == port.name:
            return ""
        return f"address {address} belongs to the newer port {newest}"


def _too_many(beyond: Collection[str]) -> str:
    """The problem of ports that are refused because the node has too many."""
    if not beyond:
        return ""
    named = ", ".join(list(beyond)[:MAX_NAMED])
    more = f" and {len(beyond) - MAX_NAMED} more" if len(beyond) > MAX_NAMED else ""
    return f"a node may have {MAX_PORTS} ports; refused: {named}{more}"


def _ofport_problem(bridge: _Bridge, port: BridgePort) -> str:
    if port.ofport not in ATTACHMENT_OFPORTS:
        return f"ofport {port.ofport} is outside the range of attachments"
    same = bridge.claimants[port.ofport]
    if len(same) > MAX_CLAIMANTS:
        return f"more than {MAX_CLAIMANTS} ports have ofport {port.ofport}"
    others = same - {port.name}
    return f"port {min(others)} has the same ofport {port.ofport}" if others else ""


def _range_problem(node: Node, address: IPv4Address) -> str:
    cidr = node.pod_cidr
    if address not in cidr:
        return f"address {address} is outside spec.podCIDR {cidr} of Node {node.name}"
    if address in {cidr.network_address, cidr.broadcast_address, node.gateway}:
        return f"address {address} is not a pod's: network, gateway or broadcast"
    return ""


def _belongs_to_pod(port: str) -> bool:
    return port.startswith("p")


def _newest(claimants: Iterable[BridgePort]) -> str:
    """The name of the port that was made last.

    ofports only grow, and start again after the last one. Ports that exist at the same time lie
    close together on that ring: the newest is the one before the widest gap.
    """
    ring = sorted((port.ofport, port.name) for port in claimants)
    gaps = [
        (ring[(place + 1) % len(ring)][0] - ofport - 1) % len(ATTACHMENT_OFPORTS)
        for place, (ofport, _) in enumerate(ring)
    ]
    return ring[gaps.index(max(gaps))][1]


def _discard(index: dict[K, set[str]], key: K, name: str) -> None:
    index[key].discard(name)
    if not index[key]:
        del index[key]
