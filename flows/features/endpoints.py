"""The endpoint of a Service port: groups that choose it, and session affinity.

    Affinity        the endpoint of the client's last connection; only with `sessionAffinity`
    AffinityCheck   checks that it is still an endpoint
    EndpointChoice  a select group chooses an endpoint and translates the destination to it
    ServiceNat      with affinity: learns the choice, and translates

The endpoints of a port are a fragment of their own: if one is added or removed, the flows of other
ports and of addresses of the Service stay.
"""

from collections.abc import Iterable, Mapping
from hashlib import blake2b
from typing import Final
from weakref import WeakValueDictionary

from flows import topology
from flows.features.protocols import LAYER_4_NAMES
from flows.flow import (
    MOST_BUCKETS,
    Action,
    Bucket,
    Ct,
    Flow,
    Group,
    MatchValue,
    Nat,
    Resubmit,
    SetField,
    ToGroup,
    ip,
)
from flows.kinds import SERVICE_ON_NODE, SERVICE_PORT, Entry, PortOfService, ServiceOnNode
from flows.pipeline import CT_ZONE, ENDPOINT, FROM_SERVICE, LAYOUT, Feature, Priority
from flows.topology import Endpoints
from flows.view import Cluster, Endpoint, ServicePort

WEIGHT: Final = 256
"""The weight of an endpoint's bucket in its group."""
MAX_DP_HASH_ENDPOINTS: Final = 32
"""Up to so many endpoints, the datapath itself chooses (`dp_hash`). It has at most 256 slots: with
32 endpoints each has 8 slots or more, so no share is wrong by more than about a tenth."""
MAX_IDLE: Final = 0xFFFF
"""Seconds: the idle timeout of a flow has 16 bits. Affinity cannot be longer, because a full table
evicts only flows with a timeout."""


def service_port(_: Cluster, given: PortOfService) -> Iterable[Entry]:
    """The flows and groups of the endpoints of a Service port that every node has."""
    service, port = given
    title = service.title(port)
    group_id = port.groups["cluster"]
    everywhere = topology.everywhere(port)
    if everywhere:
        yield _choice(group_id, [ToGroup(group_id)], f"an endpoint of {title}")
        yield from _groups(port, "cluster", everywhere)
    else:
        yield _choice(group_id, [LAYOUT.goto("Refuse")], f"{title} has no endpoint")
    # By number: if two zone names have one number, only one of them counts.
    by_number = {zone_number(zone): (zone, of) for zone, of in topology.zones(port).items()}
    for in_zone, (zone, chosen) in by_number.items():
        number, fields = port.groups[f"zone {zone}"], {"TopologyZone": in_zone}
        reason = f"an endpoint of {title} for zone {zone}"
        yield _choice(group_id, [ToGroup(number)], reason, Priority.OVERRIDE, fields)
        yield from _groups(port, f"zone {zone}", chosen)
    yield from _affinity(port, group_id, everywhere, title)
    if "local" in port.groups:
        # If this node has an endpoint, a node flow with a higher priority matches first. As in
        # kube-proxy, the packet is dropped, and not refused, if other nodes have an endpoint:
        # load balancers then try another node.
        actions: list[Action] = [] if everywhere else [LAYOUT.goto("Refuse")]
        on = " on this node" if everywhere else ""
        reason = f"the policy is Local, and {title} has no endpoint{on}"
        yield _choice(port.groups["local"], actions, reason)


def service_on_node(_: Cluster, given: ServiceOnNode) -> Iterable[Entry]:
    """The choices of one node: its endpoints for the policy Local, and those hinted for it."""
    service, node = given
    for port in service.ports:
        title = service.title(port)
        if "local" in port.groups and (here := topology.local(port, node)):
            group_id = port.groups["local"]
            reason = f"an endpoint of {title} on this node"
            yield _choice(group_id, [ToGroup(group_id)], reason, Priority.LOCAL)
            yield from _affinity(port, group_id, here, title)
            yield from _groups(port, "local", here)
        if "node" in port.groups and (meant := topology.hinted(port, node)):
            number = port.groups["node"]
            reason = f"an endpoint of {title} for this node"
            yield _choice(port.groups["cluster"], [ToGroup(number)], reason, Priority.LOCAL)
            yield from _groups(port, "node", meant)


