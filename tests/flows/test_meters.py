"""Meters are part of a node's own program: the shared one has flows and groups only."""

from dataclasses import replace

import pytest

from flows import names
from flows.compile import Compiler, compile_scope
from flows.flow import ApplyMeter, Meter
from flows.kinds import Kind
from flows.pipeline import PipelineError
from flows.policy import Direction
from flows.refs import CLUSTER
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, Cluster, Key
from tests.flows import tracing, worlds
from tests.flows.policies import Policies

VIEW = worlds.view({1: ["default/a", "default/b"], 2: ["default/c"]})


@pytest.mark.parametrize("log_denials", [False, True])
def test_node_has_every_meter_that_its_flows_apply(log_denials: bool) -> None:
    """The meter of denials was in the shared program: switches rejected the flows with it."""
    view = replace(VIEW, cluster=replace(VIEW.cluster, log_denials=log_denials))
    made = Policies()
    for attachment in view.attachments["node1"].values():
        for direction in Direction:
            made.isolate(attachment, direction)
    view = made.on(view)
    applied = {
        action.meter
        for flow in tracing.flows(view, "node1")
        for action in flow.actions
        if isinstance(action, ApplyMeter)
    }
    own = compile_scope(view, "node1").meters
    assert applied <= own.keys()
    assert (names.DENIAL_METER in applied) == (names.DENIAL_METER in own) == log_denials
    assert compile_scope(view, CLUSTER_SCOPE).meters == {}


@pytest.mark.parametrize("scope", [CLUSTER_SCOPE, SOME_SCOPE])
def test_meter_for_several_nodes_is_refused(scope: str) -> None:
    kind = Kind[Cluster](
        "made-up", "cluster" if scope == CLUSTER_SCOPE else "some",
        names=lambda _, __: ["x"],
        find=lambda view, _, __: view.cluster,
        owners=lambda _, __: [CLUSTER],
    )  # fmt: skip
    compiler = Compiler(((kind.by(lambda _, __: [Meter(9, 1, 1)]),),))
    with pytest.raises(PipelineError, match="cluster: meter 9"):
        compiler.fragment(VIEW, Key(scope, "made-up", "x"))
