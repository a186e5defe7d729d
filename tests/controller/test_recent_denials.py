"""The last connections that policy denied, for whoever asks."""

from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controller.inventory import Inventory
from controller.policies.slices import complete
from controller.recent_denials import MOST, MOST_TOLD, RecentDenials
from flows.policy import Direction
from tests.controller.explained_cluster import explained_cluster
from wire.documents import DeniedPair, DeniedPort, NodeDenials


class Clock:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def cluster(tmp_path: Path) -> Inventory:
    made = explained_cluster(tmp_path)
    object.__setattr__(made.view, "cluster", replace(made.view.cluster, log_denials=True))
    return made


def port_of(cluster: Inventory, pod: str) -> str:
    return next(
        each.port
        for of_node in cluster.view.attachments.values()
        for each in of_node.values()
        if each.pod == pod
    )


def denied(cluster: Inventory, pod: str = "shop/web-0", other: str = "10.244.2.8") -> DeniedPair:
    return DeniedPair(
        port_of(cluster, pod), Direction.TO_POD, IPv4Address(other), (DeniedPort(6, 22),)
    )


def test_denial_is_told_with_both_ends_and_why(cluster: Inventory) -> None:
    clock = Clock()
    recent = RecentDenials(cluster, clock)
    recent.take("n1", NodeDenials((denied(cluster),), left_out=3))
    report = complete(recent.report())
    (row,) = report.denials
    assert (row.at, row.node, str(row.pod)) == (1_000.0, "n1", "Pod shop/web-0")
    assert row.sentence.startswith("policy to the pod denied 22/TCP from pod ops/prometheus")
    assert (report.enabled, report.left_out) == (True, 3)
    assert complete(recent.report(since=1_000.0)).denials == ()
    clock.now = 1_001.0
    recent.take("n1", NodeDenials((denied(cluster, other="10.244.2.9"),)))
    assert [each.at for each in complete(recent.report()).denials] == [1_001.0, 1_000.0]


def test_agent_speaks_of_its_own_pods_only(cluster: Inventory) -> None:
    recent = RecentDenials(cluster)
    recent.take("n2", NodeDenials((denied(cluster),)))
    from_pod = DeniedPair(
        port_of(cluster, "shop/web-0"), Direction.FROM_POD, IPv4Address("10.244.2.8"),
        (DeniedPort(6, 22),),
    )  # fmt: skip
    recent.take("n1", NodeDenials((from_pod,)))
    assert complete(recent.report()).denials == ()


def test_only_the_last_are_kept_and_told(cluster: Inventory) -> None:
    recent = RecentDenials(cluster)
    pairs = tuple(denied(cluster, other=f"198.51.{n >> 8}.{n & 255}") for n in range(256))
    for _ in range(MOST // 256 + 2):
        recent.take("n1", NodeDenials(pairs))
    assert len(recent._seen) == MOST
    assert len(complete(recent.report()).denials) == MOST_TOLD


def test_nothing_is_kept_unless_denials_are_logged(tmp_path: Path) -> None:
    made = explained_cluster(tmp_path)
    recent = RecentDenials(made)
    recent.take("n1", NodeDenials((denied(made),)))
    report = complete(recent.report())
    assert (report.enabled, report.denials) == (False, ())
