"""Which routes a peer is told, and why: a pure function of what is known of the cluster.

Two controllers that know the same announce the same, whichever of them leads.
"""

from collections.abc import Callable, Container, Generator, Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from typing import Final, NamedTuple, cast

from controller.address_owners import ownership_order
from controller.bgp.peers import (
    CLUSTER_IPS,
    EGRESS_ADDRESSES,
    EXTERNAL_IPS,
    LOAD_BALANCER_ADDRESSES,
    POD_RANGES,
    PeerDraft,
)
from controller.load_balancers.serving import serving_nodes
from flows.refs import ObjectRef
from flows.view import ClusterView, Node, Service, ServicePort
from wire.bgp import MAX_NEXT_HOPS, MAX_PATHS, Route

MAX_REASONS: Final = 5
"""Objects that one route names."""


class Candidate(NamedTuple):
    """A prefix, and the nodes that packets to it can be sent to."""

    prefix: IPv4Network
    kind: str
    """One of `peers.KINDS`."""
    nodes: frozenset[str] | None
    """None: every node."""
    reasons: tuple[ObjectRef, ...]
    note: str = ""
    """What else explains it; empty: nothing."""


@dataclass(frozen=True, slots=True)
class Announced:
    """A route that a peer is told."""

    prefix: IPv4Network
    kind: str
    nodes: tuple[str, ...]
    """The next hops. The first one is for a peer that takes only one."""
    reasons: tuple[ObjectRef, ...]
    note: str = ""


@dataclass(frozen=True, slots=True)
class World:
    """What routes depend on."""

    view: ClusterView
    is_fit: Callable[[str], bool]
    """Whether a node is ready to take connections to addresses that other nodes serve, too."""
    selected: Callable[[PeerDraft], frozenset[str]]
    """The nodes that a peer is told of."""
    balanced: Mapping[IPv4Address, tuple[frozenset[str], tuple[ObjectRef, ...]]] = field(
        default_factory=dict
    )
    """By load balancer address to announce, the nodes that can serve it, and the Services."""
    egress: Mapping[IPv4Address, tuple[str, ObjectRef]] = field(default_factory=dict)
    """By egress address to announce, its gateway at the moment, and the object."""
    not_external: Container[IPv4Address] = frozenset()
    """Addresses of pools and EgressAddresses: `spec.externalIPs` of a Service, which a tenant
    writes, says nothing about them, nor does the status of a Service whose pool has no BGP."""


def candidates(world: World, kinds: frozenset[str]) -> Generator[None, None, list[Candidate]]:
    """Everything of these kinds that can be announced."""
    found: list[Candidate] = []
    if POD_RANGES in kinds:
        for name, node in sorted(world.view.nodes.items()):
            yield
            found.append(
                Candidate(_ipv4(node.pod_cidr), POD_RANGES, frozenset((name,)),
                          (ObjectRef.node(name),))
            )  # fmt: skip
    if LOAD_BALANCER_ADDRESSES in kinds:
        for address, (nodes, services) in sorted(world.balanced.items()):
            yield
            note = "" if len(nodes) == len(world.view.nodes) else "only nodes that can serve it"
            found.append(_one(address, LOAD_BALANCER_ADDRESSES, nodes, services, note))
    if EGRESS_ADDRESSES in kinds:
        for address, (gateway, owner) in sorted(world.egress.items()):
            yield
            found.append(
                _one(address, EGRESS_ADDRESSES, frozenset((gateway,)), (owner,), "its gateway")
            )
    if kinds & {CLUSTER_IPS, EXTERNAL_IPS}:
        found += yield from _of_services(world, kinds)
    return found


