"""Namespaces, Pods and NetworkPolicies as manifests, and the ports of Pods."""

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address
from typing import Any

from bench.controller import Manifest
from controller.inventory import BridgePort
from flows import names

Labels = Mapping[str, str]


def namespace(name: str, labels: Labels) -> Manifest:
    """A Namespace."""
    metadata = {"name": name, "uid": f"uid-{name}", "labels": dict(labels)}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def pod(node: str, namespace: str, name: str, labels: Labels) -> Manifest:
    """A Pod that runs on a node."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{namespace}-{name}",
            "labels": dict(labels),
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "main", "image": "registry.k8s.io/pause:3.10"}],
        },
    }


def port(of: Manifest, address: IPv4Address, number: int) -> BridgePort:
    """The port of a Pod, the one with this number, from 0, of its node's bridge."""
    metadata = of["metadata"]
    uid = metadata["uid"]
    name = names.port_name(metadata["namespace"], metadata["name"], uid, "eth0", uid)
    return BridgePort(name, names.FIRST_ATTACHMENT_OFPORT + number, names.mac_of(address))


def policy(
    namespace: str,
    name: str,
    subject: Labels,
    *,
    ingress: Sequence[Manifest] | None = None,
    egress: Sequence[Manifest] | None = None,
) -> Manifest:
    """A NetworkPolicy for the pods with these labels. None: it says nothing of a direction."""
    spec: dict[str, Any] = {"podSelector": selector(subject), "policyTypes": []}
    for direction, rules in (("Ingress", ingress), ("Egress", egress)):
        if rules is not None:
            spec["policyTypes"].append(direction)
            spec[direction.lower()] = list(rules)
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}"},
        "spec": spec,
    }


def from_(peers: Iterable[Manifest], *tcp: int) -> Manifest:
    """A rule of ingress; without ports it is for all of them."""
    rule: dict[str, Any] = {"from": list(peers)}
    if tcp:
        rule["ports"] = [{"protocol": "TCP", "port": number} for number in tcp]
    return rule


def pods(labels: Labels) -> Manifest:
    """A peer: pods of the policy's own Namespace."""
    return {"podSelector": selector(labels)}


def namespaces(labels: Labels) -> Manifest:
    """A peer: all pods of some Namespaces."""
    return {"namespaceSelector": selector(labels)}


def block(cidr: str, *excepts: str) -> Manifest:
    """A peer: a range of addresses without others."""
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepts)} if excepts else {})}}


def selector(labels: Labels) -> Manifest:
    """A selector of these labels; of none: everything."""
    return {"matchLabels": dict(labels)} if labels else {}
