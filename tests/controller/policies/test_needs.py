"""Which keys are reported when nodes begin and cease to need sets."""

from flows.view import Key
from tests.controller.policies.clusters import PolicyCluster, namespace, policy


def test_node_that_needs_a_set_no_more_is_told_of_members_that_went_before_they_were_compiled() -> (
    None
):
    cluster = PolicyCluster()
    cluster.namespace("shop")
    cluster.namespace("peers", team="red")
    cluster.pod("shop/x", "10.244.1.5")
    cluster.pod("peers/p", "10.244.2.5")
    red = [{"namespaceSelector": {"matchLabels": {"team": "red"}}}]
    cluster.put(policy("shop/p", ingress=[{"from": red}]))
    (member,) = {key.name for key in cluster.inventory.view.needed_by if "member" in key.kind}
    # The compiler has not come to the keys of this change yet, ...
    cluster.inventory.policies.may_begin = lambda: False
    cluster.put(namespace("peers", {}))
    # ... and when it does, the set has no need of node1 any more.
    assert Key("node1", "policy-member", member) in cluster.unplug("shop/x")
