"""The shim, run as a runtime runs it, against an agent that is three lines of asyncio.

Both the program in Python and the compiled one, which must behave alike.
"""

import ast
import asyncio
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cni import sluice_cni

SHIM = Path(sluice_cni.__file__)
MAKE_SHIM = SHIM.parents[1] / "scripts" / "make-shim"


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled plugin."""
    made = subprocess.run(
        [MAKE_SHIM, tmp_path_factory.mktemp("shim")],
        stdout=subprocess.PIPE, text=True, check=True, timeout=60,
    )  # fmt: skip
    return Path(made.stdout.strip())


@pytest.fixture(params=["python", "compiled"])
def shim(request: pytest.FixtureRequest) -> Path:
    """Each of the two programs."""
    if request.param == "python":
        return SHIM
    found: Path = request.getfixturevalue("compiled")
    return found


def run(shim: Path, stdin: bytes, **env: str) -> tuple[int, Any]:
    """Exit code and JSON of the shim with this stdin and environment."""
    done = subprocess.run(
        [str(shim)], input=stdin, env=env, stdout=subprocess.PIPE, check=False, timeout=30
    )
    return done.returncode, json.loads(done.stdout)


def against(
    shim: Path, agent: Callable[[bytes], bytes | None], path: Path, stdin: bytes, **env: str
) -> tuple[int | None, bytes, bytes]:
    """Exit code, stdout, and what the agent got; an agent that says None never answers."""

    async def main() -> tuple[int | None, bytes, bytes]:
        got = bytearray()
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            got.extend(await reader.read())
            answer = agent(bytes(got))
            if answer is None:
                await over.wait()
            else:
                writer.write(answer)
            writer.close()

        async with await asyncio.start_unix_server(serve, path):
            process = await asyncio.create_subprocess_exec(
                str(shim), stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=env
            )
            output, _ = await process.communicate(stdin)
            over.set()
            await asyncio.sleep(0)
        return process.returncode, output, bytes(got)

    return asyncio.run(main())


def conf(path: Path, **more: Any) -> bytes:
    return json.dumps({"cniVersion": "1.0.0", "name": "x", "socket": str(path), **more}).encode()


def test_passes_everything_through(shim: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    stdin = conf(path) + b"\n"
    code, output, got = against(
        shim, lambda _: b'0{"a": 1}\n', path, stdin,
        CNI_COMMAND="ADD", CNI_ARGS="A=1;B=2", PATH="/bin", HOME="/",
    )  # fmt: skip
    assert (code, output) == (0, b'{"a": 1}\n')
    environment, _, rest = got.partition(b"\0\0")
    assert sorted(environment.split(b"\0")) == [b"CNI_ARGS=A=1;B=2", b"CNI_COMMAND=ADD"]
    assert rest == stdin


def test_failure_is_exit_code_1_and_stdout(shim: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    code, output, _ = against(shim, lambda _: b'1{"code": 7}', path, conf(path), CNI_COMMAND="DEL")
    assert (code, output) == (1, b'{"code": 7}')


def test_large_answer_and_request(shim: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    stdin = conf(path, padding="x" * 3_000_000)
    code, output, got = against(
        shim, lambda _: b"0" + b"y" * 2_000_000, path, stdin, CNI_COMMAND="GC"
    )
    assert (code, len(output)) == (0, 2_000_000)
    assert got.endswith(stdin)


def test_agent_that_hangs_up(shim: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    code, output, _ = against(shim, lambda _: b"", path, conf(path), CNI_COMMAND="ADD")
    error = json.loads(output)
    assert (code, error["code"]) == (1, 11)
    assert "without an answer" in error["details"]


def test_agent_that_hangs(shim: Path, tmp_path: Path) -> None:
    path = tmp_path / "s"
    begin = time.monotonic()
    code, output, _ = against(shim, lambda _: None, path, conf(path), CNI_COMMAND="STATUS")
    assert time.monotonic() - begin < sluice_cni.STATUS_TIMEOUT + 3
    assert (code, json.loads(output)["code"]) == (1, 50)


def test_agent_that_dribbles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit holds for the whole answer, not for each piece of it."""
    ticks = iter([0.0, 1.0, 500.0])
    monkeypatch.setattr(sluice_cni, "time", SimpleNamespace(monotonic=lambda: next(ticks)))

    class Connection:
        def settimeout(self, _: float) -> None: ...
        def connect(self, _: bytes) -> None: ...
        def sendall(self, _: bytes) -> None: ...
        def shutdown(self, _: int) -> None: ...
        def recv(self, _: int) -> bytes:
            return b"0"

    monkeypatch.setattr(sluice_cni._socket, "socket", lambda *_: Connection())
    with pytest.raises(sluice_cni.NoAnswerError, match="within 100 seconds"):
        sluice_cni.ask(b"/x", b"", 100.0)


