"""What other implementations of NetworkPolicy got wrong, each with its issue.

Each case is judged three times: by the evaluator, by `ofproto/trace` of real switches, and by the
simulator, which also compares all other packets of the cluster.
"""

from typing import Any

import pytest

from tests.policy.conftest import Judge
from tests.policy.evaluator import MIRROR, Attachment, Cluster
from tests.policy.generator import cluster_policy, namespace, network_policy, node, pod

Part = dict[str, Any]
EVERYBODY: Part = {}
NODES = [node(1), node(2), node(3)]
NAMESPACES = [namespace("a", team="x"), namespace("b", team="y"), namespace("c")]


def at(*attachments: str) -> list[Attachment]:
    """Each `NAMESPACE/NAME ADDRESS`; the address gives the node."""
    found = []
    for text in attachments:
        name, address = text.split()
        found.append(Attachment(name, f"node{address.split('.')[2]}", address))
    return found


def cluster(*objects: Part, attachments: list[Attachment] | None = None) -> Cluster:
    """Three nodes, three Namespaces, these objects; each pod has an attachment if none are given."""
    if attachments is None:
        attachments = []
        for each in objects:
            if each["kind"] == "Pod" and not each["spec"].get("hostNetwork"):
                on = each["spec"]["nodeName"]
                number = 2 + sum(other.node == on for other in attachments)
                name = f"{each['metadata']['namespace']}/{each['metadata']['name']}"
                attachments.append(Attachment(name, on, f"10.244.{on[-1]}.{number}"))
    given = {(e["kind"], e["metadata"]["name"]) for e in objects}
    fixed = [e for e in NODES + NAMESPACES if (e["kind"], e["metadata"]["name"]) not in given]
    return Cluster([*fixed, *objects], attachments)


def client(name: str = "a/client", on: str = "node1", **labels: str) -> Part:
    return pod(name, on, labels or {"app": "client"})


def server(name: str = "a/server", on: str = "node2", **more: Any) -> Part:
    return pod(name, on, {"app": "server"}, **more)


def named(name: str, port: int, protocol: str = "TCP") -> Part:
    return {"name": name, "containerPort": port, "protocol": protocol}


def allow(name: str = "a/allow", selector: Part = EVERYBODY, **spec: Any) -> Part:
    return network_policy(name, podSelector=selector, **spec)


def labels(**wanted: str) -> Part:
    return {"matchLabels": wanted}


def in_namespace(name: str) -> Part:
    return {"matchLabels": {"kubernetes.io/metadata.name": name}}


def block(cidr: str, *excepted: str) -> Part:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepted)} if excepted else {})}}


# --- ports ---


def test_named_port_of_egress_is_a_pair_of_pod_and_number(judge: Judge) -> None:
    """Never the union of the numbers (cilium#24779, ovn-kubernetes#2117)."""
    judge.decides(
        cluster(
            client(),
            pod("a/one", "node2", {"app": "server"}, [named("http", 80)]),
            pod("a/two", "node2", {"app": "server"}, [named("http", 8080)]),
            allow(
                policyTypes=["Egress"],
                egress=[
                    {"to": [{"podSelector": labels(app="server")}], "ports": [{"port": "http"}]}
                ],
            ),
        ),
        {
            "a/client > a/one TCP 80": True,
            "a/client > a/two TCP 8080": True,
            "a/client > a/one TCP 8080": False,
            "a/client > a/two TCP 80": False,
        },
    )


def test_named_port_of_ingress_is_resolved_on_the_selected_pod(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            pod("a/one", "node1", {"app": "server"}, [named("http", 80)]),
            pod("a/two", "node2", {"app": "server"}, [named("http", 8080)]),
            pod("a/none", "node2", {"app": "server"}),
            allow(selector=labels(app="server"), ingress=[{"ports": [{"port": "http"}]}]),
        ),
        {
            "a/client > a/one TCP 80": True,
            "a/client > a/two TCP 8080": True,
            "a/client > a/one TCP 8080": False,
            "a/client > a/two TCP 80": False,
            "a/client > a/none TCP 80": False,
        },
    )


def test_named_port_has_a_protocol(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            pod("a/server", "node2", {"app": "server"}, [named("dns", 53, "UDP")]),
            allow(
                selector=labels(app="server"),
                ingress=[{"ports": [{"port": "dns"}]}],
            ),
            allow(
                "a/udp", selector=labels(app="server"),
                ingress=[{"ports": [{"port": "dns", "protocol": "UDP"}]}],
            ),
        ),
        {"a/client > a/server UDP 53": True, "a/client > a/server TCP 53": False},
    )  # fmt: skip


