"""Services and EndpointSlices, made from the fields that a test is about."""

from collections.abc import Sequence
from typing import Any

from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import ServiceObject, from_manifest


def service(name: str, **fields: Any) -> ServiceObject:
    """`default/NAME` with one TCP port 80 at 10.96.0.1; fields as in its spec, or as below.

    `created`, `uid`, `labels` are its metadata's, `ingress` its status'.
    """
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": fields.pop("uid", f"uid-{name}"),
        "labels": fields.pop("labels", {}),
    }
    if created := fields.pop("created", None):
        metadata["creationTimestamp"] = created
    status = {"loadBalancer": {"ingress": fields.pop("ingress", [])}}
    spec = {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]} | fields
    made = from_manifest(
        {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec,
         "status": status}
    )  # fmt: skip
    assert isinstance(made, ServiceObject)
    return made


def endpoint(address: str, node: str = "node1", **fields: Any) -> dict[str, Any]:
    """Conditions and hints as in the API; `zones` and `nodes` are hints."""
    hints = {
        key: [{"name": name} for name in fields.pop(word)]
        for word, key in (("zones", "forZones"), ("nodes", "forNodes"))
        if word in fields
    }
    return {
        "addresses": [address],
        "nodeName": node,
        "conditions": fields,
        **({"hints": hints} if hints else {}),
    }


def endpoint_slice(
    name: str,
    of: str | None,
    endpoints: Sequence[str | dict[str, Any]],
    ports: Sequence[dict[str, Any]] = ({"port": 8080},),
    **fields: Any,
) -> SliceObject:
    """`default/NAME` of a Service; `triggered` is its annotation, `labels` further ones."""
    labels = {"kubernetes.io/service-name": of} if of is not None else {}
    metadata = {
        "name": name,
        "namespace": "default",
        "uid": f"uid-{name}",
        "labels": labels | fields.pop("labels", {}),
    }
    if triggered := fields.pop("triggered", None):
        metadata["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": triggered}
    made = from_manifest(
        {
            "apiVersion": "discovery.k8s.io/v1",
            "kind": "EndpointSlice",
            "metadata": metadata,
            "addressType": fields.pop("addressType", "IPv4"),
            "endpoints": [endpoint(e) if isinstance(e, str) else e for e in endpoints],
            "ports": list(ports),
        }
    )
    assert isinstance(made, SliceObject)
    return made
