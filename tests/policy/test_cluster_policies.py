"""ClusterNetworkPolicy: tiers, priorities, actions, and what is unknown."""

import pytest

from tests.policy.conftest import Judge
from tests.policy.manifests import (
    Part,
    allow,
    client,
    cluster,
    cluster_policy,
    cluster_rule,
    in_namespace,
    labels,
    named,
    pod,
    server,
)


def test_tiers_come_in_their_order(judge: Judge) -> None:
    """Admin is final, Pass goes on to NetworkPolicy, Baseline is for pods that none selects."""
    a_to = {"namespaces": in_namespace("a")}
    for admin, baseline, policies, allowed in (
        ("Accept", "Deny", [allow()], True),
        ("Deny", "Accept", [allow(ingress=[{}])], False),
        ("Pass", "Accept", [allow()], False),
        ("Pass", "Deny", [allow(ingress=[{}])], True),
        ("Pass", "Deny", [], False),
        ("Pass", "Pass", [], True),
        (None, "Deny", [], False),
        (None, "Deny", [allow(ingress=[{}])], True),
    ):
        tiers = [("Admin", admin), ("Baseline", baseline)]
        judge.decides(
            cluster(
                client(), server(), *policies,
                *(cluster_policy(tier.lower(), tier, 5, subject=a_to,
                                 ingress=[cluster_rule(action)])
                  for tier, action in tiers if action),
            ),
            {"a/client > a/server TCP 80": allowed},
        )  # fmt: skip


def test_priorities_decide_and_names_where_they_are_equal(judge: Judge) -> None:
    everyone = {"subject": {"namespaces": {}}}
    for one, two, allowed in ((1, 2, True), (2, 1, False), (7, 7, True), (0, 1000, True)):
        judge.decides(
            cluster(
                client(),
                server(),
                cluster_policy(
                    "b-second", priority=two, **everyone, ingress=[cluster_rule("Deny")]
                ),
                cluster_policy(
                    "a-first", priority=one, **everyone, ingress=[cluster_rule("Accept")]
                ),
            ),
            {"a/client > a/server TCP 80": allowed},
        )


def test_first_rule_of_a_policy_decides(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            client("b/client"),
            server(),
            cluster_policy(
                "order",
                subject={"pods": {"namespaceSelector": {}, "podSelector": labels(app="server")}},
                ingress=[
                    cluster_rule("Pass", **{"from": [{"namespaces": in_namespace("b")}],
                                    "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}),
                    cluster_rule("Deny", **{"from": [{"namespaces": in_namespace("b")}]}),
                    cluster_rule("Accept"),
                ],
            ),
        ),
        {
            "b/client > a/server TCP 80": True,
            "b/client > a/server TCP 81": False,
            "a/client > a/server TCP 81": True,
        },
    )  # fmt: skip


def test_pass_skips_the_other_policies_of_its_tier_only(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            server(),
            cluster_policy("a", priority=1, subject={"namespaces": {}}, ingress=[
                cluster_rule("Pass", protocols=[{"tcp": {"destinationPort": {"number": 80}}}])]),
            cluster_policy("b", priority=2, subject={"namespaces": {}},
                           ingress=[cluster_rule("Deny")]),
            cluster_policy("c", "Baseline", 0, subject={"namespaces": {}}, ingress=[
                cluster_rule("Deny", protocols=[
                    {"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}])]),
        ),
        {"a/client > a/server TCP 80": False, "a/client > a/server UDP 80": False},
    )  # fmt: skip


@pytest.mark.parametrize(
    "unknown",
    [
        {"to": [{"domainNames": ["*.example.com"]}]},
        {"to": [{}]},
        {"to": [{"namespaces": {}}, {"planets": {}}]},
        {"to": [{"namespaces": {}}], "protocols": [{"quic": {}}]},
        {"to": [{"nodes": {}}]},
        {"to": [{"namespaces": {}}], "protocols": [{"tcp": {"destinationPort": {}}}]},
        {"to": [{"namespaces": {}}], "protocols": [{"sctp": {}}]},
        {"to": [{"namespaces": {}}], "protocols": []},
    ],
    ids=str,
)
@pytest.mark.parametrize("action", ["Accept", "Deny", "Pass"])
def test_unknown_constructs_fail_closed(judge: Judge, action: str, unknown: Part) -> None:
    """An Accept matches nothing; a Deny or a Pass denies everything."""
    judge.decides(
        cluster(
            client(),
            server(),
            cluster_policy("unknown", priority=1, subject={"namespaces": {}}, egress=[
                {"action": action, **unknown}]),
            cluster_policy("later", priority=2, subject={"namespaces": {}}, egress=[
                {"action": "Accept", "to": [{"networks": ["203.0.113.0/24"]}]}]),
            cluster_policy("baseline", "Baseline", subject={"namespaces": {}}, egress=[
                {"action": "Deny", "to": [{"networks": ["0.0.0.0/0"]}]}]),
        ),
        {
            "a/client > 203.0.113.9 TCP 80": action == "Accept",
            "a/client > a/server TCP 80": False,
            "a/client > a/server ICMP": False,
        },
    )  # fmt: skip


def test_networks_of_a_cluster_policy(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            server(),
            cluster_policy("deny", subject={"namespaces": in_namespace("a")}, egress=[
                {"action": "Accept", "to": [{"networks": ["203.0.113.0/25"]}]},
                {"action": "Deny", "to": [{"networks": ["203.0.113.0/24", "10.244.2.0/24"]}]}]),
        ),
        {
            "a/client > 203.0.113.9 ICMP": True,
            "a/client > 203.0.113.200 TCP 80": False,
            "a/client > a/server TCP 80": False,
            "a/client > 198.51.100.1 TCP 80": True,
        },
    )  # fmt: skip


def test_named_port_of_a_cluster_policy_is_of_any_protocol(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            pod("a/server", "node2", {"app": "server"}, [named("dns", 5353, "UDP")]),
            pod("a/web", "node2", {"app": "server"}, [named("dns", 53)]),
            cluster_policy("deny", subject={"namespaces": {}}, egress=[
                {"action": "Deny", "to": [{"namespaces": {}}],
                 "protocols": [{"destinationNamedPort": "dns"}]}]),
        ),
        {
            "a/client > a/server UDP 5353": False,
            "a/client > a/server UDP 53": True,
            "a/client > a/server TCP 5353": True,
            "a/client > a/web TCP 53": False,
            "a/client > a/web TCP 5353": True,
        },
    )  # fmt: skip