def _choice(
    group_id: int,
    actions: list[Action],
    reason: str,
    priority: Priority = Priority.SHARED,
    fields: Mapping[str, int] | None = None,
) -> Flow:
    matched = {"Service": group_id, **(fields or {})}
    return LAYOUT.flow(Feature.SERVICES, "EndpointChoice", priority, matched, actions, reason)


def _affinity(port: ServicePort, group_id: int, endpoints: Endpoints, title: str) -> Iterable[Flow]:
    """Session affinity: flows that learn the endpoint of a client, and that check a learned one."""
    if port.affinity is None:
        return
    family = port.family
    # A switch removes learned flows with the last flow that learns with their cookie.
    learned = int(Feature.LEARNED) << 56 | (group_id & 0xFF_FFFF) << 32 | port.affinity
    for endpoint in endpoints:
        fields: dict[str, MatchValue] = {
            "Service": group_id,
            "EndpointAddress": ip(endpoint.address),
            "EndpointPort": endpoint.port,
        }
        what = f"{endpoint.address}:{endpoint.port} of {title}"
        yield LAYOUT.flow(
            Feature.SERVICES, "AffinityCheck", Priority.SHARED, fields,
            [LAYOUT.goto("ServiceNat")],
            f"{what} is still an endpoint",
        )  # fmt: skip
        yield LAYOUT.flow(
            Feature.SERVICES, "ServiceNat", Priority.SHARED,
            {"dl_type": family.ether_type, "nw_proto": port.protocol, **fields},
            [
                LAYOUT.learn(
                    "Affinity", Priority.DEFAULT, learned, port.affinity,
                    match=("Service", family.source), load=("EndpointAddress", "EndpointPort"),
                ),
                _translate(endpoint),
            ],
            f"to {what}, learned for the client",
        )  # fmt: skip


