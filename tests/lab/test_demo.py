"""`make demo` and `make demo KEEP=1`, without the make."""

import subprocess
import sys

from lab import Lab


def demo(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "lab.demo", *words],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_demo_shows_that_all_pods_reach_each_other_and_cleans_up(name: str) -> None:
    done = demo("--name", name, "--nodes", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    # 4 pods among themselves, 2 nodes to 4 pods, all 6 to the outside.
    assert "all 26 reached" in done.stdout
    assert "Pod default/a1: to this pod" in done.stdout
    assert not Lab(name).down(), "it was not taken down"


def test_demo_with_keep_leaves_the_lab_up(name: str) -> None:
    for _ in range(2):
        done = demo("--name", name, "--nodes", "1", "--keep")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "It is still up." in done.stdout
        assert f"sluice lab down --name {name}" in done.stdout
    assert "It is still up." in demo("--name", name, "--nodes", "1").stdout
    assert len(Lab(name).pods()) == 2
