"""What a change does, found by sets of ends, equals what each pair of ends says by itself."""

import random
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from itertools import product
from typing import TypeVar

import pytest

from controller.what_if.bits import bits_of, numbers_of
from controller.what_if.compare import Comparison, compare
from controller.what_if.ends import ANYWHERE, NODES, Ends, make_ends
from controller.what_if.ports import OTHER, Piece, in_words, pieces
from controller.what_if.state import Evaluator, State
from flows.family import IPAddress
from flows.policy import (
    EVERY_PORT,
    Direction,
    Isolation,
    PeerBlock,
    PeerMember,
    PeerSet,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    PortRange,
    PortSet,
    Walks,
    policy_digest,
)
from flows.refs import ObjectRef
from flows.view import ClusterView
from tests.flows.worlds import CLUSTER, SCTP, TCP, UDP, attachment, node

T = TypeVar("T")

NETWORKS = [IPv4Network(text) for text in (
    "0.0.0.0/0", "192.0.2.0/24", "192.0.2.128/25", "198.51.100.7/32", "172.30.1.0/24",
    "10.244.1.0/24", "10.0.0.0/8",
)]  # fmt: skip
SOME_PORTS = [
    PortRange(TCP, 80, 80), PortRange(TCP, 79, 90), PortRange(UDP), PortRange(UDP, 53, 53),
    PortRange(SCTP, 1, 65535), PortRange(TCP, 8000, 65535),
]  # fmt: skip
SAMPLES = [
    (OTHER, 0), *((p, n) for p in (TCP, UDP, SCTP) for n in (1, 53, 79, 80, 85, 91, 8000, 65535)),
]  # fmt: skip


def world(seed: int) -> ClusterView:
    """Three nodes with four pods each, and random policies for them."""
    chance = random.Random(seed)  # noqa: S311
    nodes = {each.name: each for each in map(node, (1, 2, 3))}
    attachments = {
        each.name: {
            made.port: made
            for made in (attachment(each, n, f"ns/pod-{each.name}-{n}") for n in range(4))
        }
        for each in nodes.values()
    }
    pods = [each for some in attachments.values() for each in some.values()]
    port_sets = {
        number: PortSet(number, tuple(chance.sample(SOME_PORTS, chance.randint(1, 2))))
        for number in range(1, 4)
    }
    sets: dict[int, PeerSet] = {}
    members: dict[int, dict[str, PeerMember]] = {}
    for number in range(1, 7):
        direction = Direction.FROM_POD if number % 2 else Direction.TO_POD
        blocks = tuple(
            PeerBlock(network, chance.random() < 0.7)
            for network in chance.sample(NETWORKS, chance.randint(0, 3))
        )
        everybody = chance.random() < 0.2
        sets[number] = PeerSet(
            number,
            direction,
            blocks,
            (IPv4Network("10.244.0.1/32"),) if everybody else None,
            0xFFFF00FF if everybody else None,
        )
        members[number] = {
            str(pod.address): PeerMember(number, direction, pod.address, pod.ref)
            for pod in chance.sample(pods, chance.randint(0, 4))
        }
    walks: dict[int, PolicyWalk] = {}
    for number in range(10, 22):
        direction = Direction.FROM_POD if number % 2 else Direction.TO_POD
        is_policy = number < 16
        walks[number] = PolicyWalk(
            number,
            direction,
            ObjectRef("NetworkPolicy" if is_policy else "ClusterNetworkPolicy", "", f"p{number}"),
            tuple(
                PolicyStep(
                    policy_digest(f"{number} {rule}") >> 32 or 1,
                    PolicyAction.ACCEPT if is_policy else chance.choice(list(PolicyAction)),
                    chance.choice(
                        [None, *(each.id for each in sets.values() if each.direction is direction)]
                    ),
                    chance.choice([EVERY_PORT, *port_sets]),
                )
                for rule in range(chance.randint(0, 3))
            ),
        )

    def some_walks(direction: Direction) -> Walks | None:
        if chance.random() < 0.3:
            return None
        own = [number for number in walks if walks[number].direction is direction]
        policies = tuple(n for n in own if n < 16 and chance.random() < 0.5)
        return Walks(
            tuple(n for n in own if 16 <= n < 19 and chance.random() < 0.4),
            isolated=bool(policies) or chance.random() < 0.3,
            policies=policies,
            baseline=tuple(n for n in own if n >= 19 and chance.random() < 0.5),
            refused=chance.random() < 0.05,
        )

    kinds = [(some_walks(Direction.FROM_POD), some_walks(Direction.TO_POD)) for _ in range(4)]
    isolations: dict[str, dict[str, Isolation]] = {}
    for name, some in attachments.items():
        for each in some.values():
            isolations.setdefault(name, {})[each.port] = Isolation(each, *chance.choice(kinds))
    return ClusterView(
        CLUSTER, nodes, attachments, isolations=isolations,
        walks=_named(walks), peer_sets=_named(sets), peer_members=_named(members),
        port_sets=_named(port_sets),
    )  # fmt: skip


