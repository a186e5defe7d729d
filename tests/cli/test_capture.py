"""`sluice capture`: where its file goes."""

import struct
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import capture as module
from cli.main import main

PCAP = struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 256, 1) + 2 * (
    struct.pack("<IIII", 0, 0, 3, 3) + b"abc"
)


@pytest.fixture(autouse=True)
def captured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "download", lambda *_: (PCAP, {}))


def test_file_has_the_packets(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["capture", "a/b", "-o", str(tmp_path / "x.pcap")])
    assert (done.exit_code, done.stderr) == (0, "2 packets\n")
    assert (tmp_path / "x.pcap").read_bytes() == PCAP


def test_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["capture", "a/b", "-o", str(tmp_path / "no" / "x.pcap")])
    assert done.exit_code == 1
    assert done.stderr.endswith("x.pcap cannot be written: No such file or directory\n")
