"""What other implementations of NetworkPolicy got wrong, each with its issue: ports, blocks, peers.

Each case is judged three times: by the evaluator, by `ofproto/trace` of real switches, and by the
simulator, which also compares all other packets of the cluster.
"""

import pytest

from tests.policy.conftest import Judge
from tests.policy.evaluator import MIRROR
from tests.policy.manifests import (
    Part,
    allow,
    block,
    client,
    cluster,
    cluster_policy,
    in_namespace,
    labels,
    named,
    namespace,
    pod,
    server,
)

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


def test_block_has_no_named_ports(judge: Judge) -> None:
    """As the API says of the `networks` of a ClusterNetworkPolicy."""
    judge.decides(
        cluster(
            client(),
            pod("a/one", "node2", {"app": "server"}, [named("http", 80)]),
            pod("b/two", "node1", {}, [named("http", 80)]),
            allow(
                policyTypes=["Egress"],
                egress=[
                    {
                        "to": [block("10.244.0.0/16"), {"podSelector": labels(app="server")}],
                        "ports": [{"port": "http"}, {"port": 81}],
                    }
                ],
            ),
        ),
        {
            "a/client > a/one TCP 80": True,
            "a/client > b/two TCP 80": False,
            "a/client > b/two TCP 81": True,
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


def test_fragments_pass_only_rules_without_a_port(judge: Judge) -> None:
    """Their port is unknown; in a later fragment it is not even there."""
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
                        "ports": [{"port": 1, "endPort": 65535, "protocol": "UDP"}, {}],
                    },
                ],
            ),
        ),
        {
            "a/client > a/server UDP later": True,
            "b/client > a/server UDP later": False,
            "b/client > a/server UDP 53": True,
            # TCP without a port is all of TCP.
            "b/client > a/server TCP later": True,
        },
    )


def test_fragments_do_not_get_around_a_denied_port(judge: Judge) -> None:
    """Nor does the denial of a port of TCP concern fragments of UDP."""
    for action in ("Deny", "Pass"):
        judge.decides(
            cluster(
                client(),
                server(),
                cluster_policy("udp", subject={"namespaces": {}}, ingress=[
                    {"action": action, "from": [{"namespaces": {}}],
                     "protocols": [{"udp": {"destinationPort": {"number": 53}}}]},
                    {"action": "Accept", "from": [{"namespaces": {}}]}]),
            ),
            {
                "a/client > a/server UDP later": False,
                "a/client > a/server UDP 54": True,
                "a/client > a/server TCP later": True,
            },
        )  # fmt: skip


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
            allow("a/ten", selector=labels(app="server"),
                  ingress=[{"from": [block("10.0.0.0/8", "10.244.0.0/16")]}]),
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
