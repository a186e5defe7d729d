"""BGPPeers: which of them can be used, and what is wrong with the others."""

import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

from controller.policies.selectors import EVERYTHING, Selector, read_selector
from controller.service_fields import PORTS, FieldProblems
from controller.sources.routed_objects import BGPPeerObject, BGPPeerSpec
from flows.family import IPAddress
from flows.view import Cluster
from settings.plain_yaml import shown
from wire.bgp import MAX_PEERS

POD_RANGES: Final = "PodRanges"
LOAD_BALANCER_ADDRESSES: Final = "LoadBalancerAddresses"
CLUSTER_IPS: Final = "ClusterIPs"
EXTERNAL_IPS: Final = "ExternalIPs"
EGRESS_ADDRESSES: Final = "EgressAddresses"
KINDS: Final = (
    POD_RANGES, LOAD_BALANCER_ADDRESSES, CLUSTER_IPS, EXTERNAL_IPS, EGRESS_ADDRESSES,
)  # fmt: skip
"""What a peer can be told."""
DEFAULT_KINDS: Final = frozenset((POD_RANGES, LOAD_BALANCER_ADDRESSES))
CONTROLLERS: Final = "Controllers"
NODES: Final = "Nodes"
MAX_OBJECTS: Final = 256
"""BGPPeers that are looked at, the oldest ones."""
MAX_COMMUNITIES: Final = 32
MAX_PASSWORD: Final = 80
"""Bytes (TCP_MD5SIG_MAXKEYLEN of Linux)."""
_AS_TRANS: Final = 23_456
"""Stands for AS numbers that do not fit in two bytes (RFC 6793)."""
_ASNS: Final = range(1, (1 << 32) - 1)
_COMMUNITY: Final = re.compile(r"([0-9]{1,5}):([0-9]{1,5})")
_CA: Final = "sluice-ca"
"""The Secret that the controller may read for another purpose (`settings.ControllerEnrolment`)."""
_NAME: Final = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-.a-z0-9]*[a-z0-9])?")
"""Of an object, as Kubernetes allows it, about (RFC 1123)."""
_LARGE_COMMUNITY: Final = re.compile(r"([0-9]{1,10}):([0-9]{1,10}):([0-9]{1,10})")


@dataclass(frozen=True, slots=True)
class PeerDraft:
    """A BGPPeer that can be used. Units as in its CRD."""

    name: str
    address: IPv4Address
    port: int
    asn: int
    local_asn: int
    from_nodes: bool
    """Each selected node has a session; otherwise each controller has."""
    nodes: Selector
    """Those that are announced."""
    kinds: frozenset[str]
    communities: tuple[str, ...]
    local_preference: int | None
    password: tuple[str, str] | None
    """The name of a Secret, and the key in it."""
    hold_time: int
    graceful_restart: int
    multihop: int


@dataclass(frozen=True, slots=True)
class Judgement:
    """What became of all BGPPeers."""

    peers: tuple[PeerDraft, ...]
    """The oldest first."""
    problems: Mapping[str, str]
    """By BGPPeer. One that is used may have a problem, too."""


def judge(
    objects: Iterable[BGPPeerObject],
    cluster: Cluster,
    node_of: Callable[[IPAddress], str],
    selected: Callable[[Selector], frozenset[str]],
) -> Generator[None, None, Judgement]:
    """Read all BGPPeers, in steps. Where two contradict each other, the older one counts.

    `node_of`: the Node that has an address; empty: none. `selected`: the nodes that match.
    """
    peers: list[PeerDraft] = []
    problems: dict[str, str] = {}
    # Without a time it is the youngest, as a Node is.
    by_age = sorted(
        objects,
        key=lambda each: (each.metadata.creation_timestamp or "never", each.metadata.name),
    )
    by_place: dict[tuple[IPv4Address, int, bool], list[PeerDraft]] = {}
    for number, given in enumerate(by_age):
        yield
        name = given.metadata.name
        if number >= MAX_OBJECTS:
            problems[name] = f"there are {MAX_OBJECTS} older BGPPeers, which is the most"
            continue
        found = FieldProblems()
        draft = _read(name, given.spec, cluster, node_of, found)
        if draft is not None:
            place = draft.address, draft.port, draft.from_nodes
            older = None
            for each in by_place.get(place, ()):
                yield
                if _collide(each, draft, selected):
                    older = each
                    break
            if older is not None:
                found.append(f"spec.address: {draft.address} is the address of {older.name}, too")
            else:
                by_place.setdefault(place, []).append(draft)
                peers.append(draft)
        if found:
            problems[name] = "; ".join(found)
    return Judgement(tuple(peers), problems)


