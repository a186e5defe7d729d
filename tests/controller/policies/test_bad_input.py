"""What is wrong in a policy is named with its field; the rest is in force, and nothing opens."""

from unittest.mock import patch

import pytest

from controller.events import notices_of
from flows import policy as flows_policy
from flows.policy import Direction
from tests.controller.policies.clusters import PolicyCluster, policy
from tests.controller.policies.histories import cluster_policy

FROM, TO = Direction.FROM_POD, Direction.TO_POD
WEB = {"matchLabels": {"app": "web"}}


@pytest.fixture
def cluster() -> PolicyCluster:
    made = PolicyCluster()
    made.namespace("shop", team="red")
    made.pod("shop/web", "10.244.1.5", {"app": "web"}, containers=[{"ports": HTTP}])
    made.pod("shop/db", "10.244.2.5", {"app": "db"})
    return made


HTTP = [{"name": "http", "containerPort": 8080}]


@pytest.mark.parametrize(
    ("rule", "steps", "problem"),
    [
        (
            {"from": [{"podSelector": WEB}, {"ipBlock": {"cidr": "10.0.0.0/33"}}]},
            ["ACCEPT 10.244.1.5 all"],
            "spec.ingress[0].from[1].ipBlock.cidr: '10.0.0.0/33' is not a range of addresses",
        ),
        (
            {"from": [{"ipBlock": {"cidr": "fd00::/8"}}]},
            [],
            "from[0].ipBlock.cidr: 'fd00::/8' is not IPv4: no address of this cluster is in it",
        ),
        (
            {"from": [{"ipBlock": {"cidr": "192.0.2.7/24"}}]},
            ["ACCEPT 192.0.2.0/24 all"],
            "ipBlock.cidr: 192.0.2.7/24 has bits of the host; it counts as 192.0.2.0/24",
        ),
        (
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["192.0.2.0/24"]}}]},
            [],
            "ipBlock.except[0]: 192.0.2.0/24 is the whole block",
        ),
        (
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["10.0.0.0/8"]}}]},
            ["ACCEPT 192.0.2.0/24 all"],
            "ipBlock.except[0]: 10.0.0.0/8 is not a part of 192.0.2.0/24",
        ),
        (
            {"from": [{"ipBlock": {"cidr": "192.0.2.0/24", "except": ["x"]}}]},
            [],
            "ipBlock.except[0]: 'x' is not a range of addresses",
        ),
        (
            {"from": [{}, {"podSelector": WEB}]},
            ["ACCEPT 10.244.1.5 all"],
            "spec.ingress[0].from[0]: it has no selector and no ipBlock; it matches nothing",
        ),
        (
            {"from": [{"podSelector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}]},
            [],
            "from[0].podSelector.matchExpressions[0].operator: 'Is' is none of In, NotIn",
        ),
        (
            {"from": [{"podSelector": {"matchLabels": {"a": "b c"}}}]},
            [],
            "from[0].podSelector.matchLabels: 'b c' is not the value of a label",
        ),
        (
            {"ports": [{"port": 70000}, {"port": 80}]},
            ["ACCEPT everybody 6:80"],
            "spec.ingress[0].ports[0].port: 70000 is not from 1 to 65535",
        ),
        (
            {"ports": [{"port": 80, "endPort": 79}]},
            [],
            "spec.ingress[0].ports[0].endPort: 79 is below 80",
        ),
        (
            {"ports": [{"port": "http", "endPort": 90}]},
            [],
            "spec.ingress[0].ports[0].endPort: it needs a port that is a number",
        ),
        (
            {"ports": [{"protocol": "ICMP"}]},
            [],
            "spec.ingress[0].ports[0].protocol: 'ICMP' is none of",
        ),
        (
            {"ports": [{"port": "http"}]},
            [],
            'spec.ingress[0]: no selected pod has a port "http"',
        ),
    ],
)
def test_invalid_part_of_a_rule_matches_nothing(
    cluster: PolicyCluster, rule: object, steps: list[str], problem: str
) -> None:
    cluster.put(policy("shop/p", podSelector={"matchLabels": {"app": "db"}}, ingress=[rule]))
    assert cluster.walks("shop/db", TO).isolated  # type: ignore[union-attr]
    assert [s for s in cluster.rules("shop/db", TO) or () if "nobody" not in s] == steps
    (text,) = cluster.problems().values()
    assert problem in text
    (notice,) = notices_of(cluster.inventory, cluster.inventory.problems)
    assert (notice.regarding.kind, notice.reason) == ("NetworkPolicy", "PolicyProblem")
    cluster.delete("NetworkPolicy", "shop", "p")
    assert cluster.problems() == {}


def test_invalid_selector_of_a_policy_isolates_and_accepts_nothing(cluster: PolicyCluster) -> None:
    bad = {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "x", "operator": "Is"}]}
    cluster.put(policy("shop/p", podSelector=bad, ingress=[{}]))
    assert cluster.rules("shop/db", TO) == []
    assert cluster.rules("shop/web", TO) is None


