"""Upstream's test suites: the list of skipped tests, and some tests that need only pods."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import Lab, LabError, conformance, cyclonus_suite, ginkgo, policy_api_suite, upstream
from lab.conformance import PLAN, ConformancePlan, Programs, Skipped, chosen, read_plan
from tests.labs import unique_name

KNOWN = ["[a] one [C]", "[a] two (of 2) [C]", "[a] three", "[b] four"]
"""In place of the 7,500 that there are."""


def plan(*skipped: str, suites: dict[str, str] | None = None) -> ConformancePlan:
    groups = (Skipped("no Services", skipped),) if skipped else ()
    return ConformancePlan(suites or {"conformance": r"^\[a\].*\[C\]$", "more": r"^\[a\]"}, groups)


def test_a_test_belongs_to_the_first_suite_that_matches() -> None:
    assert [plan().suite_of(name) for name in KNOWN] == ["conformance", "conformance", "more", None]


def test_all_suites_run_except_skipped_tests() -> None:
    assert chosen(plan(), KNOWN) == KNOWN[:3]
    assert chosen(plan(KNOWN[1]), KNOWN) == [KNOWN[0], KNOWN[2]]


def test_skipped_tests_can_run_alone() -> None:
    assert chosen(plan(KNOWN[1]), KNOWN, skipped=True) == [KNOWN[1]]


def test_focus_matches_a_part_of_the_name() -> None:
    assert chosen(plan(), KNOWN, r"\(of 2\)") == [KNOWN[1]]


@pytest.mark.parametrize(
    ("given", "focus", "said"),
    [
        (plan("[a] gone [C]"), "", r"there is no such test: \[a\] gone \[C\]$"),
        (plan("[a] three", "[a] three"), "", r"skipped twice: \[a\] three$"),
        (plan("[b] four"), "", r"in no suite: \[b\] four$"),
        (plan(suites={"old": r"^\[x\]"}), "", r"no test is in suite old: \^\\\[x\\\]$"),
        (plan(), "(", r"^focus '\(' is no regular expression: "),
        (plan(), "four", r"^no test of the suites has 'four' in its name$"),
        (plan("[a] three"), "three", r"^every test that has 'three' in its name is skipped, see "),
    ],
)
def test_plan_entry_that_matches_no_test_is_named(
    given: ConformancePlan, focus: str, said: str
) -> None:
    with pytest.raises(LabError, match=said):
        chosen(given, KNOWN, focus)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("suites: {}", r"missing required field `skipped`$"),
        ("suites: {a: '('}\nskipped: []", r"unterminated subpattern at position 0$"),
        ("suites: {}\nskipped: [{test: [a]}]", r"unknown field `test` - at `\$.skipped\[0\]`$"),
    ],
)
def test_plan_with_a_mistake_is_refused(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    with pytest.raises(LabError, match=said):
        read_plan(tmp_path / "plan.yaml")


def test_failure_before_the_tests_is_reported() -> None:
    failed = {"LeafNodeType": "SynchronizedBeforeSuite", "State": "failed"}
    failed |= {"ContainerHierarchyTexts": None, "LeafNodeText": "", "RunTime": 1}
    failed |= {"Failure": {"Message": "nodes are not ready"}}
    with pytest.raises(LabError, match=r"^SynchronizedBeforeSuite: nodes are not ready$"):
        ginkgo._results([{"SpecReports": [failed]}], {KNOWN[0]})


POLICY_API_OUTPUT = """\
\x16=== RUN   TestConformance
    suite_test.go:66: this kernel has no SCTP
\x16=== RUN   TestConformance/CNPOne
\x16=== RUN   TestConformance/CNPOne/Should_deny
    helper.go:80: Expected connection to fail, but instead it successfully connected.
\x16    --- FAIL: TestConformance/CNPOne/Should_deny (10.50s)
\x16=== NAME  TestConformance/CNPOne
    apply.go:140: Deleting one ClusterNetworkPolicy