def _named(given: dict[int, T]) -> dict[str, T]:
    return {f"{number:016x}": value for number, value in given.items()}


def variant(view: ClusterView, seed: int) -> ClusterView:
    """The same cluster with some policies changed."""
    other = world(seed)
    chance = random.Random(seed)  # noqa: S311
    what = chance.choice(["isolations", "walks", "peer_sets", "peer_members", "port_sets"])
    old, new = getattr(view, what), getattr(other, what)
    some = {key: chance.choice([old, new]).get(key, old[key]) for key in old}
    if what == "isolations":
        some = {
            name: {
                port: chance.choice([each, each._replace(to_pod=None), new[name][port]])
                for port, each in pods.items()
            }
            for name, pods in old.items()
        }
    return replace(view, **{what: some})


# --- each pair by itself ---


def is_member(view: ClusterView, number: int, address: IPAddress) -> bool:
    name = f"{number:016x}"
    if str(address) in view.peer_members[name]:
        return True
    found = view.peer_sets[name]
    blocks = [each for each in found.blocks if address in each.network]
    if blocks and max(blocks, key=lambda each: each.network.prefixlen).is_member:
        return True
    return found.outsiders is not None and address in CLUSTER.pod_range and address.packed[3] != 1


def holds(view: ClusterView, number: int, protocol: int, port: int) -> bool:
    return number == EVERY_PORT or any(
        each.protocol == protocol and (each.first is None or each.first <= port <= (each.last or 0))
        for each in view.port_sets[f"{number:016x}"].ranges
    )


def accepts(view: ClusterView, walks: Walks | None, peer: IPAddress, at: tuple[int, int]) -> bool:
    if walks is None:
        return True
    if walks.refused:
        return False
    for tier in (walks.admin, walks.policies if walks.isolated else walks.baseline):
        for step in (s for number in tier for s in view.walks[f"{number:016x}"].steps):
            if step.peers is not None and not is_member(view, step.peers, peer):
                continue
            if not holds(view, step.ports, *at):
                continue
            if step.action is PolicyAction.PASS:
                break
            return step.action is PolicyAction.ACCEPT
    return not walks.isolated


def reaches(view: ClusterView, ends: Ends, source: int, target: int, at: tuple[int, int]) -> bool:
    def walks(number: int, place: int) -> Walks | None:
        end = ends.ends[number]
        for each in view.isolations.get(end.node, {}).values():
            if each.attachment.pod == end.name:
                return (each.from_pod, each.to_pod)[place]
        return None

    one, other = ends.ends[source], ends.ends[target]
    return accepts(view, walks(source, 0), other.address, at) and accepts(
        view, walks(target, 1), one.address, at
    )


def undecided(ends: Ends, source: int, target: int) -> bool:
    """Whether policies decide nothing here: a pod and itself, a node and its own pods."""
    one, other = ends.ends[source], ends.ends[target]
    own = one.workload == NODES and other.workload != NODES and one.node == other.node
    return source == target or own or not one.opens or not other.accepts


def ends_of(view: ClusterView) -> Ends:
    pods = [each for some in view.attachments.values() for each in some.values()]
    workloads = {
        each.pod: ObjectRef("Deployment", "ns", f"app{number % 3}")
        for number, each in enumerate(pods)
    }
    return make_ends(view, workloads, frozenset({"ns/pod-node1-1"}), NETWORKS)


def compared(before: ClusterView, after: ClusterView) -> tuple[Ends, Comparison]:
    ends = ends_of(before)
    old, new = (Evaluator(State.of(view), ends, view) for view in (before, after))
    return ends, compare(old, new)


@pytest.mark.parametrize("seed", range(40))
def test_comparison_equals_that_of_each_pair(seed: int) -> None:
    before = world(seed)
    after = variant(before, seed + 1000)
    ends, found = compared(before, after)
    rows = {True: found.lost.rows, False: found.gained.rows}
    told: dict[tuple[bool, int, int], set[tuple[int, int]]] = {}
    for change in found.changes:
        at = {
            (protocol, port) for protocol, port in SAMPLES
            if any(p == protocol and first <= port <= last for p, first, last in change.pieces)
        }  # fmt: skip
        for pair in product(numbers_of(change.sources), numbers_of(change.destinations)):
            known = told.setdefault((change.lost, *pair), set())
            known |= at
    for source, target in product(range(len(ends)), repeat=2):
        if undecided(ends, source, target):
            assert not any(row[source] >> target & 1 for row in rows.values())
            continue
        old, new = (
            {at for at in SAMPLES if reaches(view, ends, source, target, at)}
            for view in (before, after)
        )
        assert told.get((True, source, target), set()) == old - new
        assert told.get((False, source, target), set()) == new - old
        assert bool(rows[True][source] >> target & 1) == bool(old - new)
        assert bool(rows[False][source] >> target & 1) == bool(new - old)
        if found.kept.rows[source] >> target & 1:
            assert old == new != set()


