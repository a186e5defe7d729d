"""No address is ever given to two Services that cannot share it: random histories of controllers.

Watches are late, writes are lost or come late, answers are lost, controllers restart and take over.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from controller.inventory import Inventory
from controller.load_balancers.assignments import AGAIN, Assignments, Change, version
from controller.load_balancers.requests import ingress_addresses, read_request
from controller.sources.objects import (
    Ingress,
    LoadBalancerStatus,
    ServiceCondition,
    ServiceObject,
    ServiceStatus,
)
from flows.refs import ObjectRef
from tests.controller.address_pools import balancer, namespace, pool
from tests.flows.worlds import CLUSTER

SHARED = "sluice.dev/allow-shared-address"
POOLS = [
    pool("a", "192.0.2.0-192.0.2.7"),
    pool("a", "192.0.2.2-192.0.2.9"),
    pool("a", "192.0.2.0/30", "198.51.100.0/31"),
]


class GivenTwiceError(AssertionError):
    """Two Services have one address that they cannot share."""


class Store:
    """The Services of an API server, and what watches say about them."""

    def __init__(self) -> None:
        self.revision = 0
        self.services: dict[str, ServiceObject] = {}
        self.history: list[tuple[str, ServiceObject | None]] = []
        self.given = 0

    def put(self, name: str, new: ServiceObject | None) -> None:
        self.revision += 1
        if new is None:
            del self.services[name]
        else:
            metadata = msgspec.structs.replace(new.metadata, resource_version=str(self.revision))
            new = self.services[name] = msgspec.structs.replace(new, metadata=metadata)
        self.history.append((name, new))

    def apply(self, change: Change) -> None:
        """As a patch with uid and resourceVersion."""
        name, old = change.service, self.services.get(change.service)
        if (
            old is None
            or old.metadata.uid != change.given.metadata.uid
            or version(old) != version(change.given)
        ):
            return
        self.put(name, msgspec.structs.replace(old, status=status(change.address)))
        if change.address is None:
            return
        self.given += 1
        own = read_request(self.services[name])
        for other, given in self.services.items():
            has_it = other != name and change.address in ingress_addresses(given)[0]
            if has_it and (why := own.may_share_with(read_request(given))):
                raise GivenTwiceError(f"{name}: {why}")


def status(address: int | None) -> ServiceStatus:
    if address is None:
        return ServiceStatus()
    octets = ".".join(str(byte) for byte in address.to_bytes(4, "big"))
    condition = ServiceCondition("sluice.dev/AddressAssigned", "True")
    return ServiceStatus(LoadBalancerStatus([Ingress(octets)]), [condition])


class Replica:
    """A controller: what it has seen, and what it has sent and nobody has executed yet."""

    def __init__(self, store: Store, pools: Any, clock: "Clock") -> None:
        self.store = store
        self.inventory = Inventory(CLUSTER)
        self.inventory.set_object(namespace("default"))
        self.inventory.set_object(pools)
        self.seen = len(store.history)
        self.sending: list[Change] = []
        for given in store.services.values():
            self.inventory.set_object(given)
        self.inventory.settle()
        self.assignments = Assignments(self.inventory.load_balancers, monotonic=lambda: clock.now)

    def see(self, events: int) -> None:
        for name, given in self.store.history[self.seen : self.seen + events]:
            if given is None:
                self.inventory.remove_object(*ObjectRef.namespaced("Service", name))
            else:
                self.inventory.set_object(given)
        self.seen = min(len(self.store.history), self.seen + events)
        self.inventory.settle()


def due(replica: Replica) -> list[Change]:
    """What it wants to write."""
    steps = replica.assignments.due()
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return list(end.value)


@dataclass
class Clock:
    now: float = 0.0


class Play:
    """One random history."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)  # noqa: S311 - a test
        self.clock = Clock()
        self.store = Store()
        self.pool = POOLS[0]
        self.uids = 0
        self.replicas = [Replica(self.store, self.pool, self.clock) for _ in range(2)]
        self.leader = self.replicas[0]
        self.leader.assignments.begin([])

    def steps(self, count: int) -> Iterator[str]:
        acts = [
            *[self.add] * 4,
            *[self.remove] * 2,
            self.change,
            *[self.see] * 8,
            *[self.look] * 6,
            *[self.execute] * 8,
            self.take_over,
            self.restart,
            self.change_pool,
        ]
        for _ in range(count):
            self.clock.now += self.random.choice((0.1, 1.0, AGAIN))
            act = self.random.choice(acts)
            act()
            yield act.__name__

    def add(self) -> None:
        name = f"s{self.random.randrange(16)}"
        if f"default/{name}" in self.store.services:
            return
        self.uids += 1
        annotations = {}
        if self.random.random() < 0.3:
            annotations["sluice.dev/addresses"] = f"192.0.2.{self.random.randrange(10)}"
        if self.random.random() < 0.3:
            annotations[SHARED] = "key"
        made = balancer(
            name,
            uid=f"uid-{self.uids}",
            created=f"2026-01-{self.random.randrange(1, 29):02}",
            annotations=annotations,
            ports=(self.random.choice((80, 443)),),
        )
        self.store.put(f"default/{name}", made)

    def remove(self) -> None:
        if self.store.services:
            self.store.put(self.random.choice([*self.store.services]), None)

    def change(self) -> None:
        if not self.store.services:
            return
        name = self.random.choice([*self.store.services])
        given = self.store.services[name]
        wanted = f"192.0.2.{self.random.randrange(10)}"
        assert given.metadata.annotations is not None
        annotations = msgspec.structs.replace(given.metadata.annotations, addresses=wanted)
        metadata = msgspec.structs.replace(given.metadata, annotations=annotations)
        self.store.put(name, msgspec.structs.replace(given, metadata=metadata))

    def see(self) -> None:
        self.random.choice(self.replicas).see(self.random.randrange(1, 6))

    def look(self) -> None:
        for change in due(self.leader):
            self.leader.assignments.sent(change)
            self.leader.sending.append(change)
            if self.random.random() < 0.3:
                self.leader.assignments.unanswered(change)

    def execute(self) -> None:
        """In any order, or not at all."""
        sending = self.leader.sending
        if sending:
            change = sending.pop(self.random.randrange(len(sending)))
            if self.random.random() < 0.9:
                self.store.apply(change)

    def take_over(self) -> None:
        self.finish_writes()
        self.leader.assignments.end()
        self.leader = self.random.choice(self.replicas)
        self.leader.assignments.begin(self.first_list())

    def restart(self) -> None:
        place = self.random.randrange(2)
        was_leader = self.replicas[place] is self.leader
        if was_leader:
            self.finish_writes()
        self.replicas[place] = Replica(self.store, self.pool, self.clock)
        if was_leader:
            self.leader = self.random.choice(self.replicas)
            self.leader.assignments.begin(self.first_list())

    def change_pool(self) -> None:
        self.pool = self.random.choice(POOLS)
        for replica in self.replicas:
            replica.inventory.set_object(self.pool)
            replica.inventory.settle()

    def first_list(self) -> list[ServiceObject]:
        return list(self.store.services.values())

    def finish_writes(self) -> None:
        """A term begins only when the writes before it have succeeded or failed."""
        while self.leader.sending:
            self.execute()

    def come_to_rest(self) -> None:
        for _ in range(60):
            self.clock.now += AGAIN
            for replica in self.replicas:
                replica.see(1000)
            self.look()
            self.finish_writes()