\x16    --- FAIL: TestConformance/CNPOne (11.00s)
\x16=== RUN   TestConformance/CNPTwo
\x16=== RUN   TestConformance/CNPTwo/Should_deny
\x16    --- PASS: TestConformance/CNPTwo/Should_deny (1.00s)
\x16    --- PASS: TestConformance/CNPTwo (2.00s)
\x16=== NAME  TestConformance
    apply.go:140: Deleting gryffindor Namespace
\x16--- FAIL: TestConformance (20.00s)
"""


def test_results_of_policy_api_tests_come_with_the_output_of_their_parts() -> None:
    told = []
    results = policy_api_suite._results(
        POLICY_API_OUTPUT.splitlines(keepends=True), lambda *test: told.append(test)
    )
    one, two = results["[network-policy-api] CNPOne"], results["[network-policy-api] CNPTwo"]
    assert told == [
        ("[network-policy-api] CNPOne", "failed", 11.0),
        ("[network-policy-api] CNPTwo", "passed", 2.0),
    ]
    assert (one.state, two.state) == ("failed", "passed")
    assert "instead it successfully connected" in one.message
    assert "this kernel has no SCTP" not in one.message
    assert two.message == ""


CYCLONUS_OUTPUT = """\
CASE set namespace to x
step 1 on all available ports/protocols:
Discrepancy found:4 wrong, 0 ignored, 77 correct
RESULT failed
CASE egress: deny all
0 wrong, 0 ignored, 81 correct
RESULT passed
SummaryTable:
"""


def test_results_of_cyclonus_come_with_the_tables_of_failed_cases() -> None:
    told = []
    results = cyclonus_suite._results(
        CYCLONUS_OUTPUT.splitlines(keepends=True), lambda name, *_: told.append(name)
    )
    assert told == ["set namespace to x", "egress: deny all"]
    assert [result.state for result in results] == ["failed", "passed"]
    assert "4 wrong" in results[0].message
    assert results[1].message == ""


def test_cyclonus_has_216_cases_without_sctp() -> None:
    program = upstream.built("cyclonus")
    assert len(cyclonus_suite.known_cases(program)) == 216
    assert len(cyclonus_suite.known_cases(program, ["-first=210"])) == 7
    with pytest.raises(LabError, match="no such cases"):
        cyclonus_suite.known_cases(program, ["-include=nonsense"])


@pytest.fixture(scope="module")
def programs() -> Programs:
    return Programs(ginkgo.programs(), policy_api_suite.program())


def test_plan_matches_the_tests_of_the_suites(programs: Programs) -> None:
    known = programs.known_tests()
    found = read_plan(PLAN)
    tests = chosen(found, known)
    assert len(tests) + len(found.left_out) == sum(1 for name in known if found.suite_of(name))
    assert all(group.reason for group in found.skipped)


def test_conformance_needs_a_lab_with_kubelets() -> None:
    done = CliRunner().invoke(conformance.main, ["--name", unique_name()])
    assert done.exit_code == 1
    assert "no lab" in done.output


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(unique_name()).running(kubelets=True) as lab:
        yield lab


def test_pods_pass_kubernetes_own_tests(lab: Lab, programs: Programs, tmp_path: Path) -> None:
    tests = chosen(read_plan(PLAN), programs.known_tests(), "Granular Checks: Pods")
    told = []
    results = ginkgo.run(
        lab, programs.kubernetes, tests, 2, tmp_path, lambda name, *_: told.append(name)
    )
    assert {name: result.message for name, result in results.items() if not result.passed} == {}
    assert sorted(results) == sorted(told) == tests
    assert (tmp_path / "junit_01.xml").exists()


def test_a_test_that_skips_itself_has_not_passed(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conformance, "REPORTS", tmp_path)
    monkeypatch.setattr(
        conformance,
        "read_plan",
        lambda _: ConformancePlan({"cloud": r"^\[sig-network\] DNS .*\[Provider:GCE\]$"}, ()),
    )
    done = CliRunner().invoke(conformance.main, ["--name", lab.name])
    assert done.exit_code == 1
    assert (
        "skipped: [sig-network] DNS should provide DNS for the cluster [Provider:GCE]"
        in done.output
    )
    assert "Only supported for providers" in done.output
    assert "0 of 1 passed" in done.output
