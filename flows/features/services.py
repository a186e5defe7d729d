"""Services: the Service port that a packet is for, SNAT where replies need it, and refusals.

The first packet of a connection passes these tables (docs/pipeline.md has all of them):

    NodeAddress     marks packets to an address of this node, where NodePorts are
    ServiceAddress  finds the set of addresses, for Services with many addresses and ports
    ServiceSource   checks the client against the source ranges of the set
    ServiceChoice   finds the Service port by address or set, protocol and port
    EndpointChoice  chooses the endpoint: see `flows.features.endpoints`

Conntrack translates all later packets. If replies would not return through this switch, `Snat` also
translates the source, in a conntrack zone of its own, and `UnSnat` undoes that. A packet to a
Service port without endpoints goes to the node's stack, because Open vSwitch cannot make an RST.

All flows are the same on every node, except those for a node's own addresses.
"""

from collections.abc import Iterable
from typing import Final, NamedTuple

from flows import names
from flows.family import Family, IPAddress, IPNetwork, family_of
from flows.features.endpoints import zone_number
from flows.flow import (
    Action,
    ApplyMeter,
    Ct,
    Flow,
    MatchValue,
    Meter,
    Nat,
    Resubmit,
    SetField,
    ct_state,
    ip,
    mac,
    net,
)
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, SERVICE, SERVICE_ON_NODE, Entry, ServiceOnNode
from flows.pipeline import (
    LAYOUT,
    NEEDS_SNAT,
    SNAT_ZONE,
    Feature,
    Priority,
    Source,
)
from flows.view import Attachment, Cluster, Frontend, HostDnatAddress, Node, Service, ServicePort
from flows.ways import Mode

REFUSALS_PER_SECOND: Final = 1_000
"""By one node to all its pods together, and as many to all other clients. Further packets get no
answer, as from a busy host."""
POD_REFUSALS_PER_SECOND: Final = 100
"""By one node to one of its pods."""

