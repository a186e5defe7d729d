"""The manifests: a real API server takes them; they give the rights that are used and no more."""

import json
import tomllib
from pathlib import Path

import pytest
import yaml

from settings import load
from tests.deploy.conftest import KUSTOMIZE, ROOT, Api, objects, rendered

NAMES = sorted(path.parent.name for path in KUSTOMIZE.glob("*/kustomization.yaml"))
CONTROLLER = "system:serviceaccount:sluice-system:sluice-controller"
AGENT = "system:serviceaccount:sluice-system:sluice-agent"
ANYBODY = "system:serviceaccount:default:anybody"


@pytest.mark.parametrize("name", NAMES)
def test_an_api_server_takes_all_of_it(api: Api, name: str) -> None:
    text = rendered(api.kubectl_path, KUSTOMIZE / name)
    said = api.kubectl("apply", "--validate=strict", "-f", "-", stdin=text)
    assert len(said.splitlines()) == len(objects(text))
    assert api.kubectl("diff", "-f", "-", stdin=text) == ""


@pytest.mark.parametrize("name", ["base", "lab", "uninstall"])
def test_the_settings_are_settings(kubectl_path: Path, name: str, tmp_path: Path) -> None:
    text = rendered(kubectl_path, KUSTOMIZE / name)
    (config,) = (
        item for item in yaml.safe_load_all(text) if item["metadata"]["name"] == "sluice-config"
    )
    file = tmp_path / "sluice.yaml"
    file.write_text(config["data"]["sluice.yaml"])
    settings = load(file)
    assert settings.agent is not None
    assert (settings.cluster is None) == (name == "uninstall")


def test_images_have_the_version_of_the_project(kubectl_path: Path) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name in NAMES:
        text = rendered(kubectl_path, KUSTOMIZE / name)
        images = {
            line.split()[1] for line in text.splitlines() if line.strip().startswith("image:")
        }
        assert images <= {f"sluice-controller:{version}", f"sluice-agent:{version}"}
        assert images


def test_a_ca_that_is_there_is_left_by_the_next_apply(api: Api) -> None:
    text = rendered(api.kubectl_path, KUSTOMIZE / "base")
    api.kubectl("apply", "-f", "-", stdin=text)
    ca = {"data": {"tls.key": "a2V5"}}
    api.kubectl("-n", "sluice-system", "patch", "secret", "sluice-ca", "-p", json.dumps(ca))
    changed = text.replace("cpu: 100m", "cpu: 200m")
    assert "deployment.apps/sluice-controller configured" in api.kubectl(
        "apply", "-f", "-", stdin=changed
    )
    assert api.get("-n", "sluice-system", "secret", "sluice-ca")["data"] == ca["data"]


def rights(api: Api, who: str, namespace: str) -> set[str]:
    """Lines of `kubectl auth can-i --list`, less what everybody may."""
    listed = ["auth", "can-i", "--list", "--no-headers", "--namespace", namespace]
    everybody, found = (
        # In columns, as wide as they need to be.
        {" ".join(line.split()) for line in api.kubectl(*listed, f"--as={one}").splitlines()}
        for one in (ANYBODY, who)
    )
    return found - everybody


def test_the_controller_may_do_what_it_does_and_nothing_else(api: Api) -> None:
    text = rendered(api.kubectl_path, KUSTOMIZE / "base")
    api.kubectl("apply", "-f", "-", stdin=text)
    everywhere = {
        "nodes [] [] [get list watch]",
        "namespaces [] [] [get list watch]",
        "pods [] [] [get list watch]",
        "services [] [] [get list watch]",
        "endpointslices.discovery.k8s.io [] [] [get list watch]",
        "networkpolicies.networking.k8s.io [] [] [get list watch]",
        "clusternetworkpolicies.policy.networking.k8s.io [] [] [get list watch]",
        "bgppeers.sluice.dev [] [] [get list watch]",
        "addresspools.sluice.dev [] [] [get list watch]",
        "egressaddresses.sluice.dev [] [] [get list watch]",
        "nodes/status [] [] [patch]",
        "services/status [] [] [patch]",
        "events.events.k8s.io [] [] [create patch]",
        "tokenreviews.authentication.k8s.io [] [] [create]",
    }
    assert rights(api, CONTROLLER, "default") == everywhere
    assert rights(api, CONTROLLER, "sluice-system") == everywhere | {
        "secrets [] [sluice-ca] [get update]",
        # Passwords of BGPPeers.
        "secrets [] [sluice-bgp] [get]",
        "configmaps [] [sluice-ca] [get update]",
        "leases.coordination.k8s.io [] [] [create]",
        "leases.coordination.k8s.io [] [sluice-controller] [get update]",
    }


def test_the_agent_may_do_nothing(api: Api) -> None:
    text = rendered(api.kubectl_path, KUSTOMIZE / "base")
    api.kubectl("apply", "-f", "-", stdin=text)
    for namespace in ("default", "sluice-system"):
        assert rights(api, AGENT, namespace) == set()
    account = api.get("-n", "sluice-system", "serviceaccount", "sluice-agent")
    assert account["automountServiceAccountToken"] is False


def test_a_viewer_may_create_one_token_and_nothing_else(api: Api) -> None:
    text = rendered(api.kubectl_path, KUSTOMIZE / "base")
    api.kubectl("apply", "-f", "-", stdin=text)
    for role, allowed in {
        "sluice-viewer": {
            "serviceaccounts/token [] [sluice-viewer] [create]",
            "configmaps [] [sluice-ca] [get]",
        },
        "sluice-capturer": {"serviceaccounts/token [] [sluice-capturer] [create]"},
        "sluice-port-forward": {"pods [] [] [list]", "pods/portforward [] [] [get create]"},
    }.items():
        who = f"system:serviceaccount:default:{role}"
        bound = [f"--role={role}", f"--serviceaccount=default:{role}"]
        assert rights(api, who, "sluice-system") == set()
        api.kubectl("-n", "sluice-system", "create", "rolebinding", role, *bound)
        assert rights(api, who, "sluice-system") == allowed
        assert rights(api, who, "default") == set()
    # The token itself gives no right.
    for account in ("sluice-viewer", "sluice-capturer"):
        who = f"system:serviceaccount:sluice-system:{account}"
        assert rights(api, who, "sluice-system") == set()