def _groups(port: ServicePort, variant: str, endpoints: Endpoints) -> list[Group]:
    """The group that chooses an endpoint, after the groups of its parts if there are many."""
    number = port.groups[variant]
    buckets: dict[int, Bucket] = {}
    with_affinity = port.affinity is not None
    for endpoint in endpoints:
        bucket = _bucket(endpoint, with_affinity=with_affinity)
        if bucket.id in buckets:
            bucket_id = _free_id(bucket.id, buckets)
            bucket = Bucket(bucket_id, bucket.weight, bucket.actions)
        buckets[bucket.id] = bucket
    if len(endpoints) <= MOST_BUCKETS:
        return [_group(port, number, buckets)]
    # Equal slices in the order of a hash: one more endpoint moves only a few others between slices,
    # and no choice of addresses makes one slice overflow.
    parts = topology.parts(port)
    ordered = sorted(buckets)[: parts * MOST_BUCKETS]
    found: list[Group] = []
    for index in range(parts):
        start, end = (each * len(ordered) // parts for each in (index, index + 1))
        part = {bucket_id: buckets[bucket_id] for bucket_id in ordered[start:end]}
        found.append(_hashed(port, port.groups[f"part {index} of {variant}"], part))
    # One weight for all, though some have one more endpoint: exact weights would change too often.
    top = {
        index: LAYOUT.bucket("EndpointChoice", index, WEIGHT, [ToGroup(group.id)])
        for index, group in enumerate(found)
    }
    return [*found, _hashed(port, number, top)]


def _group(port: ServicePort, number: int, buckets: dict[int, Bucket]) -> Group:
    # With affinity, ovs-vswitchd must choose: it cannot learn from a choice of the datapath.
    if port.affinity is not None or len(buckets) > MAX_DP_HASH_ENDPOINTS:
        return _hashed(port, number, buckets)
    if len(buckets) == 1:
        # Nothing to choose, so nothing to recirculate for. The field is matched in any case.
        return Group(number, "hash", ("nw_proto",), _by_id(buckets))
    _split_one(buckets)
    return Group(number, "dp_hash", (), _by_id(buckets))


def _hashed(port: ServicePort, number: int, buckets: dict[int, Bucket]) -> Group:
    l4, family = LAYER_4_NAMES[port.protocol], port.family
    fields = (family.source, family.destination, "nw_proto", f"{l4}_src", f"{l4}_dst")
    return Group(number, "hash", fields, _by_id(buckets))


def _split_one(buckets: dict[int, Bucket]) -> None:
    """Split one bucket in two, so that the datapath uses all of its 256 slots.

    Open vSwitch takes as many slots as the sum of weights has of the smallest weight, rounded up to
    a power of two. With equal weights that is about one slot for each endpoint, and some endpoints
    get two. The weight of the split part is a power of two that makes it 256 slots; it changes only
    when the number of endpoints passes a power of two.
    """
    part = 1 << (len(buckets) - 1).bit_length()
    first = buckets[min(buckets)]
    split_id = _free_id(_bucket_id(f"{first.id} split"), buckets)
    buckets[split_id] = Bucket(split_id, part, first.actions)
    buckets[first.id] = Bucket(first.id, WEIGHT - part, first.actions)


_buckets: WeakValueDictionary[tuple[int, int, bool], Bucket] = WeakValueDictionary()
"""The buckets in use. A change of one endpoint must not create the buckets of all others again."""


def _bucket(endpoint: Endpoint, *, with_affinity: bool) -> Bucket:
    key = int(endpoint.address), endpoint.port, with_affinity
    found = _buckets.get(key)
    if found is None:
        actions = _bucket_actions(endpoint, with_affinity=with_affinity)
        number = _bucket_id(f"{endpoint.address}:{endpoint.port}")
        found = LAYOUT.bucket("EndpointChoice", number, WEIGHT, actions)
        _buckets[key] = found
    return found


def _bucket_id(name: str) -> int:
    """A number below OFPG_BUCKET_MAX that depends only on the endpoint."""
    return _hash(name) >> 1


def _free_id(number: int, taken: dict[int, Bucket]) -> int:
    while number in taken:
        number = (number + 1) & 0x7FFF_FFFF
    return number


def _by_id(buckets: dict[int, Bucket]) -> tuple[Bucket, ...]:
    return tuple(bucket for _, bucket in sorted(buckets.items()))


def _bucket_actions(endpoint: Endpoint, *, with_affinity: bool) -> list[Action]:
    if not with_affinity:
        return [_translate(endpoint)]
    return [
        LAYOUT.load("EndpointAddress", ip(endpoint.address)),
        LAYOUT.load("EndpointPort", endpoint.port),
        Resubmit(LAYOUT.goto("ServiceNat").table),
    ]


def _translate(endpoint: Endpoint) -> Ct:
    # One action only: the largest groups fill a message (`flows.flow.MOST_BUCKETS`).
    mark, bits = ENDPOINT.value(ip(endpoint.address))
    return Ct(
        CT_ZONE, table=LAYOUT.goto("DestinationGuard").table, commit=True,
        nat=Nat(
            destination=(ip(endpoint.address), endpoint.port), version=endpoint.address.version
        ),
        exec=(SetField("ct_mark", FROM_SERVICE | mark, FROM_SERVICE | bits),),
    )  # fmt: skip


def zone_number(zone: str) -> int:
    """The number of a zone in the register field `TopologyZone`; never 0, which means no zone."""
    return _hash(zone) or 1


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")


WRITES: Final = (SERVICE_PORT.by(service_port), SERVICE_ON_NODE.by(service_on_node))
