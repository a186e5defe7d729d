"""Which endpoint of a Service port: groups that choose, and what remembers the choice of a client.

    Affinity        which endpoint has this client had before? only with `sessionAffinity`
    AffinityCheck   is it still an endpoint?
    EndpointChoice  a select group chooses an endpoint and translates the destination to it
    ServiceNat      with affinity: remembers the choice, and translates

What a port's endpoints cause is a fragment of its own: an endpoint that comes or goes costs nothing
of the Service's other ports, nor of its addresses.
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
from flows.pipeline import ENDPOINT, FROM_SERVICE, LAYOUT, ZONE, Feature, Priority
from flows.topology import Endpoints
from flows.view import Cluster, Endpoint, ServicePort

WEIGHT: Final = 256
"""Of an endpoint in its group."""
MAX_DP_HASH_ENDPOINTS: Final = 32
"""Endpoints up to which the datapath chooses itself. It has at most 256 slots to share out: with 32
the least an endpoint has is 8, and nobody is off by more than a tenth or so."""
MAX_IDLE: Final = 0xFFFF
"""Seconds: a flow's idle timeout has 16 bits. Affinity is not longer, because only flows with a
timeout can be evicted when too many clients come."""


def service_port(_: Cluster, given: PortOfService) -> Iterable[Entry]:
    """What every node has of a Service port's endpoints."""
    service, port = given
    title = service.title(port)
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
    """A node's own choices: its endpoints where a policy is Local, and those meant for it."""
    service, node = given
    for port in service.ports:
        title = service.title(port)
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


def _affinity(port: ServicePort, at: int, endpoints: Endpoints, title: str) -> Iterable[Flow]:
    """What remembers endpoints of this choice for their clients, and lets them be used again."""
    if port.affinity is None:
        return
    family = port.family
    # Learned flows go with the last flow that learns with this cookie.
    learned = int(Feature.LEARNED) << 56 | (at & 0xFF_FFFF) << 32 | port.affinity
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
            f"to {what}, remembered for its client",
        )  # fmt: skip


def _groups(port: ServicePort, variant: str, endpoints: Endpoints) -> list[Group]:
    """The group that chooses among these, and those that it chooses among where they are many."""
    number = port.groups[variant]
    buckets: dict[int, Bucket] = {}
    with_affinity = port.affinity is not None
    for endpoint in endpoints:
        bucket = _bucket(endpoint, with_affinity=with_affinity)
        if bucket.id in buckets:
            at = _free_id(bucket.id, buckets)
            bucket = Bucket(at, bucket.weight, bucket.actions)
        buckets[bucket.id] = bucket
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
    if port.affinity is not None or len(buckets) > MAX_DP_HASH_ENDPOINTS:
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
    at = _free_id(_bucket_id(f"{first.id} split"), buckets)
    buckets[at] = Bucket(at, part, first.actions)
    buckets[first.id] = Bucket(first.id, WEIGHT - part, first.actions)


_buckets: WeakValueDictionary[tuple[int, int, bool], Bucket] = WeakValueDictionary()
"""Those that some group holds. One endpoint less must not make a thousand others anew."""


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
    """A number below OFPG_BUCKET_MAX that depends on the endpoint alone."""
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
    # In one action: the largest groups fill a message (`flows.flow.MOST_BUCKETS`).
    at, bits = ENDPOINT.value(ip(endpoint.address))
    return Ct(
        ZONE, table=LAYOUT.goto("DestinationGuard").table, commit=True,
        nat=Nat(
            destination=(ip(endpoint.address), endpoint.port), version=endpoint.address.version
        ),
        exec=(SetField("ct_mark", FROM_SERVICE | at, FROM_SERVICE | bits),),
    )  # fmt: skip


def zone_number(zone: str) -> int:
    """A zone as the register `Zone` has it; never 0, which is none."""
    return _hash(zone) or 1


def _hash(text: str) -> int:
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big")


WRITES: Final = (SERVICE_PORT.by(service_port), SERVICE_ON_NODE.by(service_on_node))