@pytest.mark.parametrize(("command", "answered"), [("ADD", 11), ("DEL", 11), ("STATUS", 50)])
def test_absent_socket_names_it(shim: Path, tmp_path: Path, command: str, answered: int) -> None:
    path = tmp_path / "absent.sock"
    code, error = run(shim, conf(path), CNI_COMMAND=command)
    assert (code, error["code"], error["cniVersion"]) == (1, answered, "1.0.0")
    assert str(path) in error["msg"]
    assert "is the agent of this node running" in error["details"]


@pytest.mark.parametrize("value", [b"/a\\ud800", b"/a\\u0000b"])
@pytest.mark.parametrize("command", ["ADD", "STATUS"])
def test_socket_that_cannot_be_a_path(shim: Path, value: bytes, command: str) -> None:
    stdin = b'{"cniVersion": "1.0.0", "name": "x", "socket": "%s"}' % value
    code, error = run(shim, stdin, CNI_COMMAND=command)
    assert (code, error["code"], error["cniVersion"]) == (1, 7, "1.0.0")
    assert "socket" in error["msg"]


@pytest.mark.parametrize(
    "stdin", [b'{"socket":"\\/a","x":' + b"[" * 100_000, b"{bad", b"", b"[1]", b"\xff"]
)
@pytest.mark.parametrize("command", ["ADD", "VERSION"])
def test_stdin_that_is_no_json_object(shim: Path, stdin: bytes, command: str) -> None:
    code, error = run(shim, stdin, CNI_COMMAND=command)
    assert (code, error["code"]) == (1, 6)
    assert "stdin" in error["msg"]


def test_command_missing(shim: Path) -> None:
    code, error = run(shim, b"{}")
    assert (code, error["code"]) == (1, 4)
    assert "CNI_COMMAND" in error["msg"]


@pytest.mark.parametrize(("given", "answered"), [("0.4.0", "0.4.0"), ("9.9.9", "1.1.0")])
def test_version_needs_no_agent(shim: Path, given: str, answered: str) -> None:
    code, answer = run(shim, json.dumps({"cniVersion": given}).encode(), CNI_COMMAND="VERSION")
    assert code == 0
    assert answer == {
        "cniVersion": answered,
        "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
    }


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b'{"socket":"/a/b"}', b"/a/b"),
        (b'{ "socket" : \n "/a/b" }', b"/a/b"),
        (b'{"name":"socket"}', b"/run/sluice/cni.sock"),
        (b'{"x":"socket","socket":"/a"}', b"/a"),
        (b'{"x":{"socket":"/no"},"socket":"/a"}', b"/a"),
        (b'{"x":"\\"socket\\":\\"/no\\""}', b"/run/sluice/cni.sock"),
        (b'{"socket":"\\/a\\u002fb"}', b"/a/b"),
        (b'{"socket":7}', b"/run/sluice/cni.sock"),
        (b'{"socketPath":"/no"}', b"/run/sluice/cni.sock"),
        (b"not json", b"/run/sluice/cni.sock"),
    ],
)
def test_socket_path(text: bytes, path: bytes) -> None:
    assert sluice_cni.socket_path(text) == path