def test_named_port_to_the_pod_is_the_number_of_each_selected_pod(cluster: PolicyCluster) -> None:
    other = [{"name": "http", "containerPort": 9090}]
    cluster.pod("shop/web2", "10.244.1.6", {"app": "web"}, containers=[{"ports": other}])
    cluster.put(policy("shop/p", podSelector=WEB, ingress=[{"ports": [{"port": "http"}]}]))
    assert cluster.rules("shop/web", TO) == ["ACCEPT everybody 6:8080"]
    assert cluster.rules("shop/web2", TO) == ["ACCEPT everybody 6:9090"]
    assert cluster.problems() == {}


def test_named_port_from_the_pod_is_pairs_of_pod_and_number(cluster: PolicyCluster) -> None:
    other = [{"name": "http", "containerPort": 9090}]
    cluster.pod("shop/web2", "10.244.1.6", {"app": "web"}, containers=[{"ports": other}])
    rule = {"to": [{"podSelector": WEB}], "ports": [{"port": "http"}, {"port": 53}]}
    spec = {"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"]}
    cluster.put(policy("shop/p", **spec, egress=[rule]))
    assert cluster.rules("shop/db", FROM) == [
        "ACCEPT 10.244.1.5,10.244.1.6 6:53",
        "ACCEPT 10.244.1.5 6:8080",
        "ACCEPT 10.244.1.6 6:9090",
    ]
    cluster.unplug("shop/web2")
    assert cluster.rules("shop/db", FROM) == ["ACCEPT 10.244.1.5 6:53", "ACCEPT 10.244.1.5 6:8080"]


def test_policies_that_do_not_fit_into_the_switch_close_their_pod_alone(
    cluster: PolicyCluster,
) -> None:
    for number in range(40):
        rules = [{"ports": [{"port": 1 + 100 * number + n}]} for n in range(100)]
        cluster.put(policy(f"shop/p{number}", podSelector=WEB, ingress=rules))
    cluster.put(policy("shop/q", podSelector={"matchLabels": {"app": "db"}}, ingress=[{}]))
    assert cluster.rules("shop/web", TO) == ["refused"]
    assert cluster.rules("shop/db", TO) == ["ACCEPT everybody all"]
    assert "look-ups" in cluster.problems()["Pod shop/web"]
    (notice,) = notices_of(cluster.inventory, cluster.inventory.problems)
    assert (notice.regarding.kind, notice.reason) == ("Pod", "PoliciesRefused")
    cluster.delete("NetworkPolicy", "shop", "p0")
    assert len(cluster.rules("shop/web", TO) or ()) == 3900
    assert cluster.problems() == {}


def test_policy_with_too_many_selectors_keeps_the_first(cluster: PolicyCluster) -> None:
    peers = [{"podSelector": {"matchLabels": {"app": f"x{n}"}}} for n in range(1000)]
    peers.append({"podSelector": WEB})
    cluster.put(policy("shop/p", podSelector=WEB, ingress=[{"from": peers}]))
    assert cluster.rules("shop/web", TO) == ["ACCEPT nobody all"]
    (text,) = cluster.problems().values()
    assert text == "spec.ingress[0].from[1000]: 1000 peers with selectors are the most of a policy"


@pytest.mark.parametrize(
    ("selector", "problem"),
    [
        (
            {
                "matchExpressions": [
                    {"key": f"k{n}", "operator": "DoesNotExist"} for n in range(101)
                ]
            },
            "podSelector: 100 requirements are the most of a selector",
        ),
        (
            {
                "matchExpressions": [
                    {"key": "k", "operator": "NotIn", "values": [f"v{n}" for n in range(1001)]}
                ]
            },
            "podSelector.matchExpressions[0].values: 1000 are the most",
        ),
    ],
)
def test_selector_that_is_too_long_fails_closed(
    cluster: PolicyCluster, selector: object, problem: str
) -> None:
    """Each new pod of the cluster is compared with it."""
    rule = {"from": [{"podSelector": selector}]}
    cluster.put(policy("shop/p", podSelector=WEB, ingress=[rule]))
    assert cluster.rules("shop/web", TO) == []
    (text,) = cluster.problems().values()
    assert text == f"spec.ingress[0].from[0].{problem}"
    cluster.put(policy("shop/p", podSelector=selector, ingress=[{}]))
    assert cluster.rules("shop/web", TO) == []
    (text,) = cluster.problems().values()
    assert text.startswith(f"spec.{problem}; it accepts nothing")


def test_policy_with_too_many_rules_keeps_the_first(cluster: PolicyCluster) -> None:
    rules: list[object] = [{"ports": [{"port": 80}]}] * 2000
    cluster.put(policy("shop/p", podSelector=WEB, ingress=[*rules, {}]))
    assert cluster.rules("shop/web", TO) == ["ACCEPT everybody 6:80"]
    (text,) = cluster.problems().values()
    assert text == "spec.ingress[2000]: 2000 rules are the most"


def test_unknown_policy_type_isolates_both_directions(cluster: PolicyCluster) -> None:
    cluster.put(policy("shop/p", podSelector=WEB, policyTypes=["ingress"]))
    assert cluster.rules("shop/web", TO) == cluster.rules("shop/web", FROM) == []
    (text,) = cluster.problems().values()
    assert text == (
        "spec.policyTypes[0]: 'ingress' is none of Ingress, Egress; the policy is for both"
    )


