"""What is known of the cluster, and what of it is believed.

Objects come from the source, ports from the switches. Both are kept as given; what passes the
checks is in `Inventory.view`, what does not is in `Inventory.problems` with a sentence that names
the object and the field. The view depends on what is there, never on the order it came in.

Events are applied in place, at a cost that does not grow with what they did not touch. Copying
the view for each would cost 1 ms and more at 150,000 pods.
"""

import contextlib
from bisect import bisect, insort
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError, ip_network

from controller.service_drafts import NodeAddress
from controller.services import Services
from controller.sources.objects import (
    Metadata,
    NodeObject,
    Object,
    PodObject,
    ServiceObject,
    SliceObject,
)
from flows import names
from flows.view import CLUSTER_SCOPE, Attachment, Cluster, ClusterView, Key, Node

ATTACHMENT_OFPORTS = range(names.FIRST_ATTACHMENT_OFPORT, names.LAST_ATTACHMENT_OFPORT + 1)
SMALLEST_POD_CIDR = 30
"""Longest prefix of a podCIDR: network, gateway, one pod, broadcast."""


@dataclass(frozen=True, slots=True)
class Port:
    """An OpenFlow port of a node's bridge, as the switch told of it."""

    name: str
    ofport: int
    mac: str


class Inventory:
    """Objects and ports in, view and problems out.

    Each method returns the keys it touched. Nodes are judged together, by `settle`, once after
    any number of changes.
    """

    def __init__(self, cluster: Cluster, reserved: Iterable[tuple[str, IPv4Network]] = ()) -> None:
        """`reserved` are named ranges that no podCIDR may overlap (besides the Service range)."""
        self._reserved = (("the Service range", cluster.service_range), *reserved)
        self._node_objects: dict[str, NodeObject] = {}
        self._node_verdicts: dict[str, Node | str] = {}
        self._nodes_changed = False
        self._names_by_dpid: dict[int, str] = {}
        self._pod_objects: dict[tuple[str, str], PodObject] = {}
        self._pods_by_prefix: dict[str, dict[str, tuple[str, str]]] = {}
        self._ports: dict[str, dict[str, Port]] = {}
        # By node, then by address or ofport: the ports that claim it.
        self._claims: dict[str, dict[IPv4Address | int, set[str]]] = {}
        self._nodes: dict[str, Node] = {}
        self._attachments: dict[str, dict[str, Attachment]] = {}
        self._problems: dict[str, str] = {}
        self._news: dict[str, str] = {}
        self.services = Services(cluster, self._note)
        self.view = ClusterView(
            cluster,
            self._nodes,
            self._attachments,
            self.services.view,
            self.services.local,
            self.services.targets,
        )

    @property
    def problems(self) -> Mapping[str, str]:
        """Object -> why it is refused."""
        return self._problems

    def node_of(self, dpid: int) -> str | None:
        """The name of the Node, believed or refused, whose bridge has this datapath id."""
        return self._names_by_dpid.get(dpid)

    def knows_node(self, name: str) -> bool:
        """Whether the source holds such a Node, believed or refused."""
        return name in self._node_objects

    @property
    def nodes(self) -> Mapping[str, NodeObject]:
        """Every Node of the source by its name, believed or refused."""
        return self._node_objects

    def pod(self, namespace: str, name: str) -> PodObject | None:
        """A Pod of the source, whether it has an attachment or not."""
        return self._pod_objects.get((namespace, name))

    def pod_of(self, node: str, port: str) -> PodObject | None:
        """Whose port this is by its name, if that Pod is known to be on this node."""
        identity = self._pods_by_prefix.get(node, {}).get(port[:11])
        return None if identity is None else self._pod_objects[identity]

    def metadata(self, kind: str, namespace: str, name: str) -> Metadata | None:
        """Of an object of the source, believed or refused."""
        found: Object | None
        if kind == "Node":
            found = self._node_objects.get(name)
        elif kind == "Pod":
            found = self.pod(namespace, name)
        elif kind == "Service":
            found = self.services.service(f"{namespace}/{name}")
        else:
            found = self.services.endpoint_slice(f"{namespace}/{name}")
        return found.metadata if found else None

    def set_object(self, new: Object) -> set[Key]:
        """An object was added or changed."""
        if isinstance(new, ServiceObject):
            return self.services.set_service(new)
        if isinstance(new, SliceObject):
            return self.services.set_slice(new)
        if isinstance(new, NodeObject):
            name = new.metadata.name
            known = self._node_objects.get(name)
            self._node_objects[name] = new
            if known is None or _judged(known) != _judged(new):
                self._names_by_dpid[names.datapath_id(name)] = name
                self._node_verdicts[name] = self._judge_node(new)
                self._nodes_changed = True
            return set()
        key = new.metadata.namespace, new.metadata.name
        old = self._pod_objects.get(key)
        if old == new:
            return set()
        touched = self._forget_pod(old) if old else set()
        self._pod_objects[key] = new
        node = new.spec.node_name
        if node and not new.spec.host_network:
            prefixes = self._pods_by_prefix.setdefault(node, {})
            for prefix in _prefixes(new):
                prefixes[prefix] = key
                touched |= self._judge_ports(node, self._ports_of(node, prefix))
        return touched

    def remove_object(self, kind: str, namespace: str, name: str) -> set[Key]:
        """An object is gone."""
        if kind == "Service":
            return self.services.remove_service(f"{namespace}/{name}")
        if kind == "EndpointSlice":
            return self.services.remove_slice(f"{namespace}/{name}")
        if kind == "Node":
            if self._node_objects.pop(name, None):
                del self._node_verdicts[name]
                del self._names_by_dpid[names.datapath_id(name)]
                self._note(f"Node {name}", "")
                self._nodes_changed = True
            return set()
        pod = self._pod_objects.pop((namespace, name), None)
        return self._forget_pod(pod) if pod else set()

    def set_ports(self, node: str, ports: Iterable[Port]) -> set[Key]:
        """All ports of a node's bridge, after it connected."""
        new = {port.name: port for port in ports if names.is_attachment_port(port.name)}
        gone = self._ports.get(node, {}).keys() - new.keys()
        touched: set[Key] = set()
        for name in gone:
            touched |= self.remove_port(node, name)
        for port in new.values():
            touched |= self.set_port(node, port)
        return touched

    def set_port(self, node: str, port: Port) -> set[Key]:
        """A port was added or changed."""
        if not names.is_attachment_port(port.name):
            return set()
        old = self._ports.get(node, {}).get(port.name)
        if old == port:
            return set()
        touched = self.remove_port(node, port.name) if old else set()
        self._ports.setdefault(node, {})[port.name] = port
        claims = self._claims.setdefault(node, {})
        for claimed in _claimed(port):
            claims.setdefault(claimed, set()).add(port.name)
        return touched | self._judge_ports(node, {port.name})

    def remove_port(self, node: str, name: str) -> set[Key]:
        """A port is gone."""
        port = self._ports.get(node, {}).pop(name, None)
        if port is None:
            return set()
        rivals = self._rivals(node, port)
        claims = self._claims[node]
        for claimed in _claimed(port):
            claims[claimed].discard(name)
            if not claims[claimed]:
                del claims[claimed]
        touched = self._judge_ports(node, rivals | {name})
        if not self._ports[node]:
            del self._ports[node], self._claims[node]
        return touched

    def _forget_pod(self, pod: PodObject) -> set[Key]:
        node = pod.spec.node_name
        prefixes = self._pods_by_prefix.get(node, {})
        touched: set[Key] = set()
        for prefix in _prefixes(pod):
            if prefixes.pop(prefix, None):
                touched |= self._judge_ports(node, self._ports_of(node, prefix))
        if not prefixes:
            self._pods_by_prefix.pop(node, None)
        return touched

    def _ports_of(self, node: str, prefix: str) -> set[str]:
        return {name for name in self._ports.get(node, ()) if name.startswith(prefix)}

    def _rivals(self, node: str, port: Port) -> set[str]:
        """The ports that claim this port's address or number, itself among them."""
        claims = self._claims.get(node, {})
        return {name for claimed in _claimed(port) for name in claims.get(claimed, ())}

    def _judge_ports(self, node: str, ports: Collection[str]) -> set[Key]:
        accepted = self._attachments.setdefault(node, {})
        touched = set()
        known = self._ports.get(node, {})
        concerned = set(ports)
        for name in ports:
            if name in known:
                concerned |= self._rivals(node, known[name])
        for name in concerned:
            attachment, problem = self._judge_port(node, name)
            self._note(f"port {name} of {node}", problem)
            if accepted.get(name) == attachment:
                continue
            if attachment is None:
                del accepted[name]
            else:
                accepted[name] = attachment
            touched.add(Key(node, "attachment", name))
        if not accepted:
            del self._attachments[node]
        return touched

    def _judge_port(self, node: str, name: str) -> tuple[Attachment | None, str]:  # noqa: PLR0911
        port = self._ports.get(node, {}).get(name)
        if port is None:
            return None, ""
        believed = self._nodes.get(node)
        if believed is None:
            return None, f"Node {node} is unknown or refused"
        pod = self._pods_by_prefix.get(node, {}).get(name[:11])
        if name.startswith("p") and pod is None:
            return None, f"no Pod with spec.nodeName {node} has this port's name"
        if port.ofport not in ATTACHMENT_OFPORTS:
            return None, f"its ofport {port.ofport} is none of an attachment's"
        if others := self._claims[node][port.ofport] - {name}:
            return None, f"its ofport {port.ofport} is that of port {min(others)} as well"
        address = names.address_of(port.mac)
        if address is None:
            return None, f"its MAC {port.mac} holds no address"
        cidr = believed.pod_cidr
        if address not in cidr:
            return None, f"address {address} is outside spec.podCIDR {cidr} of Node {node}"
        if address in {cidr.network_address, cidr.broadcast_address, believed.gateway}:
            return None, f"address {address} is not a pod's: network, gateway or broadcast"
        # ofports only grow, round and round: of two claims the later is the living one. A claim
        # that would be refused for another reason is not counted.
        rivals = [
            rival
            for rival in self._claims[node][address]
            if rival.startswith("c") or rival[:11] in self._pods_by_prefix.get(node, {})
        ]
        newest = max(
            rivals,
            key=lambda rival: _steps(port.ofport, self._ports[node][rival].ofport),
        )
        if newest != name:
            return None, f"address {address} belongs to the newer port {newest}"
        return Attachment(name, port.ofport, address, "/".join(pod) if pod else ""), ""

    def settle(self) -> set[Key]:
        """Judge the nodes against each other, if any changed.

        Nodes are few and change rarely, and each change is every node's business anyway.
        """
        if not self._nodes_changed:
            return set()
        self._nodes_changed = False
        believed: dict[str, Node] = {}
        by_address: dict[IPv4Address, str] = {}
        ranges: list[tuple[IPv4Network, str]] = []  # sorted, and disjoint
        # The older of two that conflict stays, whatever order they were told of.
        for given in sorted(self._node_objects.values(), key=_age):
            name = given.metadata.name
            verdict = self._node_verdicts[name]
            if isinstance(verdict, Node):
                verdict = _conflict(verdict, by_address, ranges) or verdict
            if isinstance(verdict, str):
                self._note(f"Node {name}", verdict)
                continue
            self._note(f"Node {name}", "")
            believed[name] = verdict
            by_address[verdict.address] = name
            insort(ranges, (verdict.pod_cidr, name))
        self._share_out_addresses(believed, set(by_address))
        changed = {
            name
            for name in self._nodes.keys() | believed.keys()
            if self._nodes.get(name) != believed.get(name)
        }
        self._nodes.clear()
        self._nodes.update(believed)
        touched: set[Key] = set()
        for name in changed:
            touched |= {Key(CLUSTER_SCOPE, "peer", name), Key(name, "node", name)}
            touched |= {Key(name, "service", each) for each in self.services.local.get(name, ())}
            touched |= self._judge_ports(name, self._ports.get(name, ()))
        return touched | self.services.set_node_addresses(
            {
                address: NodeAddress(name, number)
                for name, node in believed.items()
                for number, address in enumerate((node.address, *node.further_addresses))
            }
        )

    def _share_out_addresses(self, believed: dict[str, Node], taken: set[IPv4Address]) -> None:
        """Give nodes their further addresses, each to the first that names it."""
        for name, node in believed.items():
            further = []
            for address in _addresses(self._node_objects[name].addresses):
                if address not in taken:
                    taken.add(address)
                    further.append(address)
            if further:
                believed[name] = replace(node, further_addresses=tuple(further))

    def _judge_node(self, given: NodeObject) -> Node | str:
        try:
            return Node(
                given.metadata.name,
                given.metadata.uid,
                self._judge_address(given),
                self._judge_cidr(given),
                zone=given.zone,
            )
        except _RefusedError as refused:
            return str(refused)

    def _judge_address(self, given: NodeObject) -> IPv4Address:
        if not given.internal_addresses:
            raise _RefusedError("status.addresses holds no InternalIP")
        address = next(iter(_addresses(given.internal_addresses)), None)
        if address is None:
            text = given.internal_addresses[0]
            raise _RefusedError(f"status.addresses: InternalIP {text!r} is not an IPv4 address")
        if (
            address.is_loopback
            or address.is_unspecified
            or address.is_multicast
            or address.is_link_local
            or address.is_reserved
        ):
            raise _RefusedError(
                f"status.addresses: InternalIP {address} cannot be the end of a tunnel"
            )
        for range_name, network in (
            ("the pod range", self.view.cluster.pod_range),
            ("the Service range", self.view.cluster.service_range),
        ):
            if address in network:
                raise _RefusedError(
                    f"status.addresses: InternalIP {address} is inside {range_name} {network}"
                )
        return address

    def _judge_cidr(self, given: NodeObject) -> IPv4Network:
        if not given.pod_cidrs:
            raise _RefusedError("spec.podCIDR is missing")
        found: IPv4Network | None = None
        for text in given.pod_cidrs:
            try:
                network = ip_network(text)
            except (ValueError, AddressValueError, NetmaskValueError) as error:
                raise _RefusedError(f"spec.podCIDR {text!r} is not a CIDR: {error}") from error
            if isinstance(network, IPv4Network):
                found = found or network
        if found is None:
            raise _RefusedError(
                f"spec.podCIDR {', '.join(given.pod_cidrs)} is not IPv4; this cluster is IPv4-only"
            )
        if found.prefixlen > SMALLEST_POD_CIDR:
            raise _RefusedError(
                f"spec.podCIDR {found} is too small: /{SMALLEST_POD_CIDR} is the least"
            )
        for range_name, network in self._reserved:
            if found.overlaps(network):
                raise _RefusedError(f"spec.podCIDR {found} overlaps {range_name} {network}")
        if not found.subnet_of(self.view.cluster.pod_range):
            raise _RefusedError(
                f"spec.podCIDR {found} is outside the pod range {self.view.cluster.pod_range}"
            )
        return found

    def take_news(self) -> dict[str, str]:
        """What has come to be refused since the last call, or for another reason."""
        news, self._news = self._news, {}
        return news

    def _note(self, subject: str, problem: str) -> None:
        if not problem:
            self._problems.pop(subject, None)
            self._news.pop(subject, None)
        elif self._problems.get(subject) != problem:
            self._problems[subject] = self._news[subject] = problem