_SET_SHIFT: Final = 29
"""The number of a set is above the bits of group ids."""
_MAX_SETS: Final = 4
"""The most sets of one Service. Each has two numbers, in three bits."""


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The flows that do not depend on a Service."""
    for family in cluster.families:
        yield from _of_family(family, cluster)


def _to_be_translated(family: Family) -> dict[str, MatchValue]:
    """Packets that `Snat` translates. Replies are not among them: `UnSnat` has undone theirs."""
    return {
        "dl_type": family.ether_type,
        "ct_state": ct_state("-rpl"),
        "ct_mark": (NEEDS_SNAT, NEEDS_SNAT),
    }


def _of_family(family: Family, cluster: Cluster) -> Iterable[Flow]:
    yield LAYOUT.flow(
        Feature.SERVICES, "UnSnat", Priority.SHARED,
        {"dl_type": family.ether_type, family.destination: ip(family.hairpin)},
        _undo_snat(),
        "a reply of a hairpin connection",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "NodeAddress", Priority.SHARED,
        {"dl_type": family.ether_type, family.destination: ip(family.node_port)},
        [LAYOUT.load("NodeAddress", 1), LAYOUT.goto("ServiceAddress")],
        "to an address of this node, translated by its own stack",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "NodeAddress", Priority.GUARD,
        {"dl_type": family.ether_type, "Source": Source.PEER},
        [LAYOUT.goto("DestinationGuard")],
        "from another node, which has already chosen the endpoint",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "ServiceChoice", Priority.RANGE,
        {"dl_type": family.ether_type, family.destination: net(cluster.service_range)},
        [LAYOUT.goto("Refuse")],
        "an address or port of the Service range without a Service",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Snat", Priority.SHARED,
        _to_be_translated(family),
        _snat(family.hairpin),
        f"hairpin: SNAT to {family.hairpin} so that replies return through the switch",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Snat", Priority.OVERRIDE,
        {"dl_type": family.ether_type, "Refused": 1, "Hairpin": 1},
        _snat(family.hairpin),
        "to be refused, from the node itself: the node drops packets with its own source address",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Entry]:
    """Flows for the node's own addresses, its topology zone and its stack."""
    family = family_of(node.pod_cidr)
    snat_address = names.snat_address(node.pod_cidr)
    yield LAYOUT.flow(
        Feature.SERVICES, "UnSnat", Priority.LOCAL,
        {
            "dl_type": family.ether_type,
            family.destination: ip(snat_address),
            "Source": Source.PEER,
        },
        _undo_snat(),
        "a reply from another node to an external client that entered here",
    )  # fmt: skip
    for address in (node.address, *node.further_addresses):
        of_address = family_of(address)
        yield LAYOUT.flow(
            Feature.SERVICES, "NodeAddress", Priority.LOCAL,
            {"dl_type": of_address.ether_type, of_address.destination: ip(address)},
            [LAYOUT.load("NodeAddress", 1), LAYOUT.goto("ServiceAddress")],
            "to an address of this node",
        )  # fmt: skip
    if node.zone:
        yield LAYOUT.flow(
            Feature.SERVICES, "Topology", Priority.LOCAL,
            {},
            [LAYOUT.load("TopologyZone", zone_number(node.zone)), LAYOUT.goto("EndpointChoice")],
            f"this node is in zone {node.zone}",
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Snat", Priority.LOCAL,
        {**_to_be_translated(family), "OutputPort": names.TUNNEL_OFPORT},
        _snat(snat_address),
        "from outside to another node: SNAT so that replies return through this node",
    )  # fmt: skip
    if node.mode is not Mode.ENCAP:
        yield LAYOUT.flow(
            Feature.SERVICES, "Snat", Priority.LOCAL,
            {**_to_be_translated(family), "ToPeer": 1},
            _snat(snat_address),
            "from outside or the node to another node, without the tunnel: SNAT as well",
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Refuse", Priority.DEFAULT,
        {"dl_type": family.ether_type},
        _refused(names.REFUSAL_METER),
        "the node's own stack refuses the packet, metered",
    )  # fmt: skip
    for meter in (names.REFUSAL_METER, names.POD_REFUSAL_METER):
        yield Meter(meter, rate=REFUSALS_PER_SECOND, burst=REFUSALS_PER_SECOND)


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Entry]:
    """Refusals to one pod have a meter of their own, so that other pods still get theirs."""
    own = names.refusal_meter(attachment.ofport)
    yield LAYOUT.flow(
        Feature.SERVICES, "Refuse", Priority.LOCAL,
        {"in_port": attachment.ofport, "dl_type": family_of(attachment.address).ether_type},
        _refused(own, names.POD_REFUSAL_METER),
        "the node's own stack refuses the packet of this pod, metered",
    )  # fmt: skip
    yield Meter(own, rate=POD_REFUSALS_PER_SECOND, burst=POD_REFUSALS_PER_SECOND)


def _refused(*meters: int) -> list[Action]:
    return [
        *map(ApplyMeter, meters),
        SetField("dl_src", mac(names.ROUTER_MAC)),
        SetField("dl_dst", mac(names.GATEWAY_MAC)),
        LAYOUT.load("Refused", 1),
        LAYOUT.load("OutputPort", names.GATEWAY_OFPORT),
        LAYOUT.goto("Hairpin"),
    ]


class _AddressSet(NamedTuple):
    """Addresses at which a Service has the same ports, for the same clients.

    There is one flow for each address, port and source range, not one for each combination.
    """

    number: int
    """The value of `AddressSet` for all clients."""
    allowed: int
    """The value for clients in a source range; the same as `number` if there are no ranges."""
    sources: tuple[IPNetwork, ...] | None
    addresses: tuple[tuple[IPAddress, tuple[HostDnatAddress, ...]], ...]
    """Each address with its host DNAT addresses."""
    ports: tuple[tuple[ServicePort, Frontend], ...]
    """One frontend of each port."""


