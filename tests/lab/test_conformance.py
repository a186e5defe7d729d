"""Kubernetes' own tests: the list of what is skipped, and some that need pods alone."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import Lab, LabError, conformance, ginkgo
from lab.conformance import PLAN, ConformancePlan, Skipped, chosen, read_plan
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


@pytest.fixture(scope="module")
def programs() -> Path:
    return ginkgo.programs()


def test_plan_matches_the_tests_of_this_kubernetes(programs: Path) -> None:
    known = ginkgo.known_tests(programs)
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


def test_pods_pass_kubernetes_own_tests(lab: Lab, programs: Path, tmp_path: Path) -> None:
    tests = chosen(read_plan(PLAN), ginkgo.known_tests(programs), "Granular Checks: Pods")
    told = []
    results = ginkgo.run(lab, programs, tests, 2, tmp_path, lambda name, *_: told.append(name))
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