class _RefusedError(ValueError):
    """Why an object is not believed."""


def _claimed(port: Port) -> list[IPv4Address | int]:
    address = names.address_of(port.mac)
    return [port.ofport] if address is None else [port.ofport, address]


def _steps(start: int, end: int) -> int:
    """How far `end` is ahead of `start` in the round of ofports; negative: behind."""
    distance = (end - start) % len(ATTACHMENT_OFPORTS)
    return (
        distance if distance < len(ATTACHMENT_OFPORTS) // 2 else distance - len(ATTACHMENT_OFPORTS)
    )


def _addresses(texts: Iterable[str]) -> Iterable[IPv4Address]:
    for text in texts:
        with contextlib.suppress(AddressValueError):
            yield IPv4Address(text)


def _conflict(
    node: Node, by_address: Mapping[IPv4Address, str], ranges: list[tuple[IPv4Network, str]]
) -> str:
    if other := by_address.get(node.address):
        return f"status.addresses: InternalIP {node.address} is Node {other}'s already"
    place = bisect(ranges, (node.pod_cidr, ""))
    for cidr, rival in ranges[max(place - 1, 0) : place + 1]:
        if cidr.overlaps(node.pod_cidr):
            return f"spec.podCIDR {node.pod_cidr} overlaps {cidr} of Node {rival}"
    return ""


def _judged(node: NodeObject) -> tuple[object, ...]:
    """What of a Node its verdict depends on. Its conditions change for many other reasons."""
    return node.metadata, node.spec, node.status.addresses


def _age(node: NodeObject) -> tuple[str, str, str]:
    # One without a time is the youngest: a manifest made by hand displaces nobody.
    created = node.metadata.creation_timestamp or "never"
    return created, node.metadata.name, node.metadata.uid


def _prefixes(pod: PodObject) -> list[str]:
    metadata = pod.metadata
    return [
        names.pod_port_prefix(metadata.namespace, metadata.name, uid) for uid in pod.uids if uid
    ]
