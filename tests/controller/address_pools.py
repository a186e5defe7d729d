"""An inventory with address pools and Services of type LoadBalancer, for tests."""

from collections.abc import Mapping
from ipaddress import IPv4Address
from typing import Any

from controller.inventory import Inventory
from controller.load_balancers.balancers import LoadBalancers
from controller.sources.objects import Object, ServiceObject, from_manifest
from controller.sources.routed_objects import AddressPoolObject
from tests.controller.service_inventory import inventory


def pool(name: str, *ranges: str, created: str = "2026-01-01", **spec: Any) -> AddressPoolObject:
    made = from_manifest(
        {
            "apiVersion": "sluice.dev/v1alpha1",
            "kind": "AddressPool",
            "metadata": {"name": name, "creationTimestamp": created},
            "spec": {"ranges": list(ranges), **spec},
        }
    )
    assert isinstance(made, AddressPoolObject)
    return made


def namespace(name: str, **labels: str) -> Object:
    metadata = {"name": name, "labels": {"kubernetes.io/metadata.name": name, **labels}}
    return from_manifest({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})


def balancer(
    name: str,
    *,
    has: str = "",
    created: str = "2026-01-01",
    uid: str = "",
    version: str = "",
    annotations: Mapping[str, str] | None = None,
    assigned: bool = False,
    ports: tuple[int, ...] = (80,),
    **spec: Any,
) -> ServiceObject:
    """A Service of type LoadBalancer, `NAME` in default or `NAMESPACE/NAME`.

    `has`: the address in its status; `assigned`: Sluice says that it has written it.
    """
    namespace, _, own = name.rpartition("/")
    conditions = [{"type": "sluice.dev/AddressAssigned", "status": "True"}] if assigned else []
    made = from_manifest(
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {
                "name": own,
                "namespace": namespace or "default",
                "uid": uid or f"uid-{name.replace('/', '-')}",
                "resourceVersion": version,
                "creationTimestamp": created,
                "annotations": dict(annotations or {}),
            },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": "10.96.0.1",
                "ports": [{"port": port} for port in ports],
                **spec,
            },
            "status": {
                "loadBalancer": {"ingress": [{"ip": has}] if has else []},
                "conditions": conditions,
            },
        }
    )
    assert isinstance(made, ServiceObject)
    return made


def with_pools(*objects: Object) -> Inventory:
    """With two nodes, the Namespace default and these; everything is up to date."""
    made = inventory(namespace("default"), *objects)
    made.load_balancers.refresh()
    return made


def balancers(*objects: Object) -> LoadBalancers:
    return with_pools(*objects).load_balancers


def given(made: LoadBalancers) -> dict[str, str]:
    """The address that each Service of default should have, by its name."""
    return {
        name.removeprefix("default/"): str(IPv4Address(address))
        for name, address in sorted(made.allocation.addresses.items())
    }


def problem(made: Inventory, name: str, kind: str = "Service") -> str:
    """What the address pools say about an object."""
    return "; ".join(
        each.text
        for each in made.problems
        if each.reporter.kind.name == "ADDRESSES"
        and str(each.subject) == f"{kind} {'default/' if kind == 'Service' else ''}{name}"
    )
