"""What other implementations of NetworkPolicy got wrong: nodes, pods that come and go, defaults."""

import pytest

from tests.policy.conftest import Judge
from tests.policy.manifests import (
    Part,
    allow,
    at,
    block,
    client,
    cluster,
    cluster_policy,
    in_namespace,
    labels,
    named,
    network_policy,
    pod,
    server,
)

# --- nodes, and a pod itself ---


def test_node_reaches_its_own_pods_by_its_own_addresses_only(judge: Judge) -> None:
    """kube-router#87, k3s#2390: not every pod of the node may."""
    judge.decides(
        cluster(client(on="node2"), server(), allow()),
        {
            "node2 > a/server TCP 80": True,
            "172.30.1.2 > a/server TCP 80": True,
            "a/client > a/server TCP 80": False,
            "node1 > a/server TCP 80": False,
            "203.0.113.9 > a/server TCP 80": False,
        },
    )


def test_pod_without_egress_does_not_reach_its_own_node(judge: Judge) -> None:
    for egress, allowed in (([], False), ([{"to": [block("172.30.1.2/32")]}], True)):
        judge.decides(
            cluster(server(), allow(policyTypes=["Egress"], egress=egress)),
            {"a/server > node2 TCP 80": allowed, "a/server > 172.30.1.2 TCP 80": allowed},
        )


def test_pod_reaches_itself(judge: Judge) -> None:
    """antrea#5687, ovn-kubernetes#3178."""
    deny = {"action": "Deny"}
    judge.decides(
        cluster(
            client(),
            server(),
            allow(policyTypes=["Ingress", "Egress"]),
            cluster_policy(
                "deny",
                subject={"namespaces": {}},
                ingress=[{**deny, "from": [{"namespaces": {}}]}],
                egress=[{**deny, "to": [{"networks": ["0.0.0.0/0"]}]}],
            ),
        ),
        {
            "a/server > a/server TCP 80": True,
            "a/server > a/server ICMP": True,
            "a/client > a/server TCP 80": False,
        },
    )


# --- pods that come and go ---


def test_completed_pod_gives_its_labels_to_nobody(judge: Judge) -> None:
    """Another pod has its address now (antrea#6507, kube-router#1056)."""
    done = client("a/done")
    done["status"] = {"phase": "Succeeded", "podIP": "10.244.1.2"}
    judge.decides(
        cluster(
            done,
            client("a/new", app="other"),
            server(),
            allow(ingress=[{"from": [{"podSelector": labels(app="client")}]}]),
            attachments=at("a/new 10.244.1.2", "a/server 10.244.2.2"),
        ),
        {"a/new > a/server TCP 80": False},
    )


def test_kubelet_that_lies_about_an_address_gains_nothing(judge: Judge) -> None:
    liar = client("a/liar")
    liar["status"] = {"podIP": "10.244.2.3", "phase": "Running"}
    judge.decides(
        cluster(
            liar,
            client("a/victim", "node2", app="other"),
            server(),
            allow(ingress=[{"from": [{"podSelector": labels(app="client")}]}]),
            attachments=at("a/liar 10.244.1.2", "a/server 10.244.2.2", "a/victim 10.244.2.3"),
        ),
        {"a/victim > a/server TCP 80": False, "a/liar > a/server TCP 80": True},
    )


def test_terminating_pod_is_a_member_until_its_sandbox_is_gone(judge: Judge) -> None:
    """calico#4518."""
    ending = client()
    ending["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    policy = allow(
        selector=labels(app="server"), ingress=[{"from": [{"podSelector": labels(app="client")}]}]
    )
    judge.decides(cluster(client(), server(), policy), {"a/client > a/server TCP 80": True})
    judge.decides(cluster(ending, server(), policy), {"a/client > a/server TCP 80": True})
    gone = cluster(ending, server(), policy, attachments=at("a/server 10.244.2.2"))
    judge.decides(gone, {"203.0.113.9 > a/server TCP 80": False})
    assert not any(judge.controlled.inventory.view.peer_members.values())


def test_policy_holds_for_a_pod_that_started_before_it(judge: Judge) -> None:
    """kube-router#873."""
    judge.decides(cluster(client(), server()), {"a/client > a/server TCP 80": True})
    judge.decides(cluster(client(), server(), allow()), {"a/client > a/server TCP 80": False})
    judge.decides(cluster(client(), server()), {"a/client > a/server TCP 80": True})


def test_address_that_is_used_again_inherits_nothing(judge: Judge) -> None:
    """calico#4152: neither as a peer nor as a subject."""
    policies = [
        allow(selector=labels(app="server"),
              ingress=[{"from": [{"podSelector": labels(app="client")}]}]),
        allow("a/out", selector=labels(app="client"), policyTypes=["Egress"],
              egress=[{"to": [{"podSelector": labels(app="server")}]}]),
    ]  # fmt: skip
    judge.decides(
        cluster(client(), server(), *policies),
        {"a/client > a/server TCP 80": True, "a/client > 203.0.113.9 TCP 80": False},
    )
    judge.decides(
        cluster(client("a/new", app="other"), server(), *policies,
                attachments=at("a/new 10.244.1.2", "a/server 10.244.2.2")),
        {"a/new > a/server TCP 80": False, "a/new > 203.0.113.9 TCP 80": True},
    )  # fmt: skip


