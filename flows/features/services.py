"""To a Service: for which of its ports a packet is, and back again.

The first packet of a connection passes these stages (docs/pipeline.md has them all):

    NodeAddress     is it for this node's own address? NodePorts are there
    ServiceAddress  which set of addresses is it for? for Services with many addresses and ports
    ServiceSource   does the set serve this client?
    ServiceChoice   which Service port is it for? by address or set, protocol and port
    EndpointChoice  which endpoint? see `flows.features.endpoints`

All later packets are translated by conntrack. Where replies would not come back, `Snat` translates
the source as well, in a conntrack zone of its own, and `UnSnat` undoes that. What has no endpoint
goes to the node's own stack: Open vSwitch can make no RST.

All of this is the same on every node, except what comes to a node's own addresses.
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
from flows.view import Attachment, Cluster, Frontend, Node, Service, ServicePort, StandIn

REFUSALS_PER_SECOND: Final = 1_000
"""Of one node to all its pods, and as many to everybody else. Whoever asks for more gets no answer,
as from a busy host."""
POD_REFUSALS_PER_SECOND: Final = 100
"""Of one node to one of its pods."""

_SET_SHIFT: Final = 29
"""Above the bits of any group's id: which of a Service's sets of addresses a number is."""
_MAX_SETS: Final = 4
"""Of one Service. Each has two numbers, in three bits."""


def every_node(cluster: Cluster, _: Cluster) -> Iterable[Flow]:
    """The ways of every Service."""
    for family in cluster.families:
        yield from _of_family(family, cluster)


def _to_be_translated(family: Family) -> dict[str, MatchValue]:
    """What `Snat` is for. Answers have been translated back where they came in."""
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
        "a reply to what came back to its own port",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "NodeAddress", Priority.SHARED,
        {"dl_type": family.ether_type, family.destination: ip(family.node_port)},
        [LAYOUT.load("NodeAddress", 1), LAYOUT.goto("ServiceAddress")],
        "for one of the node's addresses, translated by its own stack",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "NodeAddress", Priority.GUARD,
        {"dl_type": family.ether_type, "Source": Source.TUNNEL},
        [LAYOUT.goto("DestinationGuard")],
        "from another node, which has chosen the endpoint",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "ServiceChoice", Priority.RANGE,
        {"dl_type": family.ether_type, family.destination: net(cluster.service_range)},
        [LAYOUT.goto("Refuse")],
        "an address or port of the Service range that is no Service's",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Snat", Priority.SHARED,
        _to_be_translated(family),
        _snat(family.hairpin),
        "back to where it came from, as somebody whom the receiver answers by the switch",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Snat", Priority.OVERRIDE,
        {"dl_type": family.ether_type, "Refused": 1, "Hairpin": 1},
        _snat(family.hairpin),
        "back to the node to be refused: it takes nothing from the outside with its own source",
    )  # fmt: skip


def node(_: Cluster, node: Node) -> Iterable[Entry]:
    """What is about this node's addresses, its zone and its own stack."""
    family = family_of(node.pod_cidr)
    snat_address = names.snat_address(node.pod_cidr)
    yield LAYOUT.flow(
        Feature.SERVICES, "UnSnat", Priority.LOCAL,
        {
            "dl_type": family.ether_type,
            family.destination: ip(snat_address),
            "Source": Source.TUNNEL,
        },
        _undo_snat(),
        "a reply to what came from outside and went on to another node",
    )  # fmt: skip
    for address in (node.address, *node.further_addresses):
        of_address = family_of(address)
        yield LAYOUT.flow(
            Feature.SERVICES, "NodeAddress", Priority.LOCAL,
            {"dl_type": of_address.ether_type, of_address.destination: ip(address)},
            [LAYOUT.load("NodeAddress", 1), LAYOUT.goto("ServiceAddress")],
            "for this node's own address",
        )  # fmt: skip
    if node.zone:
        yield LAYOUT.flow(
            Feature.SERVICES, "Topology", Priority.LOCAL,
            {},
            [LAYOUT.load("Zone", zone_number(node.zone)), LAYOUT.goto("EndpointChoice")],
            f"this node is in zone {node.zone}",
        )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Snat", Priority.LOCAL,
        {**_to_be_translated(family), "OutputPort": names.TUNNEL_OFPORT},
        _snat(snat_address),
        "from outside on to another node, which has to answer by this one",
    )  # fmt: skip
    yield LAYOUT.flow(
        Feature.SERVICES, "Refuse", Priority.DEFAULT,
        {"dl_type": family.ether_type},
        _refused(names.REFUSAL_METER),
        "the node's own stack refuses it, metered",
    )  # fmt: skip
    for meter in (names.REFUSAL_METER, names.POD_REFUSAL_METER):
        yield Meter(meter, rate=REFUSALS_PER_SECOND, burst=REFUSALS_PER_SECOND)


