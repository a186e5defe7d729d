"""The registry of problems: who tells of what, for how long, and how many are kept."""

import unicodedata

import pytest
from structlog.testing import capture_logs

from controller import problems as module
from controller.problems import (
    ApiPathRef,
    FileRef,
    PortRef,
    Problems,
    Reporter,
    ReporterKind,
    Subject,
    SwitchRef,
)
from flows.refs import CLUSTER, ObjectRef
from wire.sentences import MAX_SENTENCE, readable

INVENTORY = Reporter(ReporterKind.INVENTORY)
AGENT = Reporter(ReporterKind.AGENT, "n1")
OLD = Reporter(ReporterKind.SWITCH, "n1", 1)
NEW = Reporter(ReporterKind.SWITCH, "n1", 2)
WEB = ObjectRef("Service", "default", "web")
POD = ObjectRef("Pod", "default", "a")
N1 = ObjectRef.node("n1")


def test_problem_keeps_the_time_of_its_first_report() -> None:
    now = 100.0
    problems = Problems(clock=lambda: now)
    problems.set(INVENTORY, WEB, "one")
    now = 200.0
    problems.set(INVENTORY, WEB, "one")
    assert [p.since for p in problems] == [100.0]
    problems.set(INVENTORY, WEB, "two")
    assert [(p.text, p.since) for p in problems] == [("two", 200.0)]
    problems.set(INVENTORY, WEB, "")
    assert not problems
    assert problems.of_subject(WEB) == []


def test_reporter_clears_only_its_own_problems() -> None:
    problems = Problems()
    problems.set(OLD, WEB, "the table is full")
    problems.set(NEW, WEB, "the group is too big")
    problems.set(INVENTORY, WEB, "no address")
    problems.clear_reporter(OLD)
    assert {p.text for p in problems.of_subject(WEB)} == {"the group is too big", "no address"}
    problems.clear(NEW, WEB)
    assert problems.text(INVENTORY, WEB) == "no address"
    assert problems.text(NEW, WEB) == ""


def test_problems_of_a_removed_subject_end() -> None:
    problems = Problems()
    for reporter in (OLD, INVENTORY, AGENT):
        problems.set(reporter, WEB, "x")
        problems.set(reporter, POD, "y")
    problems.clear_subject(WEB)
    assert {p.subject for p in problems} == {POD}


def test_new_report_replaces_all_problems_of_its_reporter() -> None:
    problems = Problems()
    problems.replace_all(AGENT, {N1: "one", POD: "two"})
    problems.replace_all(AGENT, {POD: "three"})
    assert problems.texts() == {"Pod default/a on n1": "three"}


def test_problem_with_a_lifetime_ends_unless_it_is_reported_again() -> None:
    now = 0.0
    problems = Problems(monotonic=lambda: now)
    problems.set(AGENT, POD, "x", lifetime=10)
    now = 8.0
    problems.set(AGENT, POD, "x", lifetime=10)
    now = 18.0
    assert problems.text(AGENT, POD) == "x"
    now = 18.1
    assert problems.text(AGENT, POD) == ""
    assert problems.of_subject(POD) == problems.of_reporter(AGENT) == []
    assert len(problems) == 0
    assert not problems._by_reporter
    assert not problems._by_subject


def test_problems_of_a_reporter_are_bounded_and_the_rest_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_OF_NODE", 3)
    monkeypatch.setattr(module, "MAX_COUNTED", 4)
    ports = Reporter(ReporterKind.PORTS, "n1")
    problems = Problems()
    problems.set(INVENTORY, WEB, "no address")
    for number in range(5):
        problems.set(ports, PortRef("n1", f"p{number}"), "no Pod has this name")
    assert problems.texts() == {
        "Service default/web": "no address",
        "port p0 of n1": "no Pod has this name",
        "port p1 of n1": "no Pod has this name",
        "port p2 of n1": "no Pod has this name",
        "further problems of the ports of n1": "2 more are not shown",
    }
    assert len(problems) == 6
    # One that ended makes room for one that is told again.
    problems.clear(ports, PortRef("n1", "p0"))
    problems.set(ports, PortRef("n1", "p4"), "no Pod has this name")
    assert problems.texts()["further problems of the ports of n1"] == "1 more are not shown"
    for number in range(3, 20):
        problems.set(ports, PortRef("n1", f"p{number}"), "no Pod has this name")
    assert problems.texts()["further problems of the ports of n1"] == (
        "at least 4 more are not shown"
    )
    for number in range(20):
        problems.clear(ports, PortRef("n1", f"p{number}"))
    assert problems.texts() == {"Service default/web": "no address"}
    assert ports not in problems._by_reporter