@pytest.mark.parametrize("seed", range(12))
def test_no_address_is_given_twice(seed: int) -> None:
    play = Play(seed)
    history = [*play.steps(250)]
    play.come_to_rest()
    assert play.store.given > 3, history
    # At rest, each Service has what the allocation says, or is told why not.
    load_balancers = play.leader.inventory.load_balancers
    for name, given in play.store.services.items():
        address = load_balancers.allocation.addresses.get(name)
        if address is None:
            assert name in load_balancers.allocation.problems
            assert ingress_addresses(given)[0] == ()
        else:
            assert ingress_addresses(given)[0] == (address,)
    assert due(play.leader) == []


class NoFirstList(Play):
    def first_list(self) -> list[ServiceObject]:
        return []


class NoWaiting(Play):
    def finish_writes(self) -> None:
        self.others = [*getattr(self, "others", ()), *self.leader.sending]
        self.leader.sending.clear()

    def execute(self) -> None:
        others = getattr(self, "others", [])
        if others and self.random.random() < 0.5:
            self.store.apply(others.pop())
        super().execute()


class NothingRemembered(Play):
    def look(self) -> None:
        super().look()
        for replica in self.replicas:
            replica.inventory.load_balancers.written.clear()
            replica.inventory.load_balancers.forget_allocation()


class NoVersion(Play):
    def execute(self) -> None:
        """A write is executed whatever has become of the Service."""
        sending = self.leader.sending
        if sending:
            change = sending.pop(self.random.randrange(len(sending)))
            if now := self.store.services.get(change.service):
                self.store.apply(Change(now, change.address))


@pytest.mark.parametrize("broken", [NoFirstList, NoWaiting, NothingRemembered, NoVersion])
def test_each_rule_is_needed(broken: type[Play]) -> None:
    def play() -> None:
        for seed in range(200):
            for _ in broken(seed).steps(250):
                pass

    with pytest.raises(GivenTwiceError):
        play()