def _address_sets(
    service: Service,
) -> tuple[list[_AddressSet], list[tuple[ServicePort, Frontend]]]:
    """The sets of addresses of a Service, and the frontends that have their own flows.

    An address of several Services is in no set, because it could be in only one.
    """
    by_address: dict[IPAddress, list[tuple[ServicePort, Frontend]]] = {}
    single: list[tuple[ServicePort, Frontend]] = []
    for port in service.ports:
        for frontend in port.frontends:
            at = frontend.address
            if at is None or not frontend.external or at in service.shared_addresses:
                single.append((port, frontend))
            else:
                by_address.setdefault(at, []).append((port, frontend))
    same_ports: dict[object, list[IPAddress]] = {}
    for address, found in by_address.items():
        has = tuple((port.protocol, frontend.port) for port, frontend in found)
        same_ports.setdefault((found[0][1].sources, has), []).append(address)
    sets: list[_AddressSet] = []
    base = min((port.groups["cluster"] for port in service.ports), default=0)
    for group in same_ports.values():
        ports = by_address[group[0]]
        sources = ports[0][1].sources
        ranges = len(sources or ())
        added_up = len(group) + ranges + 2 * len(ports)
        if len(sets) == _MAX_SETS or added_up >= len(group) * len(ports) * (ranges + 1):
            single += [each for address in group for each in by_address[address]]
            continue
        addresses = [(address, by_address[address][0][1].host_dnat) for address in group]
        number = base | 2 * len(sets) << _SET_SHIFT
        allowed = number if sources is None else number | 1 << _SET_SHIFT
        sets.append(_AddressSet(number, allowed, sources, tuple(addresses), tuple(ports)))
    return sets, single


def service(_cluster: Cluster, service: Service) -> Iterable[Entry]:
    """The addresses and ports of a Service, on every node."""
    sets, single = _address_sets(service)
    for port, frontend in single:
        yield from _frontend(service, port, frontend)
    for each in sets:
        for address, _ in each.addresses:
            yield _in_set(service, each, address, str(address))
        for network in each.sources or ():
            family = family_of(network)
            yield LAYOUT.flow(
                Feature.SERVICES, "ServiceSource", Priority.SHARED,
                {"dl_type": family.ether_type, "AddressSet": each.number,
                 family.source: net(network)},
                [LAYOUT.load("AddressSet", each.allowed), LAYOUT.goto("ServiceChoice")],
                f"from a client that {service.namespace}/{service.name} serves",
            )  # fmt: skip
        for port, frontend in each.ports:
            fields: dict[str, MatchValue] = _port_fields(port, frontend)
            title = service.title(port)
            of_set = fields | {"AddressSet": each.allowed}
            for who, actions, origin in _clients(port, frontend):
                yield LAYOUT.flow(
                    Feature.SERVICES, "ServiceChoice", Priority.SHARED, of_set | who, actions,
                    f"to {title}, by one of its addresses{origin}",
                )  # fmt: skip
            if each.sources is not None:
                yield LAYOUT.flow(
                    Feature.SERVICES, "ServiceChoice", Priority.SHARED,
                    fields | {"AddressSet": each.number}, [],
                    f"to {title}, from outside loadBalancerSourceRanges",
                )  # fmt: skip


def service_on_node(_cluster: Cluster, given: ServiceOnNode) -> Iterable[Entry]:
    """Packets to a Service at an address of this node that the node's stack has translated."""
    service, node = given
    sets, single = _address_sets(service)
    for port, frontend in single:
        for dnat_address in frontend.host_dnat:
            if dnat_address.node == node:
                yield from _frontend(service, port, frontend, dnat_address.address)
    for each in sets:
        for _, host_dnat in each.addresses:
            for dnat_address in host_dnat:
                if dnat_address.node == node:
                    yield _in_set(service, each, dnat_address.address, "this node's own address")