def attachment(_: Cluster, attachment: Attachment) -> Iterable[Entry]:
    """What is refused to one pod takes nothing away from the others."""
    own = names.refusal_meter(attachment.ofport)
    yield LAYOUT.flow(
        Feature.SERVICES, "Refuse", Priority.LOCAL,
        {"in_port": attachment.ofport, "dl_type": family_of(attachment.address).ether_type},
        _refused(own, names.POD_REFUSAL_METER),
        "the node's own stack refuses it to this pod, metered",
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

    Each address is a flow, each port is one, and each source range: they add up.
    """

    number: int
    """Of all clients."""
    allowed: int
    """Of those in a source range; the same where there are none."""
    sources: tuple[IPNetwork, ...] | None
    addresses: tuple[tuple[IPAddress, tuple[StandIn, ...]], ...]
    """Each with what nodes that have it translate it to."""
    ports: tuple[tuple[ServicePort, Frontend], ...]
    """One frontend of each port."""


def _arranged(
    service: Service,
) -> tuple[list[_AddressSet], list[tuple[ServicePort, Frontend]]]:
    """A Service's sets of addresses, and the frontends that have a flow each.

    An address that other Services have ports of is in no set, since it could be in one only.
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
    alike: dict[object, list[IPAddress]] = {}
    for address, found in by_address.items():
        has = tuple((port.protocol, frontend.port) for port, frontend in found)
        alike.setdefault((found[0][1].sources, has), []).append(address)
    sets: list[_AddressSet] = []
    base = min((port.groups["cluster"] for port in service.ports), default=0)
    for group in alike.values():
        ports = by_address[group[0]]
        sources = ports[0][1].sources
        ranges = len(sources or ())
        added_up = len(group) + ranges + 2 * len(ports)
        if len(sets) == _MAX_SETS or added_up >= len(group) * len(ports) * (ranges + 1):
            single += [each for address in group for each in by_address[address]]
            continue
        addresses = [(address, by_address[address][0][1].stand_ins) for address in group]
        number = base | 2 * len(sets) << _SET_SHIFT
        allowed = number if sources is None else number | 1 << _SET_SHIFT
        sets.append(_AddressSet(number, allowed, sources, tuple(addresses), tuple(ports)))
    return sets, single


def service(_cluster: Cluster, service: Service) -> Iterable[Entry]:
    """By which addresses and ports every node knows a Service."""
    sets, single = _arranged(service)
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
            for who, actions, whence in _clients(port, frontend):
                yield LAYOUT.flow(
                    Feature.SERVICES, "ServiceChoice", Priority.SHARED, of_set | who, actions,
                    f"to {title}, by one of its addresses{whence}",
                )  # fmt: skip
            if each.sources is not None:
                yield LAYOUT.flow(
                    Feature.SERVICES, "ServiceChoice", Priority.SHARED,
                    fields | {"AddressSet": each.number}, [],
                    f"to {title}, from outside loadBalancerSourceRanges",
                )  # fmt: skip


def service_on_node(_cluster: Cluster, given: ServiceOnNode) -> Iterable[Entry]:
    """What comes to a Service at one of this node's own addresses, by the node's stack."""
    service, node = given
    sets, single = _arranged(service)
    for port, frontend in single:
        for stand_in in frontend.stand_ins:
            if stand_in.node == node:
                yield from _frontend(service, port, frontend, stand_in.address)
    for each in sets:
        for _, stand_ins in each.addresses:
            for stand_in in stand_ins:
                if stand_in.node == node:
                    yield _in_set(service, each, stand_in.address, "this node's own address")


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
    """Which clients a frontend tells apart, what is done with their packets, and who they are."""
    clients: list[tuple[dict[str, MatchValue], bool, str]]
    if not frontend.external:
        clients = [({}, port.internal_local, "")]
    elif not port.external_local:
        clients = [({}, False, "")]
    else:
        # The policy is about the outside world alone, as in kube-proxy.
        clients = [
            ({"Source": Source.GATEWAY}, True, " from outside"),
            ({"Source": Source.POD}, False, " from a pod"),
            ({"Source": Source.HOST}, False, " from the node itself"),
        ]
    for who, is_local, whence in clients:
        chosen = port.groups["local" if is_local else "cluster"]
        actions: list[Action] = [LAYOUT.load("Service", chosen)]
        if port.affinity is None:
            actions.append(LAYOUT.goto("Topology"))
        else:
            actions += [
                Resubmit(LAYOUT.goto("Affinity").table),
                LAYOUT.goto("AffinityCheck"),
            ]
        yield who, actions, whence


def _frontend(
    service: Service, port: ServicePort, frontend: Frontend, stand_in: IPAddress | None = None
) -> Iterable[Flow]:
    """One address and port; `stand_in`: as the node's own stack has translated the address."""
    family, title = port.family, service.title(port)
    fields = _port_fields(port, frontend)
    priority = Priority.SHARED
    if frontend.address is None:
        fields["NodeAddress"] = 1
        # As in kube-proxy, an address of the node that another Service names goes before.
        priority = Priority.DEFAULT
        where = "its NodePort"
    else:
        fields[family.destination] = ip(stand_in or frontend.address)
        where = "this node's own address" if stand_in else str(frontend.address)
    ranges = (None,) if frontend.sources is None else frontend.sources
    for who, actions, whence in _clients(port, frontend):
        for network in ranges:
            narrowed = {**fields, **who}
            if network is not None:
                narrowed[family.source] = net(network)
            yield LAYOUT.flow(
                Feature.SERVICES, "ServiceChoice",
                priority if network is None else Priority.OVERRIDE, narrowed, actions,
                f"to {title}, by {where}{whence}",
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
