"""Nodes: which take part, with which tunnel address and podCIDR."""

import contextlib
from bisect import bisect, insort
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import AddressValueError, IPv4Address, IPv4Network, NetmaskValueError, ip_network
from typing import Final

from controller.inventory.kind import Note
from controller.sources.objects import NodeObject
from flows import names
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Cluster, Key, Node

LONGEST_PREFIX: Final = 30
"""Of a podCIDR: network, gateway, one pod, broadcast."""

Follower = Callable[[Collection[str]], set[Key]]
"""Called with the names of Nodes whose part in the view changed; returns the keys it changed."""


class Nodes:
    """The kind Node. Nodes are judged against each other in `settle`, once after many changes."""

    def __init__(
        self, cluster: Cluster, reserved: Iterable[tuple[str, IPv4Network]], note: Note
    ) -> None:
        """`reserved` are named ranges that no podCIDR may overlap, besides the Service range."""
        self.accepted: dict[str, Node] = {}
        """See `ClusterView.nodes`."""
        self.objects: dict[str, NodeObject] = {}
        """Every Node of the source by its name, accepted or refused."""
        self.followers: list[Follower] = []
        self._cluster = cluster
        self._reserved = (("the Service range", cluster.service_range), *reserved)
        self._note = note
        self._verdicts: dict[str, Node | str] = {}
        """What each Node comes to by itself: what it would be, or why it is refused."""
        self._changed = False
        self._names_by_dpid: dict[int, str] = {}

    def get(self, namespace: str, name: str) -> NodeObject | None:
        """As `Kind.get`."""
        return None if namespace else self.objects.get(name)

    def name_of(self, dpid: int) -> str | None:
        """The name of the Node, accepted or refused, whose bridge has this datapath id."""
        return self._names_by_dpid.get(dpid)

    def put(self, new: NodeObject) -> set[Key]:
        """As `Kind.put`; what follows from it is returned by `settle`."""
        name = new.metadata.name
        known = self.objects.get(name)
        self.objects[name] = new
        if known is None or _judged(known) != _judged(new):
            self._names_by_dpid[names.datapath_id(name)] = name
            self._verdicts[name] = self._judge_node(new)
            self._changed = True
        return set()

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `Kind.remove`; what follows from it is returned by `settle`."""
        if not namespace and self.objects.pop(name, None) is not None:
            del self._verdicts[name]
            del self._names_by_dpid[names.datapath_id(name)]
            self._note(ObjectRef.node(name), "")
            self._changed = True
        return set()

    def settle(self) -> set[Key]:
        """Judge the Nodes against each other, if any changed."""
        if not self._changed:
            return set()
        self._changed = False
        accepted: dict[str, Node] = {}
        by_address: dict[IPv4Address, str] = {}
        ranges: list[tuple[IPv4Network, str]] = []  # sorted, and disjoint
        # The older of two that conflict stays, in whatever order they came.
        for given in sorted(self.objects.values(), key=_age):
            name = given.metadata.name
            verdict = self._verdicts[name]
            if isinstance(verdict, Node):
                verdict = _conflict(verdict, by_address, ranges) or verdict
            if isinstance(verdict, str):
                self._note(ObjectRef.node(name), verdict)
                continue
            self._note(ObjectRef.node(name), "")
            accepted[name] = verdict
            by_address[verdict.address] = name
            insort(ranges, (verdict.pod_cidr, name))
        self._share_out_addresses(accepted, set(by_address))
        changed = {
            name
            for name in self.accepted.keys() | accepted.keys()
            if self.accepted.get(name) != accepted.get(name)
        }
        self.accepted.clear()
        self.accepted.update(accepted)
        touched: set[Key] = set()
        for name in changed:
            touched |= {Key(CLUSTER_SCOPE, "peer", name), Key(name, "node", name)}
        if changed:
            for follower in self.followers:
                touched |= follower(changed)
        return touched

    def _share_out_addresses(self, accepted: dict[str, Node], taken: set[IPv4Address]) -> None:
        """Give nodes their further addresses, each to the first that names it."""
        for name, node in accepted.items():
            further = []
            for address in _addresses(self.objects[name].addresses):
                if address not in taken:
                    taken.add(address)
                    further.append(address)
            if further:
                accepted[name] = replace(node, further_addresses=tuple(further))

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
            ("the pod range", self._cluster.pod_range),
            ("the Service range", self._cluster.service_range),
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
        if found.prefixlen > LONGEST_PREFIX:
            raise _RefusedError(
                f"spec.podCIDR {found} is too small: /{LONGEST_PREFIX} is the least"
            )
        for range_name, network in self._reserved:
            if found.overlaps(network):
                raise _RefusedError(f"spec.podCIDR {found} overlaps {range_name} {network}")
        if not found.subnet_of(self._cluster.pod_range):
            raise _RefusedError(
                f"spec.podCIDR {found} is outside the pod range {self._cluster.pod_range}"
            )
        return found


class _RefusedError(ValueError):
    """Why an object is refused."""


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
