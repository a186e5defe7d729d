"""`sluice pools`, from manifests."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cli.main import main


@pytest.fixture
def manifests(tmp_path: Path) -> Path:
    """A pool of two addresses, of which a Service has one, and a Service that wants the same."""

    def service(name: str, **more: Any) -> dict[str, Any]:
        metadata = {"name": name, "namespace": "default", "uid": name}
        spec = {"type": "LoadBalancer", "clusterIP": "10.96.0.9", "ports": [{"port": 80}]}
        return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec} | more

    pool = {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "AddressPool",
        "metadata": {"name": "edge"},
        "spec": {"ranges": ["192.0.2.0/31", "nonsense"], "announce": ["BGP"]},
    }
    web = service("web", status={"loadBalancer": {"ingress": [{"ip": "192.0.2.1"}]}})
    late = service("late")
    late["spec"]["loadBalancerIP"] = "192.0.2.1"
    items = [pool, web, late]
    path = tmp_path / "cluster.json"
    path.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": items}))
    return path


def said(*words: str) -> str:
    result = CliRunner().invoke(main, [*words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_all_pools_and_who_waits_are_shown(manifests: Path) -> None:
    lines = said("pools", "--from", str(manifests)).splitlines()
    assert lines[0].split() == ["POOL", "FREE", "OF", "GIVES", "ANNOUNCE", "NAMESPACES", "RANGES"]
    assert lines[1].split() == ["edge", "1", "2", "by", "itself", "BGP", "*", "192.0.2.0-192.0.2.1"]
    assert "AddressPool edge: spec.ranges[1]: 'nonsense' is neither a CIDR" in lines[2]
    assert "Service default/late: spec.loadBalancerIP: 192.0.2.1: Service default/web" in lines[3]


def test_one_pool_is_shown_with_its_users(manifests: Path) -> None:
    text = said("pools", "edge", "--from", str(manifests))
    assert "AddressPool edge  1 of 2 free" in text
    assert "192.0.2.1  -" in text
    assert "default/web" in text
    found = json.loads(said("pools", "--json", "--from", str(manifests)))
    assert [user["services"] for user in found["pools"][0]["users"]] == [["default/web"]]
    assert set(found["waiting"]) == {"default/late"}


def test_service_says_why_it_has_its_address(manifests: Path) -> None:
    text = said("services", "default/web", "--from", str(manifests))
    assert "load balancer address 192.0.2.1 of AddressPool edge: it was free when" in text
    assert "load balancer address: none" in said(
        "services", "default/late", "--from", str(manifests)
    )


def test_unknown_pool_is_an_error(manifests: Path) -> None:
    result = CliRunner().invoke(main, ["pools", "other", "--from", str(manifests)])
    assert result.exit_code == 1
    assert "there is no AddressPool other" in result.output
