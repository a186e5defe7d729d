"""Every wait in lab/, bench/ and tests/ has a bound: one without an end holds the whole run.

What asyncio awaits inside a test is bounded by the test's own time limit; whatever is left then, by
the watchdog (`tests.watchdog`).
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUN = {"run", "call", "check_call", "check_output"}
"""Functions of `subprocess` that return when the program has ended."""
CONNECT = {"urlopen", "create_connection", "HTTPConnection", "HTTPSConnection"}
READ = {"read", "readline", "readlines"}


def unbounded(source: str) -> Iterator[tuple[int, str]]:
    """Line and reason of each wait without a bound in a Python source."""
    tree = ast.parse(source)
    awaited = {node.value for node in ast.walk(tree) if isinstance(node, ast.Await)}
    for node in ast.walk(tree):
        if isinstance(node, ast.With) and any(_name(i.context_expr) == "Popen" for i in node.items):
            yield node.lineno, "Popen.__exit__ waits without a bound: use lab.processes.running"
        elif isinstance(node, ast.For | ast.comprehension) and _is_pipe(node.iter):
            yield node.iter.lineno, "a pipe is read without a bound: use lab.processes.running"
        elif isinstance(node, ast.Call) and node not in awaited and (why := _why(node)):
            yield node.lineno, why


def _why(call: ast.Call) -> str | None:
    name, given = _name(call), {keyword.arg for keyword in call.keywords}
    of = call.func.value if isinstance(call.func, ast.Attribute) else None
    if name in READ and _is_pipe(of):
        return "a pipe is read without a bound: use lab.processes.running"
    if name == "flock" and not {"LOCK_NB", "LOCK_UN"} & set(
        re.findall(r"LOCK_\w+", ast.dump(call))
    ):
        return "flock without LOCK_NB: use lab.commands.lock_file"
    needs_timeout = (
        (name in RUN and isinstance(of, ast.Name) and of.id == "subprocess")
        or (name in {"wait", "join"} and of is not None and not call.args)
        or (name == "communicate" and of is not None)
        or (name in CONNECT and len(call.args) < 2)
    )
    # None stands for `**options`, which may have one.
    return f"{name} without timeout" if needs_timeout and not given & {"timeout", None} else None


def _name(node: ast.AST) -> str | None:
    """What a call calls, without what it is an attribute of."""
    if not isinstance(node, ast.Call):
        return None
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)


def _is_pipe(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in {"stdout", "stderr"}


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['x'], check=False)",
        "subprocess.check_output(['x'])",
        "process.wait()",
        "process.communicate()",
        "thread.join()",
        "with subprocess.Popen(['x']) as process: pass",
        "process.stdout.readline()",
        "for line in process.stdout: pass",
        "lines = [line for line in process.stdout]",
        "urlopen('http://127.0.0.1')",
        "fcntl.flock(lock, fcntl.LOCK_EX)",
    ],
)
def test_wait_without_a_bound_is_found(source: str) -> None:
    assert list(unbounded(source))


@pytest.mark.parametrize(
    "source",
    [
        "subprocess.run(['x'], check=False, timeout=30)",
        "process.wait(5)",
        "process.communicate(timeout=5)",
        "', '.join(words)",
        "async def f(): await event.wait()",
        "urlopen('http://127.0.0.1', timeout=5)",
        "fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)",
    ],
)
def test_wait_with_a_bound_is_not_reported(source: str) -> None:
    assert not list(unbounded(source))


def test_every_wait_has_a_bound() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {why}"
        for folder in ("lab", "bench", "tests")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, why in unbounded(path.read_text())
    ]
    assert not found, "\n" + "\n".join(found)