def test_isolation_stays_when_the_pod_object_goes_first(judge: Judge) -> None:
    """A pod deleted by force runs on: it must not be open, nor keep what its labels gave it."""
    objects = [
        client(), server(), allow(policyTypes=["Ingress", "Egress"]),
        allow("a/in", selector=labels(app="server"),
              ingress=[{"from": [{"podSelector": labels(app="client")}]}]),
    ]  # fmt: skip
    before = cluster(*objects)
    judge.decides(before, {"a/client > a/server TCP 80": False})
    for name in ("client", "server"):
        judge.controlled.remove_object("Pod", "a", name)
    for each, port in (("node1", "10.244.1.2"), ("node2", "10.244.2.2")):
        view = judge.controlled.inventory.view
        (attachment,) = view.attachments[each].values()
        assert str(attachment.address) == port
        isolation = view.isolations[each][attachment.port]
        assert isolation.to_pod is not None
        assert isolation.from_pod is not None
        assert isolation.to_pod.isolated or isolation.to_pod.refused
        assert isolation.from_pod.isolated or isolation.from_pod.refused


# --- defaults ---


def test_policy_without_rules_isolates(judge: Judge) -> None:
    judge.decides(
        cluster(client(), server(), network_policy("a/deny")),
        {"a/client > a/server TCP 80": False, "a/client > 203.0.113.9 TCP 80": True},
    )
    judge.decides(
        cluster(client(), server("b/server"), network_policy("a/deny", policyTypes=["Egress"])),
        {"a/client > b/server TCP 80": False, "b/server > a/client TCP 80": True},
    )


@pytest.mark.parametrize("types", [{}, {"policyTypes": []}, {"policyTypes": None}], ids=str)
def test_policy_types_default_to_ingress_and_to_egress_if_it_has_such_rules(
    judge: Judge, types: Part
) -> None:
    for egress, out in (
        ({}, True),
        ({"egress": []}, True),
        ({"egress": [{"to": [block("10.0.0.0/8")]}]}, False),
    ):
        judge.decides(
            cluster(client(), server(), allow(selector=labels(app="client"), **egress, **types)),
            {"a/client > 203.0.113.9 TCP 80": out, "a/server > a/client TCP 80": False},
        )  # fmt: skip


def test_rules_of_a_direction_that_is_no_policy_type_are_ignored(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            server(),
            allow(
                selector=labels(app="client"),
                policyTypes=["Egress"],
                ingress=[{"from": [block("192.0.2.0/24")]}],
            ),
        ),
        {"a/server > a/client TCP 80": True, "a/client > a/server TCP 80": False},
    )


def test_several_policies_on_a_pod_are_added_up(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            server(),
            allow("a/deny"),
            allow("a/web", ingress=[{"ports": [{"port": 80}]}]),
            allow("a/dns", ingress=[{"ports": [{"port": 53, "protocol": "UDP"}]}]),
        ),
        {
            "a/client > a/server TCP 80": True,
            "a/client > a/server UDP 53": True,
            "a/client > a/server TCP 53": False,
        },
    )


def test_dns_needs_a_rule_of_its_own(judge: Judge) -> None:
    """It sees the backend: the pod that answers, not the address of the Service."""
    dns = pod("b/dns", "node2", {"app": "dns"}, [named("dns", 5353, "UDP")])
    web = {"to": [{"podSelector": labels(app="server")}]}
    to_dns = {
        "to": [{"namespaceSelector": in_namespace("b"), "podSelector": labels(app="dns")}],
        "ports": [{"port": 5353, "protocol": "UDP"}],
    }
    for rules, allowed in (([web], False), ([web, to_dns], True)):
        judge.decides(
            cluster(client(), server(), dns, allow(policyTypes=["Egress"], egress=rules)),
            {"a/client > b/dns UDP 5353": allowed, "a/client > a/server TCP 80": True},
        )


def test_both_ends_have_to_allow(judge: Judge) -> None:
    into = allow("a/in", selector=labels(app="server"), ingress=[{"from": [{"podSelector": {}}]}])
    out = allow("a/out", selector=labels(app="client"), policyTypes=["Egress"],
                egress=[{"ports": [{"port": 80}]}])  # fmt: skip
    judge.decides(
        cluster(client(), client("b/client", "node2"), server(), into, out),
        {
            "a/client > a/server TCP 80": True,
            "a/client > a/server TCP 81": False,
            "b/client > a/server TCP 80": False,
        },
    )
