"""A user of a cluster who may look, or not, and has nothing but a kubeconfig."""

import subprocess
import sys
from pathlib import Path

import yaml

from lab import Lab
from tests.lab.kube import kubectl

NAMESPACE = "sluice-system"


def new_user(lab: Lab, name: str, file: Path, *, viewer: bool) -> None:
    """Write the kubeconfig of a new user."""
    kubectl(lab, "create", "serviceaccount", name, "-n", "default")
    if viewer:
        for role in ("sluice-viewer", "sluice-port-forward"):
            bound = [f"--role={role}", f"--serviceaccount=default:{name}"]
            kubectl(lab, "create", "rolebinding", f"{name}-{role}", "-n", NAMESPACE, *bound)
    config = yaml.safe_load(
        kubectl(lab, "config", "view", "--raw", "--minify", "--flatten", "-o", "yaml")
    )
    token = kubectl(lab, "create", "token", name, "-n", "default").strip()
    config["users"][0]["user"] = {"token": token}
    file.write_text(yaml.safe_dump(config))


def sluice(lab: Lab, kubeconfig: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The program, where the API server can be reached."""
    command = [sys.executable, "-m", "cli.main", *words, "--kubeconfig", str(kubeconfig)]
    return subprocess.run(
        lab.command("control", command), capture_output=True, text=True, check=False, timeout=120
    )
