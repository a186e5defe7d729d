"""What the leader writes, so that no address is ever given to two Services that cannot share it.

The rules (`tests/controller/test_assignments.py` shows what happens without each):

1. A term begins with a list of all Services that is read from the API server after every write of
   an earlier leader has succeeded or failed for good (`BEFORE_TERM`). What the list has and the
   source has not said yet counts from then on: watches may be late.
2. An address that was written counts as taken until the source shows the Service in a later
   version. The outcome of the write does not matter: it may be unknown.
3. A write is refused if the Service has changed since (uid and resourceVersion). So of two writes
   from one version one succeeds, and the next version shows which.
4. An address that a Service has to give back is free when the source shows that it has.
"""

import time
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from itertools import islice
from typing import Final

from controller.load_balancers.balancers import LoadBalancers
from controller.load_balancers.requests import ingress_addresses
from controller.sources.objects import ServiceObject

AT_ONCE: Final = 200
"""Changes of one look. After them a new look follows."""
AGAIN: Final = 20.0
"""Seconds after which the same is written again if the source does not show it."""
LONGEST_LAG: Final = 600.0
"""Seconds for which a Service of the first list is kept that the source never shows."""


@dataclass(frozen=True, slots=True)
class Change:
    """What a Service should have in its status."""

    given: ServiceObject
    """The state of which this is a change."""
    address: int | None
    """None: it has to give its address back."""
    pool: str = ""

    @property
    def service(self) -> str:
        """`NAMESPACE/NAME`."""
        return f"{self.given.metadata.namespace}/{self.given.metadata.name}"


@dataclass(slots=True)
class _Sent:
    uid: str
    version: int
    address: int | None
    again: float


class Assignments:
    """The changes that are due while this controller leads."""

    def __init__(
        self, balancers: LoadBalancers, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._balancers = balancers
        self._monotonic = monotonic
        self._sent: dict[str, _Sent] = {}
        self._began = 0.0

    def begin(self, listed: Iterable[ServiceObject]) -> None:
        """A term begins. `listed`: see rule 1."""
        self.end()
        self._began = self._monotonic()
        for given in listed:
            name = f"{given.metadata.namespace}/{given.metadata.name}"
            known = self._balancers.source_service(name)
            if known is None or version(known) < version(given):
                self._balancers.newer[name] = given
                self._balancers.read_again(name)

    def end(self) -> None:
        """The term has ended, if there was one."""
        self._sent.clear()
        for name in (*self._balancers.newer, *self._balancers.written):
            self._balancers.read_again(name)
        self._balancers.newer.clear()
        self._balancers.written.clear()

    def due(self) -> Generator[None, None, list[Change]]:
        """What to write now, at most `AT_ONCE`; in steps."""
        self._forget_seen()
        balancers = self._balancers
        yield from balancers.refreshing()
        if not balancers.pools:
            # Without pools nothing is given and nothing taken back.
            return []
        now = self._monotonic()
        new = (change for change in self._changes() if self._is_new(change, now))
        return list(islice(new, AT_ONCE))

    def _changes(self) -> Iterable[Change]:
        balancers, allocation = self._balancers, self._balancers.allocation
        for name, request in balancers.requests.items():
            address = allocation.addresses.get(name)
            if address is None:
                if name in allocation.lost:
                    yield Change(request.given, None)
            elif address not in request.addresses:
                pool = balancers.pools.of(address)
                yield Change(request.given, address, pool.name if pool else "")
        for name in balancers.former:
            if given := balancers.service(name):
                yield Change(given, None)

    def _is_new(self, change: Change, now: float) -> bool:
        last = self._sent.get(change.service)
        return (
            last is None
            or (last.version, last.address) != (version(change.given), change.address)
            or now >= last.again
        )

    def sent(self, change: Change) -> None:
        """It is sent at this moment."""
        name, metadata = change.service, change.given.metadata
        self._sent[name] = _Sent(
            metadata.uid, version(change.given), change.address, self._monotonic() + AGAIN
        )
        if change.address is not None:
            held = ingress_addresses(change.given)[0]
            earlier = self._balancers.written.get(name, held)
            others = [each for each in earlier if each != change.address]
            self._balancers.written[name] = (*others, change.address)
            self._balancers.forget_allocation()

    def unanswered(self, change: Change) -> None:
        """Whether it was written is not known: it is due again at once."""
        if sent := self._sent.get(change.service):
            sent.again = self._monotonic()

    def _forget_seen(self) -> None:
        """Forget what the source shows by now."""
        balancers = self._balancers
        is_late = self._monotonic() - self._began > LONGEST_LAG
        for name, given in list(balancers.newer.items()):
            known = balancers.source_service(name)
            if is_late or (known is not None and version(known) >= version(given)):
                del balancers.newer[name]
                balancers.read_again(name)
        for name, sent in list(self._sent.items()):
            known = balancers.service(name)
            if (
                known is None
                or (known.metadata.uid, version(known)) != (sent.uid, sent.version)
                or (sent.address is not None and sent.address in ingress_addresses(known)[0])
            ):
                del self._sent[name]
                balancers.written.pop(name, None)
                balancers.read_again(name)


def version(given: ServiceObject) -> int:
    """Later states have greater ones; 0: unknown (manifests)."""
    text = given.metadata.resource_version
    return int(text) if text.isdecimal() else 0
