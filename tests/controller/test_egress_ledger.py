"""What gateways tell of their ports: who is believed, the alarm, and the report."""

from ipaddress import IPv4Address

import pytest

from controller import metrics
from controller.egress import Ledger, report
from controller.egress.ledger import LIFETIME, PORTS
from tests.controller.test_egress import NINE, World, rule
from wire.egress import AddressUse, DestinationUse, EgressUse

WEB = IPv4Address("10.244.1.5")


def use(ports: int, tracked: int = 0, capacity: int = 0) -> EgressUse:
    destination = DestinationUse(IPv4Address("203.0.113.10"), 6, 443, ports, ((WEB, ports),))
    return EgressUse(
        (AddressUse(NINE, ports, 1, ((WEB, ports),), (destination,)),), tracked, capacity
    )


@pytest.fixture
def world() -> World:
    made = World()
    made.apply(rule())
    made.give("node2")
    return made


def test_alarm_before_one_destination_has_used_all_ports(world: World) -> None:
    ledger = world.inventory.egress_ledger
    ledger.take("node2", use(int(PORTS * 0.79)))
    assert world.problem() == ""
    ledger.take("node2", use(52_000))
    assert world.problem() == (
        "203.0.113.10:443/TCP uses 52000 of 64512 source ports of 192.0.2.9,"
        " 52000 of them by default/web"
    )
    assert ledger.most_used() == pytest.approx(0.806, abs=0.001)
    ledger.take("node2", use(10))
    assert world.problem() == ""


def test_alarm_before_the_gateway_can_track_no_more(world: World) -> None:
    world.inventory.egress_ledger.take("node2", use(10, 900, 1_000))
    assert world.problem() == (
        "its gateway node2 tracks 900 of at most 1000 connections with a translated source"
    )


def test_only_the_gateway_is_believed(world: World) -> None:
    ledger = world.inventory.egress_ledger
    ledger.take("node3", use(60_000))
    assert ledger.entry("web") is None
    ledger.take("node2", use(10))
    ledger.take("node3", use(60_000))
    entry = ledger.entry("web")
    assert entry is not None
    assert entry.use.connections == 10
    assert world.problem() == ""
    world.give("node3")
    assert ledger.entry("web") is None
    assert ledger.used() == {}


def test_gateway_that_tells_no_more_is_forgotten(world: World) -> None:
    now = [0.0]
    ledger = Ledger(world.inventory.egress, world.inventory.problems, lambda: now[0])
    ledger.take("node2", use(10))
    now[0] = LIFETIME + 1
    assert ledger.entry("web") is None


def test_report_names_pods_and_ports(world: World) -> None:
    world.apply(rule("bad", address="10.244.0.9"))
    world.inventory.egress_ledger.take("node2", use(10))
    work = report.listed(world.inventory)
    while True:
        try:
            next(work)
        except StopIteration as end:
            found = end.value
            break
    by_name = {row.name: row for row in found.egress}
    row = by_name["web"]
    assert (row.gateway, row.candidates, row.pods) == (
        "node2",
        ("node2", "node3"),
        ("default/web",),
    )
    assert row.destinations[0].destination == "203.0.113.10:443/TCP"
    assert row.destinations[0].pods[0].pod == "default/web"
    assert row.since is not None
    assert by_name["bad"].problem.startswith("spec.address: 10.244.0.9 is in the pod range")


def test_metrics_name_the_egress_address(world: World) -> None:
    world.inventory.egress_ledger.take("node2", use(10))
    assert world.inventory.egress_ledger.connections() == {"web": 10.0}
    assert metrics.EGRESS_CONNECTIONS.label == "egress"


def test_report_leaves_out_what_goes_meanwhile(world: World) -> None:
    world.apply(rule("bad", address="10.244.0.9"))
    # The objects change at once, what follows from them in slices.
    world.inventory.egress_addresses.remove("", "bad")
    work = report.listed(world.inventory)
    rows: list[str] = []
    while True:
        try:
            next(work)
        except StopIteration as end:
            rows = [row.name for row in end.value.egress]
            break
    assert "bad" in world.inventory.egress.ordered()
    assert rows == ["web"]
