"""While policies change, a switch lets pass exactly what the old *and* the new ones allow."""

import pytest

from flows.features.policy import control
from flows.pipeline import Feature
from flows.transition import transition
from tests.policy.controlled import Controlled
from tests.policy.evaluator import Cluster
from tests.policy.generator import as_yaml, generate
from tests.policy.proof import Proof
from tests.policy.switches import Contents, Switches

CHANGES = 20
"""Changes of one test."""
_POLICIES = {"NetworkPolicy", "ClusterNetworkPolicy"}


def with_policies_of(pods: Cluster, policies: Cluster) -> Cluster:
    """The pods of one cluster under the policies of another one."""
    kept = [each for each in pods.objects if each["kind"] not in _POLICIES]
    others = [each for each in policies.objects if each["kind"] in _POLICIES]
    return Cluster(kept + others, pods.attachments)


def first_phase(old: Contents, new: Contents) -> Contents:
    """What a switch holds between two states of policy."""
    before, after = (
        [flow for flow in each.flows.values() if flow.feature == Feature.POLICY]
        for each in (old, new)
    )
    flows = [flow for flow in new.flows.values() if flow.feature != Feature.POLICY]
    flows += transition(before, after)
    # These take the place of the flows that judge by one state.
    flows += control("both")
    return Contents({flow.cookie: flow for flow in flows}, new.meters)


@pytest.mark.parametrize("seed", range(0, 5 * CHANGES, CHANGES))
def test_what_both_states_allow_passes_between_them(switches: Switches, seed: int) -> None:
    for number in range(seed, seed + CHANGES):
        before = generate(2 * number)
        cluster = with_policies_of(before, generate(2 * number + 1))
        controlled = Controlled()
        controlled.become(before)
        old = controlled.contents(switches.nodes)
        controlled.become(cluster)
        new = controlled.contents(switches.nodes)
        between = {node: first_phase(old[node], new[node]) for node in switches.nodes}
        for difference in Proof(cluster, between, switches, before=before).differences():
            pytest.fail(f"{difference}\n# before\n{as_yaml(before)}\n# now\n{as_yaml(cluster)}")
