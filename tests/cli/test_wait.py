"""`sluice wait`: its sentence, its progress and its exit code."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from click.testing import CliRunner, Result

from cli import wait
from cli.controller import RequestError
from cli.main import main

AT = time.mktime((2026, 1, 2, 14, 2, 7, 0, 0, -1)) + 0.3125
REF = {"kind": "Service", "namespace": "shop", "name": "web"}
LACKING: dict[str, Any] = {
    "object": REF, "id": "i1", "hold": 4_998, "need": 5_000, "inForce": False,
    "lacking": [{"node": "n3", "why": "not connected"}],
}  # fmt: skip
DONE: dict[str, Any] = LACKING | {
    "hold": 5_000, "inForce": True, "lacking": [], "inForceAt": AT + 0.5,
    "last": {"node": "n17", "at": AT, "exact": True},
}  # fmt: skip


@pytest.fixture
def waited(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(wait, "PAUSE", 0.01)

    def run(*answers: Any, words: tuple[str, ...] = ()) -> tuple[Result, list[dict[str, str]]]:
        asked: list[dict[str, str]] = []
        given: Iterator[Any] = iter(answers)

        def ask(_: object, __: str, query: dict[str, str]) -> Any:
            asked.append(query)
            found = next(given)
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(wait, "ask", ask)
        return CliRunner().invoke(main, ["wait", "svc/shop/web", *words]), asked

    return run


def test_proof_is_one_sentence(waited: Any) -> None:
    done, asked = waited(LACKING, LACKING, DONE)
    assert done.stdout == (
        "5,000 of 5,000 switches hold it, last at 14:02:07.312 (n17); in force since 14:02:07.812\n"
    )
    progress = "4,998 of 5,000 switches hold it; lacking: n3 (not connected) and 1 more\n"
    assert (done.exit_code, done.stderr) == (0, progress)
    assert asked == [
        {"object": "svc/shop/web"},
        {"object": "svc/shop/web", "id": "i1"},
        {"object": "svc/shop/web", "id": "i1"},
    ]


def test_time_that_is_only_an_upper_bound_is_told_so(waited: Any) -> None:
    later = DONE | {"last": DONE["last"] | {"exact": False}}
    assert "last at 14:02:07.312 (n17) at the latest;" in waited(later)[0].stdout


def test_time_is_over(waited: Any) -> None:
    done, _ = waited(LACKING, words=("--timeout", "0"))
    assert done.exit_code == 1
    assert done.stdout.startswith("4,998 of 5,000 switches hold it; lacking: n3 (not connected)")
    pending = {"object": None, "id": "", "pending": "there is no Service shop/web"}
    done, _ = waited(pending, words=("--timeout", "0"))
    assert (done.exit_code, done.stdout) == (1, "there is no Service shop/web\n")


def test_object_without_flows(waited: Any) -> None:
    nothing = {"object": REF, "id": "i", "hold": 0, "need": 0, "inForce": True}
    done, _ = waited(nothing)
    assert (done.exit_code, done.stdout) == (0, "no switch needs flows for Service shop/web\n")


def test_object_that_is_gone(waited: Any) -> None:
    done, asked = waited(LACKING | {"gone": True}, DONE | {"gone": True}, words=("--gone",))
    assert done.stdout.startswith("it is gone from 5,000 of 5,000 switches, last at 14:02:07.312")
    assert "it is gone from 4,998 of 5,000 switches; not from: n3 (not connected)" in done.stderr
    assert asked[0] == {"object": "svc/shop/web", "gone": ""}


def test_controller_that_restarts_is_asked_again(waited: Any) -> None:
    done, asked = waited(LACKING, RequestError("no controller answers"), DONE)
    assert done.exit_code == 0
    assert "no controller answers\n" in done.stderr
    assert len(asked) == 3
    done, _ = waited(RequestError("no controller answers"))
    assert (done.exit_code, done.stderr) == (1, "Error: no controller answers\n")