def beyond_limit(
    peers: Iterable[PeerDraft], speakers: Callable[[PeerDraft], Collection[str]]
) -> Generator[None, None, tuple[frozenset[str], dict[str, str]]]:
    """The peers that no speaker has room for, and what to report of peers that some have none for.

    `speakers`: the nodes that have a session with a peer; the empty name stands for controllers.
    Each takes the first `MAX_PEERS`.
    """
    counts = Counter[str]()
    unused: set[str] = set()
    problems: dict[str, str] = {}
    for peer in peers:
        yield
        of_peer = speakers(peer)
        full = [name for name in of_peer if counts[name] >= MAX_PEERS]
        counts.update(of_peer)
        if not full:
            continue
        where = f"on {len(full)} of its nodes, as {min(full)}, " if peer.from_nodes else ""
        problems[peer.name] = f"{where}it has no session: {MAX_PEERS} older BGPPeers are the most"
        if len(full) == len(of_peer):
            unused.add(peer.name)
    return frozenset(unused), problems


def _collide(
    one: PeerDraft, other: PeerDraft, selected: Callable[[Selector], frozenset[str]]
) -> bool:
    """Whether some speaker would have both of two peers with one address."""
    return not one.from_nodes or not selected(one.nodes).isdisjoint(selected(other.nodes))


def _read(
    name: str,
    spec: BGPPeerSpec,
    cluster: Cluster,
    node_of: Callable[[IPAddress], str],
    problems: FieldProblems,
) -> PeerDraft | None:
    """None: it cannot be used."""
    address = problems.address("spec.address", spec.address, quiet_ipv6=False)
    if address is not None and (why := _why_not(address, cluster, node_of)):
        problems.append(f"spec.address: {address} is {why}")
    _within(problems, "port", spec.port, PORTS)
    for field, asn in (("asn", spec.asn), ("localASN", spec.local_asn)):
        _within(problems, field, asn, _ASNS)
        if asn == _AS_TRANS:
            problems.append(f"spec.{field}: {asn} is reserved (RFC 6793)")
    if spec.from_ not in {CONTROLLERS, NODES}:
        problems.append(f"spec.from: {shown(spec.from_)} is neither {CONTROLLERS} nor {NODES}")
    problems += [
        f"spec.announce: {shown(kind)} is none of {', '.join(KINDS)}"
        for kind in spec.announce or ()
        if kind not in KINDS
    ]
    _read_communities(spec, problems)
    _within(problems, "holdTimeSeconds", spec.hold_time_seconds, range(3, 1 << 16))
    _within(problems, "gracefulRestartSeconds", spec.graceful_restart_seconds, range(1 << 12))
    _within(problems, "multihop", spec.multihop, range(1 << 8))
    _within(problems, "localPreference", spec.local_preference or 0, range(1 << 32))
    if spec.password_secret is not None and not _NAME.fullmatch(spec.password_secret.name):
        # It becomes a part of a path at the API server.
        name_shown = shown(spec.password_secret.name)
        problems.append(f"spec.passwordSecret.name: {name_shown} is no name of a Secret")
    elif spec.password_secret is not None and spec.password_secret.name == _CA:
        problems.append(f"spec.passwordSecret.name: {_CA} has the key of the nodes' CA")
    selector, _ = read_selector(spec.node_selector, "spec.nodeSelector", problems)
    if problems or address is None:
        return None
    preference = spec.local_preference
    if preference is not None and spec.asn != spec.local_asn:
        problems.append(
            "spec.localPreference has no effect: the peer is in another AS (RFC 4271, 5.1.5)"
        )
        preference = None
    secret = spec.password_secret
    return PeerDraft(
        name=name,
        address=address,
        port=spec.port,
        asn=spec.asn,
        local_asn=spec.local_asn,
        from_nodes=spec.from_ == NODES,
        nodes=selector or EVERYTHING,
        kinds=frozenset(spec.announce) if spec.announce is not None else DEFAULT_KINDS,
        communities=spec.communities or (),
        local_preference=preference,
        password=(secret.name, secret.key or "password") if secret is not None else None,
        hold_time=spec.hold_time_seconds,
        graceful_restart=spec.graceful_restart_seconds,
        multihop=spec.multihop,
    )


def _why_not(address: IPv4Address, cluster: Cluster, node_of: Callable[[IPAddress], str]) -> str:
    """Why a peer cannot have this address; empty: it can."""
    for what, network in (
        ("the pod range", cluster.pod_range),
        ("the Service range", cluster.service_range),
    ):
        if address in network:
            return f"inside {what} {network}"
    if node := node_of(address):
        return f"the address of Node {node}"
    return ""


def _within(problems: FieldProblems, field: str, value: int, values: range) -> None:
    if value not in values:
        problems.append(f"spec.{field}: {value} is not in {values.start} to {values.stop - 1}")


def _read_communities(spec: BGPPeerSpec, problems: FieldProblems) -> None:
    given = spec.communities or ()
    if len(given) > MAX_COMMUNITIES:
        problems.append(f"spec.communities: {MAX_COMMUNITIES} are the most")
        return
    for each in given:
        two, three = _COMMUNITY.fullmatch(each), _LARGE_COMMUNITY.fullmatch(each)
        most = (1 << 16) - 1 if two else (1 << 32) - 1
        match = two or three
        if match is None or any(int(number) > most for number in match.groups()):
            problems.append(
                f"spec.communities: {shown(each)} is neither ASN:VALUE, each at most 65535, nor"
                " three numbers of 32 bits"
            )
