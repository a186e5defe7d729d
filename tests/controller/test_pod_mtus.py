"""Nodes whose pods get another MTU than most."""

from controller.pod_mtus import REPORTER, PodMtus
from controller.problems import Problems
from flows.refs import ObjectRef

KNOWN = {"n1", "n2", "n3", "n4"}


def test_node_with_an_unusual_mtu_is_reported() -> None:
    problems = Problems()
    mtus = PodMtus(problems, KNOWN.__contains__)

    def told() -> set[str]:
        return {str(problem.subject) for problem in problems.of_reporter(REPORTER)}

    mtus.report("n1", 8950)
    assert told() == set()
    mtus.report("n2", 1450)
    mtus.report("n1", 8950)
    assert told() == {"Node n1"}, "of two, the smaller is right"
    text = problems.text(REPORTER, ObjectRef("Node", "", "n1"))
    assert text.startswith("pods of this node get an MTU of 8950, those of most nodes 1450")
    assert text.endswith("set cluster.mtu to 1450")
    # What one node claims is its own problem, not that of all others.
    mtus.report("n3", 1450)
    mtus.report("n4", 65535)
    assert told() == {"Node n1", "Node n4"}
    mtus.report("n4", 0)
    mtus.report("n1", 1450)
    assert told() == set()


def test_nodes_that_are_gone_do_not_count() -> None:
    problems, known = Problems(), {f"old{number}" for number in range(10)}
    mtus = PodMtus(problems, known.__contains__)
    for name in sorted(known):
        mtus.report(name, 1450)
    known.clear()
    known |= {f"new{number}" for number in range(9)}
    for _ in range(4):
        for name in sorted(known):
            mtus.report(name, 8950)
    assert not problems.of_reporter(REPORTER)
