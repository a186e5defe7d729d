"""Captures of a pod's port, by a program in the place of tcpdump: what bounds them, and its end."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node_agent import capture as module
from node_agent.capture import CaptureError, capture
from wire.questions import MAX_CAPTURE, Captured, CapturePod

PORT = "pabcdefghij2345"
LEASES: Any = SimpleNamespace(all=lambda: [SimpleNamespace(port=PORT)])


def captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, **question: Any
) -> Captured:
    program = tmp_path / "tcpdump"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda *_, **__: str(program))

    async def main() -> Captured:
        async with asyncio.timeout(30):
            return await capture(LEASES, CapturePod(PORT, **question))

    return asyncio.run(main())


def test_packets_stay_if_the_pod_goes_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "printf packets; echo 'the interface disappeared' >&2; exit 1"
    assert captured(tmp_path, monkeypatch, script) == Captured(b"packets")


def test_failure_before_the_first_packet_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = "printf 'first\\nsyntax \\033[2J error\\n' >&2; exit 1"
    with pytest.raises(CaptureError, match=r"^tcpdump: syntax \\x1b\[2J error$"):
        captured(tmp_path, monkeypatch, script)


@pytest.mark.parametrize("text", ["-w /etc/x", "--help", "-Z root", "; reboot", "$(reboot)", ""])
def test_filter_is_one_word_and_no_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    script = 'for word; do printf "%s|" "$word"; done'
    words = captured(tmp_path, monkeypatch, script, filter=text).pcap.decode().split("|")[:-1]
    assert words[-2:] == ["--", text]


def test_program_that_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"echo $$ > {tmp_path}/pid; printf packets; exec sleep 1000"
    assert captured(tmp_path, monkeypatch, script, seconds=1) == Captured(b"packets")
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_capture_of_a_fast_pod_is_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = captured(tmp_path, monkeypatch, "exec cat /dev/zero")
    assert (len(found.pcap), found.is_cut) == (MAX_CAPTURE, True)
