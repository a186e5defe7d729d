"""The load balancer addresses of the cluster: who has them, who serves them, what is wrong.

Every controller computes the same; only the leader writes (`controller.load_balancers.writer`).
"""

import asyncio
from collections.abc import Callable, Generator, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, ip_address
from typing import TYPE_CHECKING, Final

from controller.address_owners import AddressOwners, Claim
from controller.host_services import Hosts
from controller.known_addresses import KnownAddresses
from controller.load_balancers.allocation import Allocation, Given, allocate, free
from controller.load_balancers.pools import NO_POOLS, Interval, Pool, Pools, interval_of, read_pool
from controller.load_balancers.requests import (
    Request,
    another_class,
    ingress_addresses,
    is_assigned,
    read_request,
)
from controller.load_balancers.serving import selected_nodes, serving_nodes
from controller.policies.selectors import Selector
from controller.problems import Problems, Reporter, ReporterKind, Subject
from controller.sources.objects import ServiceObject
from controller.sources.policy_objects import NamespaceObject
from controller.sources.routed_objects import AddressPoolObject, EgressAddressObject
from flows.family import IPNetwork
from flows.refs import ObjectRef
from flows.view import Service

if TYPE_CHECKING:  # the inventory has us
    from controller.inventory.kept import KeptKind
    from controller.inventory.nodes import Nodes

REPORTER: Final = Reporter(ReporterKind.ADDRESSES)
SOURCE: Final = "load balancer"
"""Of the claims of owners."""
MAX_NAMED: Final = 3
"""Addresses that the problem of a pool names."""


@dataclass(frozen=True, slots=True)
class Announced:
    """An address of a pool that Services have: the fabric has to learn where it is."""

    address: IPv4Address
    pool: str
    ways: frozenset[str]
    """Of `BGP` and `Link`."""
    services: tuple[ObjectRef, ...]
    """The oldest first."""
    nodes: frozenset[str]
    """Those that can serve it (`serving_nodes`), up or not; empty: nobody can at the moment."""


class Facts:
    """What the addresses depend on, as the inventory has it."""

    def __init__(
        self,
        pools: "KeptKind[AddressPoolObject]",
        egress: "KeptKind[EgressAddressObject]",
        nodes: "Nodes",
        namespaces: Mapping[str, NamespaceObject],
        services: Mapping[str, ServiceObject],
        view: Mapping[str, Service],
        known: KnownAddresses,
        hosts: Hosts,
        reserved: Iterable[tuple[str, IPNetwork]],
    ) -> None:
        """`services`: every one that is not ignored; `view`: those that are served.

        `reserved`: ranges that no pool may overlap, and what they are called.
        """
        self.pools = pools
        self.egress = egress
        self.nodes = nodes
        self.namespaces = namespaces
        self.services = services
        self.view = view
        self.known = known
        self.hosts = hosts
        self.reserved: list[tuple[str, Interval]] = [
            (f"{text} {network}", interval_of(network))
            for text, network in reserved
            if isinstance(network, IPv4Network)
        ]


