"""Objects as people write them: `pod/shop/web-0`, `svc/shop/web`, `node/n1`, `shop/web-0`, `n1`."""

from typing import Final

from controller.inventory import Inventory
from flows.refs import ObjectRef

KINDS: Final = {
    "pod": "Pod", "pods": "Pod", "po": "Pod",
    "service": "Service", "services": "Service", "svc": "Service",
    "node": "Node", "nodes": "Node", "no": "Node",
    "networkpolicy": "NetworkPolicy", "networkpolicies": "NetworkPolicy", "netpol": "NetworkPolicy",
    "clusternetworkpolicy": "ClusterNetworkPolicy",
    "clusternetworkpolicies": "ClusterNetworkPolicy",
    "cnp": "ClusterNetworkPolicy",
    "bgppeer": "BGPPeer", "bgppeers": "BGPPeer",
    "addresspool": "AddressPool", "addresspools": "AddressPool",
    "egressaddress": "EgressAddress", "egressaddresses": "EgressAddress",
    "endpointslice": "EndpointSlice", "endpointslices": "EndpointSlice",
}  # fmt: skip
"""The words for kinds that cause flows, also those that kubectl knows."""
CLUSTER_KINDS: Final = frozenset(
    ("Node", "ClusterNetworkPolicy", "BGPPeer", "AddressPool", "EgressAddress")
)
"""Kinds whose objects have no namespace."""
FORMS: Final = (
    "pod/NAMESPACE/NAME, svc/NAMESPACE/NAME, networkpolicy/NAMESPACE/NAME, endpointslice/"
    "NAMESPACE/NAME, clusternetworkpolicy/NAME, bgppeer/NAME, addresspool/NAME, egressaddress/NAME"
    " or node/NAME"
)


class UnknownObject(ValueError):  # noqa: N818
    """There is no such object, or the text names none; it says which."""


def object_named(inventory: Inventory, text: str) -> ObjectRef:
    """The object of a text; of a kind that causes flows. Raises `UnknownObject`.

    Without a kind, `NAMESPACE/NAME` is a Pod, else a Service; a bare name is a Node.
    """
    ref = ref_named(inventory, text)
    if not is_known(inventory, ref):
        raise UnknownObject(f"there is no {ref}")
    return ref


def is_known(inventory: Inventory, ref: ObjectRef) -> bool:
    """Whether the source has this object."""
    if ref.kind == "Service" and f"{ref.namespace}/{ref.name}" in inventory.services.ignored:
        return True
    return inventory.metadata(*ref) is not None


def ref_named(inventory: Inventory, text: str) -> ObjectRef:
    """The reference of a text, whether there is such an object or not. Raises `UnknownObject`."""
    word, _, rest = text.partition("/")
    kind = KINDS.get(word.lower())
    if kind in CLUSTER_KINDS and rest and "/" not in rest:
        return ObjectRef(kind, "", rest)
    if kind is not None and kind not in CLUSTER_KINDS and rest.count("/") == 1:
        return ObjectRef.namespaced(kind, rest)
    if text.count("/") == 1 and all(text.split("/")):
        pod, service = (ObjectRef.namespaced(each, text) for each in ("Pod", "Service"))
        if is_known(inventory, pod) or not is_known(inventory, service):
            return pod
        return service
    if text and "/" not in text:
        return ObjectRef.node(text)
    raise UnknownObject(f"{text}: not of the form {FORMS}")