def _of_services(world: World, kinds: frozenset[str]) -> Generator[None, None, list[Candidate]]:
    found: list[Candidate] = []
    every = frozenset(world.view.nodes)
    external: dict[IPv4Address, list[Service]] = {}
    for _, service in sorted(world.view.services.items()):
        yield
        for port in service.ports:
            for address, is_external in _addresses(port):
                if is_external:
                    if address not in world.not_external:
                        external.setdefault(address, []).append(service)
                elif port.internal_local:
                    nodes = serving_nodes((service,), every, external=False)
                    found.append(_one(address, CLUSTER_IPS, nodes, (_ref(service),), LOCAL))
    for address, services in sorted(external.items()):
        yield
        different = list({id(each): each for each in services}.values())
        serve = serving_nodes(different, every)
        note = "" if serve == every else LOCAL
        found.append(_one(address, EXTERNAL_IPS, serve, tuple(map(_ref, different)), note))
    if CLUSTER_IPS in kinds:
        # One route for all: any node sends a connection to an endpoint.
        everything = _ipv4(world.view.cluster.service_range)
        found.append(Candidate(everything, CLUSTER_IPS, None, (), "ClusterIPs: every node serves"))
    return found


def _addresses(port: ServicePort) -> Iterable[tuple[IPv4Address, bool]]:
    """Each with whether it is external. A Node's own address is the network's already."""
    for frontend in port.frontends:
        if isinstance(frontend.address, IPv4Address) and not frontend.node:
            yield frontend.address, frontend.external


LOCAL: Final = "only nodes with ready endpoints"


def routes(
    peer: PeerDraft, world: World, of: Iterable[Candidate]
) -> Generator[None, None, tuple[list[Announced], int]]:
    """What a peer is told, by prefix, and how many more routes there would be."""
    selected = world.selected(peer)
    fit = frozenset(name for name in selected if world.is_fit(name))
    yield
    found: dict[IPv4Network, Announced] = {}
    paths = left_out = 0
    for candidate in of:
        yield
        if candidate.kind not in peer.kinds:
            continue
        if candidate.kind in {POD_RANGES, EGRESS_ADDRESSES}:
            # No other node could take its place.
            nodes = selected & (candidate.nodes or frozenset())
        elif candidate.nodes is None:
            nodes = fit or selected
        else:
            nodes = fit & candidate.nodes or selected & candidate.nodes
        if not nodes:
            continue
        if paths + min(len(nodes), MAX_NEXT_HOPS) > MAX_PATHS:
            left_out += 1
            continue
        known = found.get(candidate.prefix)
        made = _merged(known, candidate, nodes)
        paths += len(made.nodes) - (len(known.nodes) if known else 0)
        found[candidate.prefix] = made
    return [found[prefix] for prefix in sorted(found)], left_out


def _merged(known: Announced | None, new: Candidate, nodes: frozenset[str]) -> Announced:
    if known is not None:
        nodes |= set(known.nodes)
    reasons = (*(known.reasons if known else ()), *new.reasons)
    if len(nodes) == 1:
        order = list(nodes)
    else:
        # Not the same node first for all addresses: peers that take one next hop share the load.
        order = ownership_order(new.prefix.network_address, nodes)[:MAX_NEXT_HOPS]
    kind = known.kind if known else new.kind
    note = known.note if known else new.note
    return Announced(
        new.prefix, kind, tuple(order), tuple(dict.fromkeys(reasons))[:MAX_REASONS], note
    )


def for_speaker(announced: Iterable[Announced], nodes: Mapping[str, Node]) -> tuple[Route, ...]:
    """The same with addresses instead of names."""
    return tuple(
        Route(
            each.prefix,
            tuple(cast("IPv4Address", nodes[name].address) for name in each.nodes if name in nodes),
        )
        for each in announced
    )


def _one(
    address: IPv4Address,
    kind: str,
    nodes: frozenset[str] | None,
    reasons: tuple[ObjectRef, ...],
    note: str = "",
) -> Candidate:
    return Candidate(IPv4Network((address, 32)), kind, nodes, reasons[:MAX_REASONS], note)


def _ref(service: Service) -> ObjectRef:
    return ObjectRef("Service", service.namespace, service.name)


def _ipv4(network: object) -> IPv4Network:
    # All Nodes that are accepted have IPv4.
    return cast("IPv4Network", network)
