"""Each part of Sluice gets along with the packages of its own extra, and with no others."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.metadata import distribution, packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
PRUNED = {
    line.split()[0]
    for line in (ROOT / "requirements-pruned.txt").read_text().splitlines()
    if not line.startswith("#")
}
PARTS = {
    "controller": ("flows", "settings", "wire", "openflow", "bgp", "controller"),
    "agent": ("flows", "settings", "wire", "openflow", "bgp", "cni", "node_agent"),
    # What these import of the other folders, too.
    "cli": ("cli", "lab"),
}
SHARED = ("flows", "settings", "wire")
OF_OTHERS = {"cli": ("bgp", "controller", "node_agent", "openflow")}
"""The command line reads manifests by the inventory, which makes values of openflow, and traces
packets without a cluster as an agent does."""
IMPORT_EVERYTHING = """
import importlib, json, sys
from importlib.abc import MetaPathFinder
from pathlib import Path
folders, allowed = json.loads(sys.argv[1])
allowed = {*allowed, *folders, *sys.stdlib_module_names}

class Allowed(MetaPathFinder):
    finders = sys.meta_path[:]

    def find_spec(self, name, path=None, target=None):
        # The name of Debian's `_sysconfigdata` has the machine's.
        if name.partition(".")[0] in allowed or name.startswith("_sysconfigdata"):
            for finder in self.finders:
                if (found := finder.find_spec(name, path, target)) is not None:
                    return found
        return None

for name in [name for name in sys.modules if name.partition(".")[0] not in allowed]:
    if name not in ("__main__", "sitecustomize"):
        del sys.modules[name]
sys.meta_path[:] = [Allowed()]
for folder in folders:
    for file in sorted(Path(folder).rglob("*.py")):
        if file.stem != "__main__":
            name = ".".join(file.with_suffix("").parts).removesuffix(".__init__")
            importlib.import_module(name)
"""


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def locked(part: str) -> set[str]:
    text = (ROOT / f"requirements-{part}.lock").read_text()
    return {canonical(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}


def required(part: str) -> set[str]:
    """Of an extra, all that pip would install."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    names = {*project["dependencies"], *project["optional-dependencies"][part]}
    while names:
        found |= {canonical(re.split(r"[^\w.-]", name)[0]) for name in names}
        requirements = [
            Requirement(text) for name in found for text in distribution(name).requires or ()
        ]
        names = {
            canonical(each.name)
            for each in requirements
            if each.marker is None or each.marker.evaluate({"extra": ""})
        } - found
    return found


@pytest.mark.parametrize("part", PARTS)
def test_a_part_needs_no_package_but_its_own(part: str) -> None:
    packages = required(part) if part == "cli" else locked(part)
    modules = [
        module
        for module, distributions in packages_distributions().items()
        if {canonical(name) for name in distributions} & packages
    ]
    modules += OF_OTHERS.get(part, ())
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_EVERYTHING, json.dumps([PARTS[part], [*modules, *SHARED]])],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("lock", ["requirements", "requirements-agent", "requirements-controller"])
def test_locks_hold_nothing_that_is_pruned(lock: str) -> None:
    text = (ROOT / f"{lock}.lock").read_text()
    names = {canonical(name) for name in re.findall(r"^([\w.-]+)==", text, re.MULTILINE)}
    assert not names & (PRUNED | {"ovsdbapp", "lxml", "paramiko", "greenlet"})


def test_the_command_line_needs_no_openflow() -> None:
    heavy = {"os-ken", "ovs", "pyroute2", "cryptography", "watchfiles"}
    assert not required("cli") & heavy
    assert not locked("agent") & {"kubernetes", "prometheus-client", "watchfiles", "rich"}
    assert not locked("controller") & {"pyroute2", "rich"}


def test_kubectl_finds_the_program() -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    # kubectl runs `kubectl sluice` as `kubectl-sluice` (Kubernetes: Extend kubectl with plugins).
    assert scripts["kubectl-sluice"] == scripts["sluice"]
