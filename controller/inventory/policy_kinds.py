"""The kinds Namespace, NetworkPolicy and ClusterNetworkPolicy; see `controller.policies`."""

from controller.policies import PolicyInventory
from controller.policies.inventory import PolicyObject
from controller.sources.policy_objects import NamespaceObject
from flows.refs import ObjectRef
from flows.view import Key


class NamespaceKind:
    """The kind Namespace."""

    def __init__(self, policies: PolicyInventory) -> None:
        self._policies = policies

    def get(self, namespace: str, name: str) -> NamespaceObject | None:
        """As `ObjectKind.get`."""
        return None if namespace else self._policies.namespaces.get(name)

    def put(self, new: NamespaceObject) -> set[Key]:
        """As `ObjectKind.put`."""
        self._policies.put_namespace(new)
        return set()  # see `Inventory.settle`

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        if not namespace:
            self._policies.remove_namespace(name)
        return set()  # see `Inventory.settle`


class PolicyKind:
    """The kind NetworkPolicy, or ClusterNetworkPolicy."""

    def __init__(self, kind: str, policies: PolicyInventory) -> None:
        self._kind = kind
        self._policies = policies

    def get(self, namespace: str, name: str) -> PolicyObject | None:
        """As `ObjectKind.get`."""
        return self._policies.objects.get(ObjectRef(self._kind, namespace, name))

    def put(self, new: PolicyObject) -> set[Key]:
        """As `ObjectKind.put`."""
        self._policies.put_policy(new)
        return set()  # see `Inventory.settle`

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        self._policies.remove_policy(ObjectRef(self._kind, namespace, name))
        return set()  # see `Inventory.settle`