def test_named_port_of_egress_to_everybody_is_that_of_each_pod(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            pod("a/one", "node2", {}, [named("http", 80)]),
            pod("b/two", "node1", {}, [named("http", 8080)]),
            allow(policyTypes=["Egress"], egress=[{"ports": [{"port": "http"}]}]),
        ),
        {
            "a/client > a/one TCP 80": True,
            "a/client > b/two TCP 8080": True,
            "a/client > b/two TCP 80": False,
            "a/client > 203.0.113.7 TCP 80": False,
        },
    )


def test_protocol_alone_is_all_its_ports_and_the_default_is_tcp(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            server(),
            server("a/other"),
            allow(selector=labels(app="server"), ingress=[{"ports": [{}]}]),
            allow(
                "a/sctp", selector=labels(app="server"), ingress=[{"ports": [{"protocol": "SCTP"}]}]
            ),
        ),
        {
            "a/client > a/server TCP 1": True,
            "a/client > a/server TCP 65535": True,
            "a/client > a/server SCTP 9": True,
            "a/client > a/server UDP 53": False,
            "a/client > a/server ICMP": False,
        },
    )


def test_end_port_is_inclusive(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            server(),
            allow(
                selector=labels(app="server"),
                ingress=[{"ports": [{"port": 32000, "endPort": 32768}]}],
            ),
        ),
        {
            "a/client > a/server TCP 31999": False,
            "a/client > a/server TCP 32000": True,
            "a/client > a/server TCP 32768": True,
            "a/client > a/server TCP 32769": False,
        },
    )


def test_icmp_passes_only_rules_without_ports(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            client("b/client", "node2"),
            server(),
            allow(
                selector=labels(app="server"),
                ingress=[
                    {"from": [{"podSelector": {}}]},
                    {"from": [{"namespaceSelector": in_namespace("b")}], "ports": [{"port": 80}]},
                ],
            ),
        ),
        {
            "a/client > a/server ICMP": True,
            "b/client > a/server ICMP": False,
            "b/client > a/server TCP 80": True,
        },
    )


def test_later_fragments_pass_only_rules_without_ports(judge: Judge) -> None:
    judge.decides(
        cluster(
            client(),
            client("b/client", "node2"),
            server(),
            allow(
                selector=labels(app="server"),
                ingress=[
                    {"from": [{"podSelector": {}}]},
                    {
                        "from": [{"namespaceSelector": in_namespace("b")}],
                        "ports": [{"port": 1, "endPort": 65535, "protocol": "UDP"}],
                    },
                ],
            ),
        ),
        {
            "a/client > a/server UDP later": True,
            "b/client > a/server UDP later": False,
            "b/client > a/server UDP 53": True,
        },
    )


# --- blocks ---


def test_except_narrows_its_own_block_only(judge: Judge) -> None:
    """It is no drop (antrea#367, ovn-kubernetes#845)."""
    judge.decides(
        cluster(
            client(),
            client("a/other", "node2"),
            server(),
            allow(
                selector=labels(app="server"),
                ingress=[{"from": [
                    block("10.244.0.0/16", "10.244.1.0/24"),
                    {"podSelector": labels(app="client")},
                    block("203.0.113.0/24", "203.0.113.0/25", "203.0.113.128/26"),
                    block("203.0.113.7/32"),
                ]}],
            ),
            allow("a/ten", selector=labels(app="server"), ingress=[{"from": [block("10.0.0.0/8", "10.244.0.0/16")]}]),
        ),
        {
            "a/client > a/server TCP 80": True,
            "10.9.9.9 > a/server TCP 80": True,
            "203.0.113.7 > a/server TCP 80": True,
            "203.0.113.8 > a/server TCP 80": False,
            "203.0.113.200 > a/server TCP 80": True,
            "203.0.113.130 > a/server TCP 80": False,
        },
    )  # fmt: skip


def test_except_of_one_policy_does_not_narrow_another_policy(judge: Judge) -> None:
    """ovn-kubernetes#845."""
    judge.decides(
        cluster(
            client(),
            server(),
            allow(ingress=[{"from": [block("0.0.0.0/0", "10.244.1.0/24")]}]),
            allow("a/more", ingress=[{"from": [block("10.244.0.0/16")]}]),
        ),
        {"a/client > a/server TCP 80": True, "203.0.113.9 > a/server TCP 80": True},
    )


def test_block_matches_addresses_of_pods_and_nodes(judge: Judge) -> None:
    """calico#6634, cilium#12277."""
    judge.decides(
        cluster(
            client(),
            client("a/other", "node2"),
            server(),
            allow(
                selector=labels(app="server"),
                ingress=[{"from": [block("10.244.1.2/32"), block("172.30.1.3/32")]}],
            ),
        ),
        {
            "a/client > a/server TCP 80": True,
            "a/other > a/server TCP 80": False,
            "node3 > a/server TCP 80": True,
            "node1 > a/server TCP 80": False,
        },
    )


