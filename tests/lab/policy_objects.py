"""The lab's objects that policy is about: changed in its directory of manifests."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import yaml

from lab import Lab
from tests.policy.evaluator import Attachment, Cluster, End, gateway

Part = dict[str, Any]


def edit_pod(lab: Lab, pod: str, labels: Mapping[str, str] | None = None, **spec: Any) -> None:
    """Give a Pod other labels, and these fields of its spec."""
    directory = lab.layout.cluster
    path = directory / "pods" / f"{pod.replace('/', '.')}.yaml"
    manifest = yaml.safe_load(path.read_text())
    if labels is not None:
        manifest["metadata"]["labels"] = dict(labels)
    manifest["spec"] |= spec
    part = directory.with_name(f"{directory.name}.{path.name}.part")
    part.write_text(yaml.safe_dump(manifest))
    part.rename(path)


@contextmanager
def applied(lab: Lab, *objects: Part) -> Iterator[None]:
    """While the context lasts, the cluster holds these objects, too."""
    for one in objects:
        lab.apply(one)
    try:
        yield
    finally:
        for one in objects:
            metadata = one["metadata"]
            lab.delete(one["kind"], metadata.get("namespace", ""), metadata["name"])


def named_port(name: str, number: int) -> list[Part]:
    """The containers of a pod that has a named TCP port."""
    return [{"name": "main", "image": "x", "ports": [{"name": name, "containerPort": number}]}]


def cluster_of(lab: Lab) -> Cluster:
    """What the evaluator has to know of the lab."""
    objects = [yaml.safe_load(p.read_text()) for p in sorted(lab.layout.cluster.rglob("*.yaml"))]
    attachments = [Attachment(p.key, p.node, str(p.address)) for p in lab.pods()]
    return Cluster(objects, attachments)


def end_of(cluster: Cluster, place: str, address: str, *, as_source: bool) -> End:
    """A place as the evaluator knows it. To pods, a node speaks as its gateway address."""
    if "/" in place:
        return cluster.end(place)
    if place in cluster.nodes:
        return End(gateway(cluster.nodes[place]) if as_source else address, node=place)
    return End(address)