def _in_set(service: Service, of: _AddressSet, address: IPAddress, where: str) -> Flow:
    family = family_of(address)
    onward = "ServiceChoice" if of.sources is None else "ServiceSource"
    return LAYOUT.flow(
        Feature.SERVICES, "ServiceAddress", Priority.SHARED,
        {"dl_type": family.ether_type, family.destination: ip(address)},
        [LAYOUT.load("AddressSet", of.number), LAYOUT.goto(onward)],
        f"to {service.namespace}/{service.name}, by {where}",
    )  # fmt: skip


def _port_fields(port: ServicePort, frontend: Frontend) -> dict[str, MatchValue]:
    return {
        "dl_type": port.family.ether_type,
        "nw_proto": port.protocol,
        "tp_dst": frontend.port,
    }


def _clients(
    port: ServicePort, frontend: Frontend
) -> Iterable[tuple[dict[str, MatchValue], list[Action], str]]:
    """For each class of clients: what to match, the actions, and the words for the reason."""
    clients: list[tuple[dict[str, MatchValue], bool, str]]
    if not frontend.external:
        clients = [({}, port.internal_local, "")]
    elif not port.external_local:
        clients = [({}, False, "")]
    else:
        # As in kube-proxy, the external policy applies only to clients outside the cluster.
        clients = [
            ({"Source": Source.GATEWAY}, True, " from outside"),
            ({"Source": Source.POD}, False, " from a pod"),
            ({"Source": Source.HOST}, False, " from the node itself"),
        ]
    for who, is_local, origin in clients:
        chosen = port.groups["local" if is_local else "cluster"]
        actions: list[Action] = [LAYOUT.load("Service", chosen)]
        if port.affinity is None:
            actions.append(LAYOUT.goto("Topology"))
        else:
            actions += [
                Resubmit(LAYOUT.goto("Affinity").table),
                LAYOUT.goto("AffinityCheck"),
            ]
        yield who, actions, origin


def _frontend(
    service: Service, port: ServicePort, frontend: Frontend, dnat_address: IPAddress | None = None
) -> Iterable[Flow]:
    """One address and port. `dnat_address`: the address after DNAT by the node's own stack."""
    family, title = port.family, service.title(port)
    fields = _port_fields(port, frontend)
    priority = Priority.SHARED
    if frontend.address is None:
        fields["NodeAddress"] = 1
        # As in kube-proxy, another Service that names the address of the node has precedence.
        priority = Priority.DEFAULT
        where = "its NodePort"
    else:
        fields[family.destination] = ip(dnat_address or frontend.address)
        where = "this node's own address" if dnat_address else str(frontend.address)
    ranges = (None,) if frontend.sources is None else frontend.sources
    for who, actions, origin in _clients(port, frontend):
        for network in ranges:
            narrowed = {**fields, **who}
            if network is not None:
                narrowed[family.source] = net(network)
            yield LAYOUT.flow(
                Feature.SERVICES, "ServiceChoice",
                priority if network is None else Priority.OVERRIDE, narrowed, actions,
                f"to {title}, by {where}{origin}",
            )  # fmt: skip
    if frontend.sources is not None:
        yield LAYOUT.flow(
            Feature.SERVICES, "ServiceChoice", Priority.SHARED, fields, [],
            f"to {title}, by {where}, from outside loadBalancerSourceRanges",
        )  # fmt: skip


def _undo_snat() -> list[Action]:
    return [Ct(SNAT_ZONE, table=LAYOUT.goto("Conntrack").table, nat=Nat())]


def _snat(address: IPAddress) -> list[Action]:
    table = LAYOUT.goto("Output").table
    nat = Nat(source=ip(address), version=address.version)
    return [Ct(SNAT_ZONE, table=table, commit=True, nat=nat)]


WRITES: Final = (
    EVERY_NODE.by(every_node),
    NODE.by(node),
    ATTACHMENT.by(attachment),
    SERVICE.by(service),
    SERVICE_ON_NODE.by(service_on_node),
)