def test_nothing_of_an_ended_reporter_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_OF_NODE", 10)
    problems = Problems()
    for number in range(100):
        problems.set(OLD, ObjectRef("Pod", "default", f"{number}"), "x" * 5000)
    assert len(problems) == 100
    problems.clear_reporter(OLD)
    assert not problems._by_reporter
    assert not problems._by_subject
    assert not problems._more


@pytest.mark.parametrize(
    ("reporter", "subject", "title"),
    [
        (INVENTORY, N1, "Node n1"),
        (INVENTORY, WEB, "Service default/web"),
        (AGENT, N1, "agent of n1"),
        (AGENT, POD, "Pod default/a on n1"),
        (NEW, WEB, "Service default/web on the switch of n1"),
        (Reporter(ReporterKind.COMPILER, "n1"), N1, "flows of n1"),
        (Reporter(ReporterKind.COMPILER), WEB, "flows of Service default/web"),
        (Reporter(ReporterKind.COMPILER), CLUSTER, "flows of cluster"),
        (Reporter(ReporterKind.PORTS, "n1"), PortRef("n1", "pabc"), "port pabc of n1"),
        (
            Reporter(ReporterKind.SWITCH),
            SwitchRef(0xAB, "192.0.2.1:4"),
            "switch 00000000000000ab at 192.0.2.1:4",
        ),
        (Reporter(ReporterKind.SOURCE), FileRef("a\u202eb.yaml"), r"file a\u202eb.yaml"),
        (Reporter(ReporterKind.SOURCE), ApiPathRef("/api/v1/pods"), "API server /api/v1/pods"),
    ],
)
def test_title_names_subject_and_place(reporter: Reporter, subject: Subject, title: str) -> None:
    problems = Problems()
    problems.set(reporter, subject, "why")
    assert problems.texts() == {title: "why"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a €", "a €"),
        ("two\nlines\tand\r", "two lines and "),
        ("\x1b[2J", r"\x1b[2J"),
        ("\x7f", r"\x7f"),
        ("\x9b31m", r"\x9b31m"),
        ("a\u202eb", r"a\u202eb"),
        ("a\u2028b\u2029\x85c", r"a\u2028b\u2029\x85c"),
        ("\ud800", r"\ud800"),
        ("\U000e0001", r"\U000e0001"),
        ("x" * (MAX_SENTENCE + 1), "x" * (MAX_SENTENCE - 1) + "…"),
    ],
)
def test_control_and_formatting_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert readable(text) == shown
    problems = Problems()
    with capture_logs() as lines:
        problems.set(INVENTORY, WEB, text)
    assert problems.texts() == {"Service default/web": shown}
    assert [line["problem"] for line in lines] == [shown]
    assert not {unicodedata.category(c) for c in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}


def test_problem_is_logged_when_it_is_new_or_changed() -> None:
    problems = Problems()
    with capture_logs() as lines:
        for text in ("one", "one", "two", "two", "", "two"):
            problems.set(INVENTORY, WEB, text)
        problems.set(Reporter(ReporterKind.PORTS, "n1"), PortRef("n1", "p"), "early")
    assert [(line["log_level"], line["problem"], line["limit_by"]) for line in lines] == [
        ("warning", "one", "default"),
        ("warning", "two", "default"),
        ("warning", "two", "default"),
        ("info", "early", "n1"),
    ]
