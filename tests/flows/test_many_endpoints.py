"""Hostile Services: too many endpoints for a group, and zones with the same hash."""

from ipaddress import IPv4Address

import pytest

from flows import topology
from flows.features import endpoints as feature
from flows.features.endpoints import zone_number
from flows.flow import MOST_BUCKETS, Ct, Flow, Group, ToGroup
from flows.kinds import PortOfService
from flows.view import Endpoint, ServicePort
from tests.flows.worlds import CLUSTER, port, service


def crowd(endpoints: list[Endpoint]) -> ServicePort:
    parts = topology.parts(port("", [], endpoints))
    variants = ("cluster", *(f"part {part} of cluster" for part in range(parts)))
    return port("", [], endpoints, variants=variants)


def compiled(of_port: ServicePort) -> tuple[list[Flow], list[Group]]:
    entries = [*feature.service_port(CLUSTER, PortOfService(service("crowd", of_port), of_port))]
    return (
        [each for each in entries if isinstance(each, Flow)],
        [each for each in entries if isinstance(each, Group)],
    )


def groups_of(count: int) -> list[Group]:
    endpoints = [Endpoint(IPv4Address(0x0AF4_0000 + n), 80) for n in range(count)]
    return compiled(crowd(endpoints))[1]


@pytest.mark.parametrize(
    ("count", "groups"),
    [
        (1, 1),
        (MOST_BUCKETS, 1),
        (MOST_BUCKETS + 1, 1 + 2),
        (2_000, 1 + 8),
    ],
)
def test_many_endpoints_are_divided_into_groups_that_a_switch_can_hold(
    count: int, groups: int
) -> None:
    made = groups_of(count)
    assert len(made) == groups
    assert all(0 < len(group.buckets) <= MOST_BUCKETS for group in made)
    actions = [action for group in made for bucket in group.buckets for action in bucket.actions]
    to = {each.nat.destination for each in actions if isinstance(each, Ct) and each.nat}
    assert len(to) == count
    # The groups of parts come first: a switch wants them before the group that uses them.
    chosen = [each.group for each in actions if isinstance(each, ToGroup)]
    assert chosen == [group.id for group in made[:-1]]
    sizes = {len(group.buckets) for group in made[:-1]}
    assert max(sizes, default=0) - min(sizes, default=0) <= 1


def test_endpoints_above_the_limit_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology, "MAX_PARTS", 4)
    limit = 4 * MOST_BUCKETS
    made = groups_of(limit + 1)
    assert sum(len(group.buckets) for group in made[:-1]) == limit
    assert max(len(group.buckets) for group in made) == MOST_BUCKETS


def test_chosen_addresses_cannot_make_a_group_overflow() -> None:
    """The endpoints are chosen by their hashes."""
    many = (Endpoint(IPv4Address(0x0AF4_0000 + n), 80) for n in range(20_000))
    alike = [each for each in many if feature._hash(f"{each.address}:80") % 16 == 0][:600]
    assert len(alike) == 600
    endpoints = [*alike, *(Endpoint(IPv4Address(0x0AF5_0000 + n), 80) for n in range(300))]
    made = compiled(crowd(endpoints))[1]
    sizes = [len(group.buckets) for group in made[:-1]]
    assert sum(sizes) == len(endpoints)
    assert max(sizes) - min(sizes) <= 1


def test_two_zones_with_one_number_get_one_flow() -> None:
    """A user who writes hints can search for such zones. Only that Service is affected."""
    numbers: dict[int, str] = {}
    for n in range(1_000_000):
        other = numbers.setdefault(zone_number(f"z{n}"), f"z{n}")
        if other != f"z{n}":
            break
    zones = (other, f"z{n}")
    endpoints = [Endpoint(IPv4Address(n), 80, zones=(zone,)) for n, zone in enumerate(zones)]
    variants = ("cluster", *(f"zone {zone}" for zone in zones))
    flows, groups = compiled(port("", [], endpoints, variants=variants))
    assert len(flows) == len({flow.key for flow in flows})
    assert len(groups) == 2
