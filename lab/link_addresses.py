"""Load balancer addresses on the nodes' own link, and what is done to their owners."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import yaml

from lab import Lab
from lab.arp_watch import Owner, Watch, Watched, watching
from lab.commands import LabError, run
from lab.patience import PATIENCE

POOL = {
    "apiVersion": "sluice.dev/v1alpha1",
    "kind": "AddressPool",
    "metadata": {"name": "link"},
    "spec": {"ranges": ["172.30.200.0/24"], "announce": ["Link"]},
}
_CUT = "test-cut"


def serve(lab: Lab, name: str, cluster_ip: str, address: str) -> None:
    """A Service with this load balancer address, and an endpoint on node1."""
    lab.apply(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": name,
                "namespace": "default",
                "annotations": {"sluice.dev/addresses": address},
            },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": cluster_ip,
                "clusterIPs": [cluster_ip],
                "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
            },
        }
    )
    lab.apply(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": {
                "name": f"{name}-1",
                "namespace": "default",
                "labels": {"kubernetes.io/service-name": name},
            },
            "addressType": "IPv4",
            "ports": [{"name": "web", "port": 80, "protocol": "TCP"}],
            "endpoints": [{"addresses": ["10.244.1.200"], "conditions": {"ready": True}}],
        }
    )


def row(lab: Lab, address: str) -> dict[str, Any]:
    """What `sluice addresses` says of an address; empty: it is not known, or nobody answers."""
    found = lab.ask("/v1/addresses") or {"addresses": []}
    return next((each for each in found["addresses"] if each["address"] == address), {})


def owner(lab: Lab, address: str, *, other_than: str = "") -> str:
    """The node that has the address, once one has it. Raises `LabError` if none gets it."""
    end = time.monotonic() + 60 * PATIENCE
    while time.monotonic() < end:
        if (found := row(lab, address).get("owner", "")) not in {"", other_than}:
            return str(found)
        time.sleep(0.01)
    raise LabError(f"no node has {address}")


@contextmanager
def watched(lab: Lab, address: str) -> Iterator[tuple[str, Watch]]:
    """Its owner, and a watch on the link."""
    before = owner(lab, address)
    with watching(lab, address) as watch:
        time.sleep(0.3)
        yield before, watch


def moved(found: Watched, since: float) -> float:
    """Seconds until another node answered.

    Raises `LabError` unless there was one move: two that have it at one moment answer in turn.
    """
    if len(found.owners) != 2:
        raise LabError("; ".join(_shown(each, since) for each in found.owners) or "no answer")
    return found.owners[1].first - since


def _shown(owner: Owner, since: float) -> str:
    return f"{owner.node} {owner.first - since:.3f} to {owner.last - since:.3f} s"


@contextmanager
def cut_from_controllers(lab: Lab, node: str, *controllers: str) -> Iterator[None]:
    """No packet between a node and these controllers; the link stays."""
    address = next(each.address for each in lab.layout.nodes(9) if each.name == node)
    rules = (
        f"add table inet {_CUT}\n"
        f"add chain inet {_CUT} in {{ type filter hook input priority -300; }}\n"
        f"add chain inet {_CUT} out {{ type filter hook output priority -300; }}\n"
        f"add rule inet {_CUT} in ip saddr {address} drop\n"
        f"add rule inet {_CUT} out ip daddr {address} drop\n"
    )
    places = [lab.layout.netns(each) for each in controllers]
    for place in places:
        run(["nft", "-f", "-"], netns=place, stdin=rules)
    try:
        yield
    finally:
        for place in places:
            run(["nft", "delete", "table", "inet", _CUT], netns=place)


def agent_pid(lab: Lab, node: str) -> int:
    """Of the node's agent."""
    return int(lab.status()["nodes"][node]["pids"]["agent"])


def set_link(lab: Lab, node: str, state: str) -> None:
    """Pull a node's cable out ("down"), or put it in ("up")."""
    lab.exec("fabric", ["ip", "link", "set", node, state])


def drain(lab: Lab, node: str, *, unschedulable: bool) -> None:
    """As kubectl cordon does it, where the cluster is a directory."""
    path = lab.layout.directory / "cluster" / "nodes" / f"{node}.yaml"
    manifest = yaml.safe_load(path.read_text())
    manifest["spec"]["unschedulable"] = unschedulable
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(manifest))
    new.replace(path)