@pytest.mark.parametrize(
    ("text", "path"),
    [
        (b'{ "socket" : \n "/absent/b" }', "/absent/b"),
        (b'{"x":{"socket":"/no"},"socket":"/absent"}', "/absent"),
        (b'{"x":[{"socket":"/no"}, null, true, -1.5e+3, ""],"socket":"/absent"}', "/absent"),
        (b'{"socket":"/no","socket":"/absent"}', "/absent"),
        (b'{"socket\\u0000":"/no","socket":"/absent"}', "/absent"),
        (b'{"socket":"\\/absent\\u002fb\\ud83d\\ude00\xc3\xa9"}', "/absent/b\U0001f600\u00e9"),
        (b'{"socket":"/absent' + b"/b" * 100 + b'"}', "/absent" + "/b" * 100),
        (b'{"socket":"/absent\\n\\"\\\\"}', '/absent\n"\\'),
    ],
)
def test_the_socket_of_the_configuration_is_asked(shim: Path, text: bytes, path: str) -> None:
    code, error = run(shim, text, CNI_COMMAND="ADD")
    assert (code, error["code"]) == (1, 11)
    assert error["msg"].endswith(f" at {path}")
    assert "\n" not in error["details"]


@pytest.mark.parametrize(
    "stdin",
    [
        b"{", b"{}x", b'{"a" 1}', b'{"a":1,}', b'{"a":01}', b'{"a":1.}', b'{"a":"\n"}', b"nul",
        b'{"a":"\\x"}', b'{"a":"\\u12g4"}', b'{"a":"\xff"}', b'{"a":"\xe0\x80\x80"}',
        b'{"a":"\xf5\x80\x80\x80"}', b'{"a":"\xc3', b'{"a":-}', b"[1",
    ],
)  # fmt: skip
def test_both_refuse_the_same_text(shim: Path, stdin: bytes) -> None:
    code, error = run(shim, stdin, CNI_COMMAND="VERSION")
    assert (code, error["code"], error["cniVersion"]) == (1, 6, "1.1.0")


def test_closed_stdin_is_no_configuration(shim: Path) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f"exec {shim} <&-"], env={"CNI_COMMAND": "ADD"},
        stdout=subprocess.PIPE, check=False, timeout=30,
    )  # fmt: skip
    assert json.loads(done.stdout)["code"] == 6


def test_the_compiled_plugin_needs_no_file_of_the_host(compiled: Path) -> None:
    """Some hosts have no Python, and another C library."""
    data = compiled.read_bytes()
    # elf(5): where the program headers are, their size and number; each begins with its type.
    (first,), (size, count) = (
        struct.unpack_from("=Q", data, 32),
        struct.unpack_from("=HH", data, 54),
    )
    types = {struct.unpack_from("=I", data, first + size * n)[0] for n in range(count)}
    load, interpreter = 1, 3
    assert load in types
    assert interpreter not in types


def test_imports_nothing_that_is_not_built_in(tmp_path: Path) -> None:
    """On the path that every pod takes; parsing JSON alone would double its time."""
    path = tmp_path / "s"
    code = f"""
import sys
before = set(sys.modules)
sys.argv = [{str(SHIM)!r}]
try:
    exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {{"__name__": "__main__"}})
finally:
    sys.stderr.write(" ".join(sorted(set(sys.modules) - before)))
"""

    async def main() -> bytes:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.write(b"0")
            writer.close()

        async with await asyncio.start_unix_server(serve, path):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-IS", "-c", code,
                stdin=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
                env={"CNI_COMMAND": "ADD"},
            )  # fmt: skip
            _, errors = await process.communicate(conf(path))
        assert process.returncode == 0, errors
        return errors

    assert set(asyncio.run(main()).decode().split()) <= {"_socket", "posix", "time"}


def test_is_one_file_for_python_3_9() -> None:
    tree = ast.parse(SHIM.read_text(), feature_version=(3, 9))
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import)
        for alias in node.names
    }
    assert imported == {"_socket", "posix", "sys", "time", "json"}
    assert os.access(SHIM, os.X_OK)
    assert SHIM.read_text().startswith("#!/usr/bin/python3 -IS\n")