def test_everybody_by_block_is_also_every_pod_and_node(judge: Judge) -> None:
    judge.decides(
        cluster(client(), server(), allow(ingress=[{"from": [block("0.0.0.0/0")]}])),
        {
            "a/client > a/server TCP 80": True,
            "node3 > a/server TCP 80": True,
            "203.0.113.9 > a/server TCP 80": True,
        },
    )


def test_duplicated_rules_and_overlapping_blocks_change_nothing(judge: Judge) -> None:
    rule = {"from": [block("203.0.112.0/23"), block("203.0.113.0/24")], "ports": [{"port": 80}]}
    judge.decides(
        cluster(
            client(),
            server(),
            allow(ingress=[rule, rule]),
            allow("a/again", ingress=[rule]),
            allow(
                "a/wider", ingress=[{"ports": [{"port": 79, "endPort": 81}], "from": rule["from"]}]
            ),
        ),
        {
            "203.0.113.9 > a/server TCP 80": True,
            "203.0.112.9 > a/server TCP 81": True,
            "203.0.114.9 > a/server TCP 80": False,
            "a/client > a/server TCP 80": False,
        },
    )


# --- who is a peer ---


def test_nil_and_empty_selectors_of_a_peer(judge: Judge) -> None:
    """Nil `podSelector`: all pods; nil `namespaceSelector`: the policy's own; `{}`: all."""
    pods = [client("a/one"), client("a/two", "node2"), client("b/three"), client("c/four", "node2")]
    for peer, allowed in (
        ({"podSelector": {}}, "a"),
        ({"namespaceSelector": in_namespace("b")}, "b"),
        ({"namespaceSelector": {}}, "abc"),
        ({"namespaceSelector": {}, "podSelector": {}}, "abc"),
    ):
        judge.decides(
            cluster(*pods, server(), allow(ingress=[{"from": [peer]}])),
            {
                "a/one > a/server TCP 80": "a" in allowed,
                "a/two > a/server TCP 80": "a" in allowed,
                "b/three > a/server TCP 80": "b" in allowed,
                "c/four > a/server TCP 80": "c" in allowed,
                "203.0.113.9 > a/server TCP 80": False,
                "node1 > a/server TCP 80": False,
            },
        )


@pytest.mark.parametrize("absent", [{}, {"from": []}, {"from": None}], ids=["absent", "[]", "nil"])
def test_empty_from_is_everybody(judge: Judge, absent: Part) -> None:
    judge.decides(
        cluster(client(), server(), allow(ingress=[absent])),
        {
            "a/client > a/server TCP 80": True,
            "203.0.113.9 > a/server ICMP": True,
            "node1 > a/server UDP 53": True,
        },
    )


def test_both_selectors_in_one_peer_must_match(judge: Judge) -> None:
    """With the labels of the Namespace (ovn-kubernetes#1850, kube-ovn#1920)."""
    both = {"namespaceSelector": labels(team="y"), "podSelector": labels(app="client")}
    pods = [client("a/right"), client("b/right"), client("b/wrong", "node2", app="other")]
    judge.decides(
        cluster(*pods, server("c/server"), allow("c/allow", ingress=[{"from": [both]}])),
        {
            "b/right > c/server TCP 80": True,
            "b/wrong > c/server TCP 80": False,
            "a/right > c/server TCP 80": False,
        },
    )
    either = [{"namespaceSelector": labels(team="y")}, {"podSelector": labels(app="server")}]
    judge.decides(
        cluster(
            *pods, server("c/server"), server("c/two"), allow("c/allow", ingress=[{"from": either}])
        ),
        {
            "b/right > c/server TCP 80": True,
            "b/wrong > c/server TCP 80": True,
            "a/right > c/server TCP 80": False,
            "c/two > c/server TCP 80": True,
        },
    )


def test_labels_of_a_namespace_change(judge: Judge) -> None:
    """ovn-kubernetes#1850, kube-ovn#1920."""
    policy = allow(
        ingress=[
            {"from": [{"namespaceSelector": labels(team="y"), "podSelector": labels(app="client")}]}
        ]
    )
    for team, allowed in (("y", True), ("x", False), ("y", True)):
        judge.decides(
            cluster(client("b/client"), server(), policy, namespace("b", team=team)),
            {"b/client > a/server TCP 80": allowed},
        )


def test_labels_of_a_pod_change(judge: Judge) -> None:
    policy = allow(
        selector=labels(app="server"), ingress=[{"from": [{"podSelector": labels(app="client")}]}]
    )
    for app, allowed in (("client", True), ("other", False), ("client", True)):
        judge.decides(
            cluster(client(app=app), server(), policy), {"a/client > a/server TCP 80": allowed}
        )
    for app, allowed in (("server", False), ("free", True), ("server", False)):
        judge.decides(
            cluster(client(app="other"), pod("a/server", "node2", {"app": app}), policy),
            {"a/client > a/server TCP 80": allowed},
        )


