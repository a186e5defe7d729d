"""What Pods of `sluice connectivity` say: it may be anything, as any image may run there."""

import json

import pytest

from cli.connectivity_pods import answers_in


def test_answers_are_read() -> None:
    assert answers_in(json.dumps(["ok server-0", "timed out"])) == ["ok server-0", "timed out"]


@pytest.mark.parametrize(
    "output",
    ["", "5", "{}", "null", "[1]", '["ok"', "[" * 100_000, "Traceback", '["ok"] ["ok"]', "\ud800"],
)
def test_anything_else_is_no_answer(output: str) -> None:
    assert answers_in(output) == []


def test_answer_controls_no_terminal_and_is_short() -> None:
    (said,) = answers_in(json.dumps(["\x1b[2Jok\r\n\u202e" + "x" * 10_000]))
    assert said.startswith("\\x1b[2Jok  \\u202e")
    assert len(said) < 250