def test_only_what_the_change_concerns_is_compared() -> None:
    view = world(3)
    _, found = compared(view, view)
    assert not found.changes
    assert (found.lost.pairs, found.gained.pairs, found.kept.pairs) == (0, 0, 0)


def test_pods_that_do_not_exist_are_not_counted_as_pairs() -> None:
    before = world(4)
    after = replace(before, isolations={})
    ends, found = compared(before, after)
    missing = next(number for number, end in enumerate(ends.ends) if not end.exists)
    gained = found.gained.rows
    pairs = sum(row.bit_count() for row in gained)
    missing_pairs = gained[missing].bit_count() + sum(row >> missing & 1 for row in gained)
    assert missing_pairs
    assert found.gained.pairs == pairs - missing_pairs


# --- ranges outside ---


def test_each_range_outside_is_one_end() -> None:
    ends = ends_of(world(1))
    ranges = {end.name: end.address for end in ends.ends if end.workload.kind == "outside"}
    # 172.30.1.0/24 has addresses besides those of the nodes.
    assert ranges == {
        "any other address": IPv4Address("0.0.0.1"),
        "10.0.0.0/8": IPv4Address("10.0.0.0"),
        "192.0.2.0/24": IPv4Address("192.0.2.0"),
        "192.0.2.128/25": IPv4Address("192.0.2.128"),
        "198.51.100.7/32": IPv4Address("198.51.100.7"),
        "172.30.1.0/24": IPv4Address("172.30.1.0"),
    }


def test_a_range_that_longer_ones_cover_is_no_end() -> None:
    halves = [IPv4Network("192.0.2.0/25"), IPv4Network("192.0.2.128/25")]
    ends = make_ends(world(1), {}, frozenset(), [IPv4Network("192.0.2.0/24"), *halves])
    names = {end.name for end in ends.ends if end.workload.kind == "outside"}
    assert names == {"any other address", *map(str, halves)}


def test_many_ranges_cost_little() -> None:
    many = [IPv4Network((int(IPv4Address("11.0.0.0")) + 4 * n, 32)) for n in range(10_000)]
    ends = make_ends(world(1), {}, frozenset(), [IPv4Network("11.0.0.0/8"), ANYWHERE, *many])
    assert sum(end.workload.kind == "outside" for end in ends.ends) == 10_002


# --- ports ---


def test_pieces_have_the_sets_that_hold_them() -> None:
    cut = pieces({
        1: PortSet(1, (PortRange(TCP, 80, 80), PortRange(TCP, 81, 90), PortRange(UDP))),
        2: PortSet(2, (PortRange(TCP, 85, 65535),)),
    })  # fmt: skip
    assert {piece: set(sets) for piece, sets in cut.items()} == {
        Piece(OTHER, 0, 0): set(),
        Piece(TCP, 1, 79): set(),
        Piece(TCP, 80, 84): {1},
        Piece(TCP, 85, 90): {1, 2},
        Piece(TCP, 91, 65535): {2},
        Piece(UDP, 1, 65535): {1},
        Piece(SCTP, 1, 65535): set(),
    }


def test_ports_in_words_are_short() -> None:
    cut = pieces({1: PortSet(1, (PortRange(TCP, 80, 80), PortRange(TCP, 8000, 8010)))})
    tcp = [piece for piece in cut if piece.protocol == TCP]
    web = [piece for piece in tcp if piece.first in {80, 8000}]
    assert in_words(cut, cut) == ["every port and protocol"]
    assert in_words(tcp, cut) == ["all TCP"]
    assert in_words(web, cut) == ["80/TCP", "8000-8010/TCP"]
    assert in_words(set(cut) - set(web), cut) == [
        "TCP but 80, 8000-8010", "all UDP", "all SCTP", "ICMP and other protocols",
    ]  # fmt: skip


def test_bits_are_sets_of_numbers() -> None:
    for numbers in ([], [0], [3, 4, 700], list(range(0, 900, 2))):
        assert list(numbers_of(bits_of(numbers, 1000))) == numbers