def test_label_of_the_name_is_there_without_a_namespace_object(judge: Judge) -> None:
    judge.decides(
        cluster(
            client("d/client"),
            server(),
            allow(ingress=[{"from": [{"namespaceSelector": in_namespace("d")}]}]),
        ),
        {"d/client > a/server TCP 80": True},
    )


def test_pod_in_the_network_of_its_node_is_neither_subject_nor_peer(judge: Judge) -> None:
    """kube-router#1135."""
    host = pod("a/host", "node1", {"app": "client"}, hostNetwork=True)
    host["status"] = {"podIP": "172.30.1.1"}
    judge.decides(
        cluster(
            host,
            client(),
            server(),
            allow(ingress=[{"from": [{"podSelector": labels(app="client")}]}]),
            allow("a/out", policyTypes=["Egress"]),
            cluster_policy(
                "accept",
                subject={"namespaces": {}},
                ingress=[{"action": "Deny", "from": [{"namespaces": {}}]}],
            ),
        ),
        {
            "node1 > a/server TCP 80": False,
            "172.30.1.1 > a/client TCP 80": True,
            "a/client > a/server TCP 80": False,
        },
    )


def test_mirror_pod_is_no_member_by_its_labels(judge: Judge) -> None:
    """A kubelet may create one with any namespace and labels."""
    uid = "0123456789abcdef"
    mirror = client("b/mirror")
    mirror["metadata"] |= {
        "annotations": {MIRROR: uid, "kubernetes.io/config.hash": uid},
        "ownerReferences": [
            {
                "apiVersion": "v1",
                "kind": "Node",
                "name": "node1",
                "uid": "node-1",
                "controller": True,
            }
        ],
    }
    for peer, allowed in (
        ({"namespaceSelector": in_namespace("b")}, False),
        ({"namespaceSelector": {}, "podSelector": labels(app="client")}, False),
        ({"namespaceSelector": {}}, True),
        (block("10.244.1.0/24"), True),
    ):
        judge.decides(
            cluster(mirror, server(), allow(ingress=[{"from": [peer]}])),
            {"b/mirror > a/server TCP 80": allowed},
        )
    # Its own policy holds all the same.
    judge.decides(
        cluster(mirror, server(), allow("b/deny", policyTypes=["Egress"])),
        {"b/mirror > a/server TCP 80": False},
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
        allow(selector=labels(app="server"), ingress=[{"from": [{"podSelector": labels(app="client")}]}]),
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


# --- ClusterNetworkPolicy ---


def rule(action: str, **more: Any) -> Part:
    peers = {} if "to" in more or "from" in more else {"from": [{"namespaces": {}}]}
    return {"action": action, **peers, **more}


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
                *(cluster_policy(tier.lower(), tier, 5, subject=a_to, ingress=[rule(action)])
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
                cluster_policy("b-second", priority=two, **everyone, ingress=[rule("Deny")]),
                cluster_policy("a-first", priority=one, **everyone, ingress=[rule("Accept")]),
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
                    rule("Pass", **{"from": [{"namespaces": in_namespace("b")}],
                                    "protocols": [{"tcp": {"destinationPort": {"number": 80}}}]}),
                    rule("Deny", **{"from": [{"namespaces": in_namespace("b")}]}),
                    rule("Accept"),
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
                rule("Pass", protocols=[{"tcp": {"destinationPort": {"number": 80}}}])]),
            cluster_policy("b", priority=2, subject={"namespaces": {}}, ingress=[rule("Deny")]),
            cluster_policy("c", "Baseline", 0, subject={"namespaces": {}}, ingress=[
                rule("Deny", protocols=[{"tcp": {"destinationPort": {"range": {"start": 80, "end": 90}}}}])]),
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
        {"to": [{"namespaces": {}}], "protocols": [{"tcp": {}}, {}]},
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


def test_nodes_and_named_ports_of_a_cluster_policy(judge: Judge) -> None:
    judge.decides(
        cluster(
            node(3, role="edge"),
            client(),
            pod("a/server", "node2", {"app": "server"}, [named("http", 8080)]),
            cluster_policy("deny", subject={"namespaces": {}}, egress=[
                {"action": "Deny", "to": [{"nodes": labels(role="edge")}]},
                {"action": "Deny", "to": [{"namespaces": {}}],
                 "protocols": [{"destinationNamedPort": "http"}]}]),
        ),
        {
            "a/client > 172.30.1.3 TCP 80": False,
            "a/client > 172.30.1.2 TCP 80": True,
            "a/client > a/server TCP 8080": False,
            "a/client > a/server TCP 80": True,
        },
    )  # fmt: skip
