"""What random clusters have found, each as a test of its own."""

from tests.policy.conftest import Judge
from tests.policy.manifests import (
    allow,
    at,
    block,
    client,
    cluster,
    in_namespace,
    labels,
    named,
    pod,
    server,
)

FROM_CLIENTS = [{"from": [{"podSelector": labels(app="client")}]}]


def test_walk_that_changes_while_no_node_needs_it_is_compiled_again(judge: Judge) -> None:
    """The only selected pod moves to another node while the policy changes."""
    judge.decides(
        cluster(server(on="node2"), client(), allow(selector=labels(app="server"))),
        {"a/client > a/server TCP 80": False},
    )
    judge.decides(
        cluster(
            server("a/other", on="node1"),
            client(),
            allow(selector=labels(app="server"), ingress=FROM_CLIENTS),
        ),
        {"a/client > a/other TCP 80": True},
    )


def test_member_that_goes_together_with_its_set_is_no_member_when_the_set_comes_back(
    judge: Judge,
) -> None:
    policy = allow("b/allow", ingress=[{"from": [{"namespaceSelector": in_namespace("a")}]}])
    judge.decides(
        cluster(client("a/client", on="node2"), server("b/server", on="node1"), policy),
        {"a/client > b/server TCP 80": True},
    )
    judge.decides(cluster(), {})
    judge.decides(
        cluster(
            server("b/server", on="node1"),
            client("c/client", on="node2"),
            policy,
            attachments=at("b/server 10.244.1.2", "c/client 10.244.2.2"),
        ),
        {"c/client > b/server TCP 80": False},
    )


def test_named_ports_of_a_policy_change(judge: Judge) -> None:
    web = pod("a/server", "node2", {"app": "server"}, [named("http", 80), named("other", 81)])
    for ports, allowed in (
        ([{"port": "http"}], {80}),
        ([], {80, 81, 82}),
        ([{"port": "other"}], {81}),
        ([{"port": "http"}, {"port": "other"}], {80, 81}),
        ([{"port": 82}], {82}),
    ):
        judge.decides(
            cluster(
                client(), web, allow(selector=labels(app="server"), ingress=[{"ports": ports}])
            ),
            {f"a/client > a/server TCP {port}": port in allowed for port in (80, 81, 82)},
        )


def test_gateway_of_a_node_is_a_member_where_a_block_has_the_address_of_the_node(
    judge: Judge,
) -> None:
    """Also where another block excepts the gateway."""
    judge.decides(
        cluster(
            server(),
            allow(ingress=[{"from": [block("10.244.0.0/16", "10.244.3.0/24"),
                                     block("172.30.1.3/32")]}]),
        ),
        {"node3 > a/server TCP 80": True, "172.30.1.1 > a/server TCP 80": False}
        | {"node1 > a/server TCP 80": True},
    )  # fmt: skip


def test_set_that_another_policy_uses_in_the_same_change_has_no_old_members(judge: Judge) -> None:
    judge.decides(
        cluster(
            client("a/client"),
            allow("a/allow", ingress=[{"from": [{"podSelector": {}}]}]),
            attachments=at("a/client 10.244.1.3"),
        ),
        {},
    )
    judge.decides(
        cluster(
            client("c/client"),
            server("c/server", on="node1"),
            allow("c/allow", ingress=[{"from": [{"namespaceSelector": in_namespace("a")}]}]),
            attachments=at("c/client 10.244.1.3", "c/server 10.244.1.5"),
        ),
        {"c/client > c/server TCP 80": False},
    )


def test_member_that_comes_back_while_no_node_needs_its_set_is_a_member(judge: Judge) -> None:
    policy = allow(selector=labels(app="server"), ingress=FROM_CLIENTS)
    other = allow("b/other")
    for objects in ([client(), server()], [server()], [server(), other], [other], [client()]):
        judge.decides(cluster(*objects, policy), {})
    judge.decides(cluster(client(), server(), policy), {"a/client > a/server TCP 80": True})
