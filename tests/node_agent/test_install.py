"""Which CNI plugin an agent installs."""

import platform
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node_agent import install


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `cni` that has the plugin in Python, and compiled for another machine."""
    package = tmp_path / "cni"
    package.mkdir()
    (package / "sluice_cni.py").write_text("python")
    (package / "sluice_cni-pdp11").write_text("another machine")
    spec = SimpleNamespace(origin=str(package / "sluice_cni.py"))
    monkeypatch.setattr(install, "find_spec", lambda _: spec)
    return package


@pytest.mark.parametrize("compiled", [False, True])
def test_a_plugin_compiled_for_this_machine_is_preferred(
    sources: Path, tmp_path: Path, *, compiled: bool
) -> None:
    if compiled:
        (sources / f"sluice_cni-{platform.machine()}").write_text("compiled")
    agent: Any = SimpleNamespace(cni_bin=tmp_path / "bin")
    install.install_shim(agent)
    installed = tmp_path / "bin" / "sluice"
    assert installed.read_text() == ("compiled" if compiled else "python")
    assert installed.stat().st_mode & 0o777 == 0o755