def test_two_sets_with_one_id_do_not_become_one(cluster: PolicyCluster) -> None:
    """The one whose name comes later accepts nobody, and is reported."""
    with patch.object(flows_policy, "policy_digest", lambda text: 7 + text.startswith("walk")):
        for name, app in (("p", "web"), ("q", "db")):
            rule = {"from": [{"podSelector": {"matchLabels": {"app": app}}}]}
            subject = {"matchLabels": {"app": app}}
            cluster.put(policy(f"shop/{name}", podSelector=subject, ingress=[rule]))
        members = cluster.inventory.view.peer_members
        assert [list(each) for each in members.values()] == [["10.244.2.5"]]
        assert "it fails closed" in cluster.problems()["NetworkPolicy shop/p"]
        assert cluster.rules("shop/web", TO) in ([], ["refused"])
        cluster.delete("NetworkPolicy", "shop", "q")
        assert cluster.rules("shop/web", TO) == ["ACCEPT 10.244.1.5 all"]
        assert cluster.problems() == {}


def test_policy_applied_deleted_and_applied_again_is_in_force(cluster: PolicyCluster) -> None:
    given = policy("shop/p", podSelector=WEB, ingress=[{"from": [{"podSelector": WEB}]}])
    for _ in range(3):
        cluster.inventory.set_object(given)
        cluster.inventory.remove_object("NetworkPolicy", "shop", "p")
    cluster.put(given)
    assert cluster.rules("shop/web", TO) == ["ACCEPT 10.244.1.5 all"]


def test_namespace_that_is_deleted_under_its_policies_keeps_them(cluster: PolicyCluster) -> None:
    cluster.put(policy("shop/p", podSelector=WEB, ingress=[{"from": [{"podSelector": WEB}]}]))
    cluster.delete("Namespace", "", "shop")
    assert cluster.rules("shop/web", TO) == ["ACCEPT 10.244.1.5 all"]


@pytest.mark.parametrize(
    ("rule", "steps", "problem"),
    [
        (
            {"action": "Accept", "from": [{}, {"namespaces": {}}]},
            None,
            "spec.ingress[0].from[0]: a peer has exactly one field that is known here, not 0",
        ),
        ({"action": "Deny", "from": [{}]}, ["DENY everybody all"], "the rule denies everything"),
        ({"action": "Pass", "from": [{}]}, ["DENY everybody all"], "the rule denies everything"),
        (
            {"action": "Log", "from": [{"namespaces": {}}]},
            ["DENY everybody all"],
            "spec.ingress[0].action: 'Log' is none of Accept, Deny, Pass",
        ),
        (
            {"action": "Accept", "from": [{"domainNames": ["example.com"]}]},
            None,
            "spec.ingress[0].from[0].domainNames: this kind of peer is not supported",
        ),
        (
            {"action": "Deny", "from": [{"namespaces": {}}], "protocols": [{"tcp": {}}]},
            ["DENY everybody all"],
            "spec.ingress[0].protocols[0].tcp.destinationPort: it needs either number or range",
        ),
    ],
)
def test_unknown_part_of_a_cluster_policy_fails_closed(
    cluster: PolicyCluster, rule: object, steps: list[str] | None, problem: str
) -> None:
    subject = {"namespaces": {}}
    spec = {"tier": "Admin", "priority": 1, "subject": subject, "ingress": [rule]}
    cluster.put(cluster_policy("admin", spec))
    assert cluster.rules("shop/web", TO) == steps
    (text,) = cluster.problems().values()
    assert problem in text


def test_equal_priorities_go_by_name_and_are_reported(cluster: PolicyCluster) -> None:
    rule = {"action": "Accept", "from": [{"namespaces": {}}]}
    spec = {"tier": "Admin", "priority": 7, "subject": {"namespaces": {}}, "ingress": [rule]}
    for name, action in (("b", "Deny"), ("a", "Accept")):
        cluster.put(cluster_policy(name, spec | {"ingress": [rule | {"action": action}]}))
    assert cluster.rules("shop/web", TO) == ["ACCEPT pods all", "DENY pods all"]
    said = "spec.priority: ClusterNetworkPolicy a has 7, too, and comes first"
    assert cluster.problems() == {"ClusterNetworkPolicy b": said}
    cluster.delete("ClusterNetworkPolicy", "", "a")
    assert cluster.problems() == {}


def test_mirror_pods_are_isolated_and_are_no_members() -> None:
    for as_members, steps in ((False, ["ACCEPT nobody all"]), (True, ["ACCEPT 10.244.1.5 all"])):
        cluster = PolicyCluster(mirror_pods_as_members=as_members)
        mirror = {"kubernetes.io/config.mirror": "x"}
        cluster.pod("shop/web", "10.244.1.5", {"app": "web"}, annotations=mirror)
        cluster.put(policy("shop/p", podSelector=WEB, ingress=[{"from": [{"podSelector": WEB}]}]))
        assert cluster.rules("shop/web", TO) == steps