class LoadBalancers:
    """Follows Services, pools, Namespaces and Nodes. `refresh` brings everything up to date."""

    def __init__(self, facts: Facts, owners: AddressOwners, problems: Problems) -> None:
        self.pools: Pools = NO_POOLS
        self.allocation = Allocation()
        """As of the last `refresh`."""
        self.requests: dict[str, Request] = {}
        """By Service, what those ask for that get an address from a pool."""
        self.others: dict[int, str] = {}
        """Addresses of pools that other Services have in their status, and their names."""
        self.former: set[str] = set()
        """Services of another type in whose status Sluice still says that they have an address."""
        self.announced: dict[IPv4Address, Announced] = {}
        """By address, as of the last `refresh`."""
        self.followers: Final[list[Callable[[], None]]] = []
        """Each is called after `announced` has changed."""
        self.changed = asyncio.Event()
        """Something has changed since the last `refresh`."""
        self.newer: dict[str, ServiceObject] = {}
        """Services that are known to be newer than the source has said so far."""
        self.written: dict[str, tuple[int, ...]] = {}
        """By Service, addresses that may have been written to it and are not seen yet; it should
        have the last one."""
        self.foreign: dict[str, str] = {}
        """By Service that another load balancer serves though it names no class, what that means.
        """
        self._facts = facts
        self._owners = owners
        self._problems = problems
        self._candidates: dict[str, Request | None] = {}
        """Every Service with something about load balancers, as it was read last."""
        self._unread: set[str] = set()
        self._pools_changed = self._is_stale = True
        self._held_now: Mapping[str, int] = {}
        self._selected: dict[str, tuple[object, ...]] = {}
        facts.pools.followers.append(self._follow_pool)
        facts.egress.followers.append(lambda _: self.forget_allocation())

    # --- what changes ---

    def follow(self, kind: str, namespace: str, name: str) -> None:
        """An object was added, changed or removed."""
        match kind:
            case "Service":
                service = f"{namespace}/{name}"
                given = self.source_service(service)
                # Most Services have nothing to do with load balancers.
                if service in self._candidates or (given is not None and _is_candidate(given)):
                    self.read_again(service)
            case "Node":
                node = self._facts.nodes.objects.get(name)
                facts = () if node is None else (node.metadata.uid, node.metadata.labels)
                if self._selected.get(name, ()) != facts:
                    self._selected[name] = facts
                    if node is None:
                        del self._selected[name]
                    self.forget_allocation()
            case "Namespace":
                if self.requests:
                    self.forget_allocation()

    def read_again(self, service: str) -> None:
        """A Service was added, changed or removed."""
        self._unread.add(service)
        self.forget_allocation()

    def follow_endpoints(self, service: str) -> None:
        """What the view has of a Service may have changed."""
        if service in self.requests:
            self.changed.set()

    def follow_nodes(self) -> None:
        """Accepted Nodes have changed."""
        self.forget_allocation()

    def _follow_pool(self, _: str) -> None:
        self._pools_changed = True
        self.forget_allocation()

    # --- what follows ---

    def source_service(self, name: str) -> ServiceObject | None:
        """The state of a Service that the source has shown."""
        return self._facts.services.get(name)

    def service(self, name: str) -> ServiceObject | None:
        """The newest state of a Service that is known."""
        return self.newer.get(name) or self._facts.services.get(name)

    def refresh(self) -> None:
        """Do all of `refreshing` at once."""
        for _ in self.refreshing():
            pass

    def refreshing(self) -> Generator[None, None, None]:
        """Allocate, and say who serves what, in steps.

        Only one at a time: the result is complete after the last step.
        """
        self.changed.clear()
        if self._is_stale:
            self._is_stale = False
            if self._pools_changed:
                self._pools_changed = False
                drafts = map(read_pool, self._facts.pools.objects.values())
                self.pools = Pools(drafts, self._facts.reserved)
            while self._unread:
                self._read(self._unread.pop())
                yield
            yield from self._judge()
            blocked = self._blocked()
            yield
            namespaces = self._facts.namespaces.items()
            given = Given(
                self.requests.values(),
                {name: held for name, each in self.requests.items() if (held := self._held(each))},
                {name: each.metadata.labels or {} for name, each in namespaces},
                lambda address: blocked.get(address, ""),
                self.others | self._maybe_written(),
            )
            yield
            self.allocation = yield from allocate(given, self.pools)
            self._held_now = given.held
            self._report(blocked)
        yield from self._announce()

    def forget_allocation(self) -> None:
        """What it depends on has changed."""
        self._is_stale = True
        self.changed.set()

    def _read(self, name: str) -> None:
        given = self.service(name)
        if given is None or not _is_candidate(given):
            self._candidates.pop(name, None)
        else:
            is_balancer = given.spec.type == "LoadBalancer"
            self._candidates[name] = read_request(given) if is_balancer else None

    def _judge(self) -> Generator[None, None, None]:
        """Which Services get their address from a pool, and which have one of their own."""
        requests: dict[str, Request] = {}
        others: dict[int, str] = {}
        self.foreign, self.former = {}, set()
        for name, request in list(self._candidates.items()):
            yield
            given = request.given if request else self.service(name)
            if given is None:
                continue
            if request is not None and not self._is_foreign(request):
                requests[name] = request
                continue
            if request is None and is_assigned(given):
                self.former.add(name)
            for address in ingress_addresses(given)[0]:
                if self.pools.of(address):
                    others[address] = name
        self.requests, self.others = requests, others

    def _is_foreign(self, request: Request) -> bool:
        given = request.given
        if another_class(given) or not self.pools:
            return True
        if given.spec.load_balancer_class or not given.status.load_balancer.ingress:
            return False
        if is_assigned(given) or any(self.pools.of(each) for each in request.addresses):
            return False
        self.foreign[request.name] = (
            "status.loadBalancer has an address of no AddressPool: another load balancer's. It is"
            " left alone"
        )
        return True

    def _held(self, request: Request) -> int | None:
        if written := self.written.get(request.name):
            return written[-1]
        of_pools = (each for each in request.addresses if self.pools.of(each))
        return next(of_pools, request.addresses[0] if request.addresses else None)

    def _maybe_written(self) -> dict[int, str]:
        return {
            address: name
            for name, addresses in self.written.items()
            for address in addresses[:-1]
            if address != addresses[-1]
        }

    def _blocked(self) -> dict[int, str]:
        """Addresses of pools that belong to somebody already, and to whom."""
        if not self.pools:
            return {}
        known = self._facts.known
        found = {
            int(address): f"it is Node {at.node}'s own address"
            for address, at in known.of_nodes.items()
        }
        found |= {int(each): f"it is {known.protected(each)}" for each in known.all_protected}
        for name, given in self._facts.egress.objects.items():
            try:
                found[int(ip_address(given.spec.address))] = f"it is EgressAddress {name}'s"
            except ValueError:
                continue  # reported on the EgressAddress
        return {address: why for address, why in found.items() if self.pools.of(address)}

    def free(self) -> dict[Pool, int]:
        """By pool, the addresses that a Service can still get."""
        return {pool: free(pool, self.allocation) for pool in self.pools.all}

    def least_free(self) -> float:
        """The smallest share of free addresses of all pools; 1: there is no pool."""
        shares = [left / pool.size for pool, left in self.free().items() if pool.size]
        return min(shares, default=1.0)

    # --- who serves what ---

    def nodes_of(self, pool: Pool) -> frozenset[str]:
        """The nodes that take connections to the addresses of a pool."""
        nodes = self._facts.nodes
        return selected_nodes(nodes.accepted, nodes.objects, pool.nodes)

    def _announce(self) -> Generator[None, None, None]:
        found: dict[IPv4Address, Announced] = {}
        claims: dict[IPv4Address, Claim] = {}
        # Most pools have one and the same selector, and the writer looks three times a second.
        selected: dict[Selector, frozenset[str]] = {}
        for pool in self.pools.all:
            if pool.nodes not in selected:
                selected[pool.nodes] = self.nodes_of(pool)
            yield
        for number, users in list(self.allocation.users.items()):
            yield
            # One that is to move here is not here yet.
            here = [each for each in users if self._held_now.get(each.name) == number]
            of_pool = self.pools.of(number)
            if not here or of_pool is None:
                continue
            serving = serving_nodes(
                (self._facts.view.get(each.name) for each in here), selected[of_pool.nodes]
            )
            made = Announced(
                IPv4Address(number), of_pool.name, of_pool.announce,
                tuple(each.ref for each in here), serving,
            )  # fmt: skip
            found[made.address] = made
            if "Link" in of_pool.announce and serving:
                claims[made.address] = Claim(made.services[0], serving)
        yield
        if found == self.announced:
            return
        self.announced = found
        self._owners.want(SOURCE, claims)
        self._facts.hosts.use_balancers(found)
        for follower in self.followers:
            follower()

    # --- what is wrong ---

    def _report(self, blocked: Mapping[int, str]) -> None:
        told: dict[Subject, str] = {}
        for name, text in (self.foreign | self.allocation.problems).items():
            told[ObjectRef.namespaced("Service", name)] = text
        in_pools: dict[str, list[str]] = {}
        for address, why in sorted(blocked.items()):
            if pool := self.pools.of(address):
                in_pools.setdefault(pool.name, []).append(f"{IPv4Address(address)}: {why}")
        for name in self._facts.pools.objects:
            problems = list(self.pools.problems.get(name, ()))
            if found := in_pools.get(name):
                more = f", and {len(found) - MAX_NAMED} more" if len(found) > MAX_NAMED else ""
                problems.append(f"no Service gets {'; '.join(found[:MAX_NAMED])}{more}")
            if problems:
                told[ObjectRef("AddressPool", "", name)] = "; ".join(problems)
        self._problems.replace_all(REPORTER, told)


def _is_candidate(given: ServiceObject) -> bool:
    """Whether it has, or had, anything to do with load balancers."""
    return (
        given.spec.type == "LoadBalancer"
        or bool(given.status.load_balancer.ingress)
        or is_assigned(given)
    )
