"""The kinds Service and EndpointSlice. `controller.services` judges both together."""

from controller.services import ServiceInventory
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import ServiceObject
from flows.view import Key


class ServiceKind:
    """The kind Service."""

    def __init__(self, services: ServiceInventory) -> None:
        self._services = services

    def get(self, namespace: str, name: str) -> ServiceObject | None:
        """As `ObjectKind.get`; only Services that Sluice serves."""
        return self._services.service(f"{namespace}/{name}")

    def put(self, new: ServiceObject) -> set[Key]:
        """As `ObjectKind.put`."""
        self._services.set_service(new)
        return set()  # see `Inventory.settle`

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        self._services.remove_service(f"{namespace}/{name}")
        return set()  # see `Inventory.settle`


class SliceKind:
    """The kind EndpointSlice."""

    def __init__(self, services: ServiceInventory) -> None:
        self._services = services

    def get(self, namespace: str, name: str) -> SliceObject | None:
        """As `ObjectKind.get`; only slices of a Service."""
        return self._services.endpoint_slice(f"{namespace}/{name}")

    def put(self, new: SliceObject) -> set[Key]:
        """As `ObjectKind.put`."""
        self._services.set_slice(new)
        return set()  # see `Inventory.settle`

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        self._services.remove_slice(f"{namespace}/{name}")
        return set()  # see `Inventory.settle`
