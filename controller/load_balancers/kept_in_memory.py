"""The status of Services where no API server keeps it: in the memory of the only controller.

After a restart the same Services get the same addresses as far as nobody else has these by then:
an address is looked for from a place that the name of the Service gives.
"""

from collections.abc import Iterable
from ipaddress import IPv4Address

import msgspec

from controller.load_balancers.assignments import Change
from controller.load_balancers.requests import ASSIGNED
from controller.problems import Subject
from controller.sources.feed import Feed
from controller.sources.objects import (
    Ingress,
    LoadBalancerStatus,
    Object,
    ServiceCondition,
    ServiceObject,
    ServiceStatus,
)
from flows.refs import ObjectRef


class StatusInMemory:
    """A feed that adds the addresses to the Services of another source, and a `Status`."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._addresses: dict[str, int | None] = {}
        """By Service; None: it had to give its address back."""

    # --- as controller.sources.feed.Feed ---

    def update(self, changed: Iterable[Object], gone: Iterable[ObjectRef]) -> None:
        """As `Feed.update`."""
        removed = list(gone)
        for ref in removed:
            if ref.kind == "Service":
                self._addresses.pop(f"{ref.namespace}/{ref.name}", None)
        self._feed.update([self._with_status(each) for each in changed], removed)

    def report(self, subject: Subject, problem: str) -> None:
        """As `Feed.report`."""
        self._feed.report(subject, problem)

    def source_complete(self, whole: bool) -> None:
        """As `Feed.source_complete`."""
        self._feed.source_complete(whole)

    def _with_status(self, given: Object) -> Object:
        if not isinstance(given, ServiceObject):
            return given
        name = f"{given.metadata.namespace}/{given.metadata.name}"
        if given.spec.type != "LoadBalancer":
            self._addresses.pop(name, None)
        if name not in self._addresses:
            return given
        return msgspec.structs.replace(given, status=_status(self._addresses[name]))

    # --- as controller.load_balancers.writer.Status ---

    async def first_list(self) -> list[ServiceObject]:
        """Nobody has written before."""
        return []

    async def write(self, change: Change) -> None:
        """As `Status.write`."""
        self._addresses[change.service] = change.address
        self._feed.update([self._with_status(change.given)], [])


def _status(address: int | None) -> ServiceStatus:
    if address is None:
        return ServiceStatus(conditions=[ServiceCondition(ASSIGNED, "False")])
    ingress = [Ingress(str(IPv4Address(address)))]
    return ServiceStatus(LoadBalancerStatus(ingress), [ServiceCondition(ASSIGNED, "True")])
