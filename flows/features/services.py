"""To a Service: which endpoint, translated there, and back again.

The first packet of a connection passes these stages (docs/pipeline.md has them all):

    NodeAddress     is it for this node's own address? NodePorts are there
    ServiceChoice   which Service port is it for? by address, protocol and port
    Affinity ...    which endpoint has this client had before? only with `sessionAffinity`
    EndpointChoice  a select group chooses an endpoint and translates the destination to it

All later ones are translated by conntrack. Where replies would not come back, `Snat` translates the
source as well, in a conntrack zone of its own, and `UnSnat` undoes that. What has no endpoint goes
to the node's own stack: Open vSwitch can make no RST.

All of this is the same on every node but for Services whose policy is Local or whose hints name
nodes: those have groups of their own on the nodes that have such endpoints.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final

from flows import names, topology
from flows.family import Family, IPAddress, family_of
from flows.features.protocols import LAYER_4_NAMES
from flows.flow import (
    MOST_BUCKETS,
    Action,
    ApplyMeter,
    Bucket,
    Ct,
    Flow,
    Group,
    MatchValue,
    Meter,
    Nat,
    Resubmit,
    SetField,
    ToGroup,
    ct_state,
    ip,
    mac,
    net,
)
from flows.kinds import ATTACHMENT, EVERY_NODE, NODE, SERVICE, SERVICE_ON_NODE, Entry, ServiceOnNode
from flows.pipeline import (
    ENDPOINT,
    FROM_SERVICE,
    LAYOUT,
    NEEDS_SNAT,
    SNAT_ZONE,
    ZONE,
    Feature,
    Priority,
    Source,
)
from flows.topology import Endpoints
from flows.view import Attachment, Cluster, Endpoint, Frontend, Node, Service, ServicePort

REFUSALS_PER_SECOND: Final = 1_000
"""Of one node to all its pods, and as many to everybody else. Whoever asks for more gets no answer,
as from a busy host."""
POD_REFUSALS_PER_SECOND: Final = 100
"""Of one node to one of its pods."""

WEIGHT: Final = 256
"""Of an endpoint in its group."""
MOST_SLOTTED: Final = 32
"""Endpoints up to which the datapath chooses itself. It has at most 256 slots to share out: with 32
the least an endpoint has is 8, and nobody is off by more than a tenth or so."""

LONGEST_IDLE: Final = 0xFFFF
"""Seconds: a flow's idle timeout has 16 bits. Affinity for longer is ended by the node's agent."""


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
        [LAYOUT.load("NodeAddress", 1), LAYOUT.goto("ServiceChoice")],
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
            [LAYOUT.load("NodeAddress", 1), LAYOUT.goto("ServiceChoice")],
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


def service(_: Cluster, service: Service) -> Iterable[Entry]:
    """What every node has of a Service."""
    for port in service.ports:
        title = _title(service, port)
        for frontend in port.frontends:
            yield from _frontend(port, frontend, title)
        at = port.groups["cluster"]
        everywhere = topology.everywhere(port)
        if everywhere:
            yield _choice(at, [ToGroup(at)], f"an endpoint of {title}")
            yield from _groups(port, "cluster", everywhere)
        else:
            yield _choice(at, [LAYOUT.goto("Refuse")], f"{title} has no endpoint")
        # By number: of two zones with one number, which somebody may have looked for, one counts.
        by_number = {zone_number(zone): (zone, of) for zone, of in topology.zones(port).items()}
        for in_zone, (zone, chosen) in by_number.items():
            number, fields = port.groups[f"zone {zone}"], {"Zone": in_zone}
            reason = f"an endpoint of {title} for zone {zone}"
            yield _choice(at, [ToGroup(number)], reason, Priority.OVERRIDE, fields)
            yield from _groups(port, f"zone {zone}", chosen)
        yield from _affinity(port, at, everywhere, title)
        if "local" in port.groups:
            # Where there is one, the node's own flow stands above. As in kube-proxy, it is dropped
            # and not refused if others have one: load balancers then try another node.
            actions: list[Action] = [] if everywhere else [LAYOUT.goto("Refuse")]
            on = " on this node" if everywhere else ""
            reason = f"the policy is Local, and {title} has no endpoint{on}"
            yield _choice(port.groups["local"], actions, reason)


def service_on_node(_: Cluster, given: ServiceOnNode) -> Iterable[Entry]:
    """What this node has of a Service besides.

    Endpoints of its own, or meant for it alone; and what comes to its own address, by its stack.
    """
    service, node = given
    for port in service.ports:
        title = _title(service, port)
        for frontend in port.frontends:
            for stand_in in frontend.stand_ins:
                if stand_in.node == node:
                    yield from _frontend(port, frontend, title, stand_in.address)
        if "local" in port.groups and (here := topology.local(port, node)):
            at = port.groups["local"]
            reason = f"an endpoint of {title} on this node"
            yield _choice(at, [ToGroup(at)], reason, Priority.LOCAL)
            yield from _affinity(port, at, here, title)
            yield from _groups(port, "local", here)
        if "node" in port.groups and (meant := topology.hinted(port, node)):
            number = port.groups["node"]
            reason = f"an endpoint of {title} for this node"
            yield _choice(port.groups["cluster"], [ToGroup(number)], reason, Priority.LOCAL)
            yield from _groups(port, "node", meant)


def _choice(
    at: int,
    actions: list[Action],
    reason: str,
    priority: Priority = Priority.SHARED,
    fields: Mapping[str, int] | None = None,
) -> Flow:
    matched = {"Service": at, **(fields or {})}
    return LAYOUT.flow(Feature.SERVICES, "EndpointChoice", priority, matched, actions, reason)


def _frontend(
    port: ServicePort, frontend: Frontend, title: str, stand_in: IPAddress | None = None
) -> Iterable[Flow]:
    """By whom an address and port can be reached, and whose endpoints they get."""
    family = port.family
    fields: dict[str, MatchValue] = {
        "dl_type": family.ether_type,
        "nw_proto": port.protocol,
        "tp_dst": frontend.port,
    }
    priority = Priority.SHARED
    if frontend.address is None:
        fields["NodeAddress"] = 1
        # As in kube-proxy, an address of the node that another Service names goes before.
        priority = Priority.DEFAULT
        where = "its NodePort"
    else:
        fields[family.destination] = ip(stand_in or frontend.address)
        where = "this node's own address" if stand_in else str(frontend.address)
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
    ranges = (None,) if frontend.sources is None else frontend.sources
    for who, is_local, from_whom in clients:
        chosen = port.groups["local" if is_local else "cluster"]
        actions: list[Action] = [LAYOUT.load("Service", chosen)]
        if port.affinity is None:
            actions.append(LAYOUT.goto("Topology"))
        else:
            actions += [
                Resubmit(LAYOUT.goto("Affinity").table),
                LAYOUT.goto("AffinityCheck"),
            ]
        for network in ranges:
            narrowed = {**fields, **who}
            if network is not None:
                narrowed[family.source] = net(network)
            yield LAYOUT.flow(
                Feature.SERVICES, "ServiceChoice",
                priority if network is None else Priority.OVERRIDE, narrowed, actions,
                f"to {title}, by {where}{from_whom}",
            )  # fmt: skip
    if frontend.sources is not None:
        yield LAYOUT.flow(
            Feature.SERVICES, "ServiceChoice", Priority.SHARED, fields, [],
            f"to {title}, by {where}, from outside loadBalancerSourceRanges",
        )  # fmt: skip


def _affinity(port: ServicePort, at: int, endpoints: Endpoints, title: str) -> Iterable[Flow]:
    """What remembers endpoints of this choice for their clients, and lets them be used again."""
    if port.affinity is None:
        return
    family = port.family
    # A flow that is learned for longer than a flow can be idle says so to the agent.
    learned = int(Feature.LEARNED) << 56 | port.affinity
    idle = port.affinity if port.affinity <= LONGEST_IDLE else 0
    for endpoint in endpoints:
        fields: dict[str, MatchValue] = {
            "Service": at,
            "EndpointAddress": ip(endpoint.address),
            "EndpointPort": endpoint.port,
        }
        what = f"{endpoint.address}:{endpoint.port} of {title}"
        yield LAYOUT.flow(
            Feature.SERVICES, "AffinityCheck", Priority.SHARED, fields,
            [LAYOUT.goto("ServiceNat")],
            f"{what} is an endpoint still",
        )  # fmt: skip
        yield LAYOUT.flow(
            Feature.SERVICES, "ServiceNat", Priority.SHARED,
            {"dl_type": family.ether_type, "nw_proto": port.protocol, **fields},
            [
                LAYOUT.learn(
                    "Affinity", Priority.DEFAULT, learned, idle,
                    match=("Service", family.source), load=("EndpointAddress", "EndpointPort"),
                ),
                _translate(endpoint),
            ],
            f"to {what}, remembered for its client",
        )  # fmt: skip


def _groups(port: ServicePort, variant: str, endpoints: Endpoints) -> list[Group]:
    """The group that chooses among these, and those that it chooses among where they are many."""
    number = port.groups[variant]
    buckets: dict[int, Bucket] = {}
    for endpoint in endpoints:
        at = _bucket_id(f"{endpoint.address}:{endpoint.port}", buckets)
        buckets[at] = LAYOUT.bucket("EndpointChoice", at, WEIGHT, _bucket_actions(port, endpoint))
    if len(endpoints) <= MOST_BUCKETS:
        return [_group(port, number, buckets)]
    # In slices of their order, which is that of a hash: one endpoint more moves a few others from
    # slice to slice, and nobody can choose addresses so that all of them fall into one.
    parts = topology.parts(port)
    ordered = sorted(buckets)[: parts * MOST_BUCKETS]
    found: list[Group] = []
    for index in range(parts):
        start, end = (at * len(ordered) // parts for at in (index, index + 1))
        part = {at: buckets[at] for at in ordered[start:end]}
        found.append(_hashed(port, port.groups[f"part {index} of {variant}"], part))
    # All have one weight, though some have an endpoint more: it would change with each.
    top = {
        index: LAYOUT.bucket("EndpointChoice", index, WEIGHT, [ToGroup(group.id)])
        for index, group in enumerate(found)
    }
    return [*found, _hashed(port, number, top)]


def _group(port: ServicePort, number: int, buckets: dict[int, Bucket]) -> Group:
    # What learns has to pass ovs-vswitchd: a choice of the datapath's own would not be remembered.
    if port.affinity is not None or len(buckets) > MOST_SLOTTED:
        return _hashed(port, number, buckets)
    if len(buckets) > 1:
        _split_one(buckets)
    return Group(number, "dp_hash", (), _by_id(buckets))


def _hashed(port: ServicePort, number: int, buckets: dict[int, Bucket]) -> Group:
    l4, family = LAYER_4_NAMES[port.protocol], port.family
    fields = (family.source, family.destination, "nw_proto", f"{l4}_src", f"{l4}_dst")
    return Group(number, "hash", fields, _by_id(buckets))


def _split_one(buckets: dict[int, Bucket]) -> None:
    """Make the datapath use all of its 256 slots: as many as there are of the smallest weight.

    Of as many slots as endpoints, rounded up to a power of two, some would get twice what others
    do. The part split off is the power of two by which 256 are needed, and stays the same for all
    numbers of endpoints up to the next one.
    """
    part = 1 << (len(buckets) - 1).bit_length()
    first = buckets[min(buckets)]
    at = _bucket_id(f"{first.id} split", buckets)
    buckets[at] = Bucket(at, part, first.actions)
    buckets[first.id] = Bucket(first.id, WEIGHT - part, first.actions)


def _bucket_id(name: str, taken: dict[int, Bucket]) -> int:
    """A number below OFPG_BUCKET_MAX that depends on the endpoint, and hardly on the others."""
    number = _hash(name) >> 1
    while number in taken:
        number = (number + 1) & 0x7FFF_FFFF
    return number


def _by_id(buckets: dict[int, Bucket]) -> tuple[Bucket, ...]:
    return tuple(bucket for _, bucket in sorted(buckets.items()))


def _bucket_actions(port: ServicePort, endpoint: Endpoint) -> list[Action]:
    if port.affinity is None:
        return [_translate(endpoint)]
    return [
        LAYOUT.load("EndpointAddress", ip(endpoint.address)),
        LAYOUT.load("EndpointPort", endpoint.port),
        Resubmit(LAYOUT.goto("ServiceNat").table),
    ]


def _translate(endpoint: Endpoint) -> Ct:
    # In one action: the largest groups fill a message (`flows.flow.MOST_BUCKETS`).
    at, bits = ENDPOINT.value(ip(endpoint.address))
    return Ct(
        ZONE, table=LAYOUT.goto("DestinationGuard").table, commit=True,
        nat=Nat(
            destination=(ip(endpoint.address), endpoint.port), version=endpoint.address.version
        ),
        exec=(SetField("ct_mark", FROM_SERVICE | at, FROM_SERVICE | bits),),
    )  # fmt: skip


def _undo_snat() -> list[Action]:
    return [Ct(SNAT_ZONE, table=LAYOUT.goto("Conntrack").table, nat=Nat())]


def _snat(address: IPAddress) -> list[Action]:
    table = LAYOUT.goto("Output").table
    nat = Nat(source=ip(address), version=address.version)
    return [Ct(SNAT_ZONE, table=table, commit=True, nat=nat)]


def zone_number(zone: str) -> int:
    """A zone as the register `Zone` has it; never 0, which is none."""
    return _hash(zone) or 1


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")


def _title(service: Service, port: ServicePort) -> str:
    return f"{service.namespace}/{service.name}{':' + port.name if port.name else ''}"


WRITES: Final = (
    EVERY_NODE.by(every_node),
    NODE.by(node),
    ATTACHMENT.by(attachment),
    SERVICE.by(service),
    SERVICE_ON_NODE.by(service_on_node),
)
