"""Where the endpoints of all Services are: see `ClusterView.targets`."""

from flows.view import CLUSTER_SCOPE, Key, Target


class Targets:
    """Keeps account of the targets of all Services."""

    def __init__(self) -> None:
        self.view: dict[str, Target] = {}
        """By their text."""
        self.services: dict[str, set[str]] = {}
        """By a target's text, the Services that have endpoints there."""
        self._of: dict[str, frozenset[Target]] = {}
        """By Service."""

    def __bool__(self) -> bool:
        return bool(self.view or self.services or self._of)

    def change(self, service: str, after: frozenset[Target]) -> set[Key]:
        """Set the targets of a Service. Returns the keys of the targets whose Services changed."""
        before = self._of.pop(service, frozenset())
        if after:
            self._of[service] = after
        for target in after - before:
            self.view[str(target)] = target
            self.services.setdefault(str(target), set()).add(service)
        for target in before - after:
            services = self.services[str(target)]
            services.discard(service)
            if not services:
                del self.services[str(target)], self.view[str(target)]
        return {Key(CLUSTER_SCOPE, "target", str(target)) for target in before ^ after}
