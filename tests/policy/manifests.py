"""Manifests in a few words, for tests and for the generator."""

from typing import Any, Final

from tests.policy.evaluator import Attachment, Cluster

Part = dict[str, Any]
EVERYBODY: Part = {}


def node(number: int, **labels: str) -> Part:
    """A Node as a manifest has it."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": f"node{number}", "uid": f"node-{number}", "labels": labels},
        "spec": {"podCIDR": f"10.244.{number}.0/24"},
        "status": {"addresses": [{"type": "InternalIP", "address": f"172.30.1.{number}"}]},
    }


def namespace(name: str, **labels: str) -> Part:
    """A Namespace as a manifest has it."""
    metadata = {"name": name, "uid": f"namespace-{name}", "labels": labels}
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": metadata}


def pod(
    name: str, on: str, labels: Part | None = None, ports: list[Part] | None = None, **spec: Any
) -> Part:
    """A Pod as a manifest has it. `name`: `NAMESPACE/NAME`."""
    in_namespace, _, own = name.partition("/")
    containers = [{"name": "main", "image": "x", **({"ports": ports} if ports else {})}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": own, "namespace": in_namespace, "uid": f"pod-{in_namespace}-{own}",
            **({"labels": labels} if labels is not None else {}),
        },
        "spec": {"nodeName": on, "containers": containers, **spec},
    }  # fmt: skip


def network_policy(name: str, **spec: Any) -> Part:
    """A NetworkPolicy as a manifest has it. `name`: `NAMESPACE/NAME`."""
    in_namespace, _, own = name.partition("/")
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": own, "namespace": in_namespace, "uid": f"policy-{in_namespace}-{own}"},
        "spec": spec,
    }  # fmt: skip


def cluster_policy(name: str, tier: str = "Admin", priority: int = 10, **spec: Any) -> Part:
    """A ClusterNetworkPolicy as a manifest has it."""
    return {
        "apiVersion": "policy.networking.k8s.io/v1beta1",
        "kind": "ClusterNetworkPolicy",
        "metadata": {"name": name, "uid": f"cluster-policy-{name}"},
        "spec": {"tier": tier, "priority": priority, **spec},
    }


NODES: Final = [node(1), node(2), node(3)]
NAMESPACES: Final = [namespace("a", team="x"), namespace("b", team="y"), namespace("c")]


def at(*attachments: str) -> list[Attachment]:
    """Each `NAMESPACE/NAME ADDRESS`; the address gives the node."""
    found = []
    for text in attachments:
        name, address = text.split()
        found.append(Attachment(name, f"node{address.split('.')[2]}", address))
    return found


def cluster(*objects: Part, attachments: list[Attachment] | None = None) -> Cluster:
    """Three nodes, three Namespaces and these objects.

    Without `attachments` each pod is attached, at the next address of its node.
    """
    if attachments is None:
        attachments = []
        for each in objects:
            if each["kind"] == "Pod" and not each["spec"].get("hostNetwork"):
                on = each["spec"]["nodeName"]
                number = 2 + sum(other.node == on for other in attachments)
                name = f"{each['metadata']['namespace']}/{each['metadata']['name']}"
                attachments.append(Attachment(name, on, f"10.244.{on[-1]}.{number}"))
    given = {(e["kind"], e["metadata"]["name"]) for e in objects}
    fixed = [e for e in NODES + NAMESPACES if (e["kind"], e["metadata"]["name"]) not in given]
    return Cluster([*fixed, *objects], attachments)


def client(name: str = "a/client", on: str = "node1", **labels: str) -> Part:
    return pod(name, on, labels or {"app": "client"})


def server(name: str = "a/server", on: str = "node2", **more: Any) -> Part:
    return pod(name, on, {"app": "server"}, **more)


def named(name: str, port: int, protocol: str = "TCP") -> Part:
    return {"name": name, "containerPort": port, "protocol": protocol}


def allow(name: str = "a/allow", selector: Part = EVERYBODY, **spec: Any) -> Part:
    return network_policy(name, podSelector=selector, **spec)


def labels(**wanted: str) -> Part:
    return {"matchLabels": wanted}


def in_namespace(name: str) -> Part:
    return {"matchLabels": {"kubernetes.io/metadata.name": name}}


def block(cidr: str, *excepted: str) -> Part:
    return {"ipBlock": {"cidr": cidr, **({"except": list(excepted)} if excepted else {})}}


def cluster_rule(action: str, **more: Any) -> Part:
    peers = {} if "to" in more or "from" in more else {"from": [{"namespaces": {}}]}
    return {"action": action, **peers, **more}
