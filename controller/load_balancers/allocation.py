"""Which Service gets which address. A pure function of the Services, the pools and the Namespaces.

The status of the Services is the memory. A Service keeps the address that it has as long as it may
have it: of several that cannot share one, the oldest keeps it. Then those that have none get one,
first those that ask for a certain address, then the others, and the oldest first. A Service that
asks for another address than it has keeps its own until it can get the other one.

An address is looked for from a place that the name of the Service gives. So Services that come and
go do not inherit each other's addresses, and a Service that is created again gets its own back if
it is free.
"""

from collections.abc import Callable, Collection, Generator, Mapping
from dataclasses import dataclass, field
from hashlib import blake2b
from ipaddress import IPv4Address
from operator import attrgetter

from controller.load_balancers.pools import Pool, Pools
from controller.load_balancers.requests import Request
from controller.policies.selectors import NAMESPACE_NAME, matches
from settings.plain_yaml import shown

Blocked = Callable[[int], str]
"""Why no Service may get this address, in words; empty: one may."""


@dataclass(frozen=True, slots=True)
class Given:
    """What an allocation depends on besides the pools."""

    requests: Collection[Request]
    held: Mapping[str, int]
    """By Service, the address that it has, or that was written and is not seen yet."""
    labels: Mapping[str, dict[str, str]]
    """Of each Namespace."""
    blocked: Blocked
    others: Mapping[int, str]
    """Addresses that Services have which get none from a pool, or may have soon, and their names.
    """


@dataclass(slots=True)
class Allocation:
    """Who has which address, and who cannot get one."""

    users: dict[int, list[Request]] = field(default_factory=dict)
    """By address, the Services that keep it, the oldest first."""
    addresses: dict[str, int] = field(default_factory=dict)
    """By Service, the address that it should have. A Service that must give its own back and gets
    no other is in `lost` alone."""
    lost: dict[str, str] = field(default_factory=dict)
    """Services that may not keep their address, and why."""
    problems: dict[str, str] = field(default_factory=dict)
    """By Service, why it does not have what it asks for."""
    taken: dict[str, set[int]] = field(default_factory=dict)
    """By pool, its addresses that nobody can get at the moment."""


Steps = Generator[None, None, Allocation]
"""The result, made in steps (`controller.work_budget`)."""


def allocate(given: Given, pools: Pools) -> Steps:
    """Who keeps an address, and who gets one."""
    return _Allocator(given, pools).run()


def free(pool: Pool, allocation: Allocation) -> int:
    """Addresses of a pool that a Service can still get."""
    return pool.size - len(allocation.taken.get(pool.name, ()))


class _Sharing:
    """The Services that have one address, so that one more is compared with all at once."""

    __slots__ = ("first", "ports")

    def __init__(self, first: Request) -> None:
        self.first = first
        self.ports: dict[tuple[str, int], Request] = {}
        self.add(first)

    def add(self, request: Request) -> None:
        for port in request.ports:
            self.ports.setdefault(port, request)

    def why_not(self, request: Request) -> str:
        """Why a Service cannot have the address too; empty: it can."""
        common = request.ports & self.ports.keys()
        others = {(found := self.ports[port]).name: found for port in common}
        for other in (self.first, *others.values()):
            if why := request.may_share_with(other):
                return why
        return ""


class _Allocator:
    def __init__(self, given: Given, pools: Pools) -> None:
        self._given = given
        self._pools = pools
        self._made = Allocation()
        self._by_key: dict[str, set[int]] = {}
        """By sharing key, the addresses of its Services."""
        self._leaving: dict[int, str] = {}
        """Addresses that a Service has in its status and must give back."""
        self._sharing: dict[int, _Sharing] = {}
        """By address."""
        self._order: dict[str, list[Pool]] = {}
        """By namespace, the pools that give it addresses without being asked for."""

    def run(self) -> Steps:
        requests = sorted(self._given.requests, key=attrgetter("age"))
        for address in self._given.others:
            if pool := self._pools.of(address):
                self._take(pool, address)
        yield
        for request in requests:
            self._keep(request)
            yield
        asking = [each for each in requests if self._asks(each)]
        asking.sort(key=lambda each: each.wanted is None)  # stable: the oldest first
        for request in asking:
            self._serve(request)
            yield
        return self._made

    # --- who keeps an address ---

    def _keep(self, request: Request) -> None:
        address = self._given.held.get(request.name)
        if address is None:
            return
        pool = self._pools.of(address)
        if why := self._why_lost(request, address, pool):
            self._made.lost[request.name] = f"{IPv4Address(address)}: {why}"
            self._leaving[address] = request.name
            if pool:
                self._take(pool, address)
        elif pool:
            self._use(request, pool, address)

    def _why_lost(self, request: Request, address: int, pool: Pool | None) -> str:
        if pool is None:
            return "it is in no AddressPool any more"
        # A Namespace may come a moment later than its Services.
        is_known = request.namespace in self._given.labels
        if is_known and pool.is_open and not self._allows(pool, request):
            return f"AddressPool {pool.name} is not for namespace {request.namespace}"
        if other := self._given.others.get(address):
            return f"Service {other} has it"
        return self._why_not_shared(request, address)

    # --- who gets another one ---

    def _asks(self, request: Request) -> bool:
        """Whether it has no address, or asks for another one than it has."""
        if request.problem:
            self._made.problems[request.name] = request.problem
            return False
        address = self._made.addresses.get(request.name)
        if address is None:
            return True
        if request.wanted is not None:
            return address != request.wanted
        pool = self._pools.of(address)
        return bool(request.pool) and pool is not None and pool.name != request.pool

    def _serve(self, request: Request) -> None:
        found = self._wanted(request) if request.wanted is not None else self._any(request)
        if isinstance(found, str):
            lost = self._made.lost.get(request.name)
            self._made.problems[request.name] = f"{lost}; {found}" if lost else found
            return
        pool, address = found
        # The address that it has stays taken until another one is written.
        self._use(request, pool, address)

    def _wanted(self, request: Request) -> tuple[Pool, int] | str:
        address = request.wanted or 0
        text = f"{request.wanted_by}: {IPv4Address(address)}"
        pool = self._pools.of(address)
        if pool is None:
            return f"{text} is in no AddressPool"
        if request.pool and request.pool != pool.name:
            return f"{text} is of AddressPool {pool.name}, not of {shown(request.pool)}"
        if not self._allows(pool, request):
            return f"{text} is of AddressPool {pool.name}, not for namespace {request.namespace}"
        if why := self._why_not(request, address):
            return f"{text}: {why}"
        return pool, address

    def _why_not(self, request: Request, address: int) -> str:
        """Why it cannot get this address of a pool; empty: it can."""
        if why := self._given.blocked(address):
            return why
        other = self._given.others.get(address) or self._leaving.get(address)
        if other and other != request.name:
            return f"Service {other} has it"
        return self._why_not_shared(request, address)

    def _any(self, request: Request) -> tuple[Pool, int] | str:
        if request.pool:
            named = self._pools.named(request.pool)
            if named is None:
                return f"there is no AddressPool {shown(request.pool)}"
            if not self._allows(named, request):
                return f"AddressPool {named.name} is not for namespace {request.namespace}"
            pools = [named]
        else:
            pools = self._automatic(request)
            if not pools:
                return (
                    "no AddressPool gives addresses to namespace"
                    f" {request.namespace} without being asked for"
                )
        for address in sorted(self._by_key.get(request.share_key, ())):
            pool = self._pools.of(address)
            if pool in pools and not self._why_not(request, address):
                return pool, address
        for pool in pools:
            if (found := self._free(pool, request)) is not None:
                return pool, found
        names = ", ".join(pool.name for pool in pools)
        return f"no address is free in AddressPool {names}"

    def _automatic(self, request: Request) -> list[Pool]:
        """Those for certain namespaces first, then the oldest first."""
        found = self._order.get(request.namespace)
        if found is None:
            found = [
                each for each in self._pools.all if each.auto_assign and self._allows(each, request)
            ]
            found.sort(key=lambda pool: not pool.namespaces)
            self._order[request.namespace] = found
        return found

    def _free(self, pool: Pool, request: Request) -> int | None:
        taken = self._made.taken.get(pool.name, set())
        if len(taken) >= pool.size:
            return None
        digest = blake2b(request.name.encode(), digest_size=8).digest()
        start = int.from_bytes(digest, "big") % pool.size
        for number in range(pool.size):
            address = pool.address((start + number) % pool.size)
            if address in taken:
                continue
            if not self._given.blocked(address):
                return address
            self._take(pool, address)
            taken = self._made.taken[pool.name]
        return None

    # --- what both need ---

    def _allows(self, pool: Pool, request: Request) -> bool:
        name = request.namespace
        labels = {NAMESPACE_NAME: name} | self._given.labels.get(name, {})
        return pool.is_open and matches(pool.namespaces, labels)

    def _why_not_shared(self, request: Request, address: int) -> str:
        sharing = self._sharing.get(address)
        return sharing.why_not(request) if sharing else ""

    def _use(self, request: Request, pool: Pool, address: int) -> None:
        self._made.addresses[request.name] = address
        self._made.users.setdefault(address, []).append(request)
        if sharing := self._sharing.get(address):
            sharing.add(request)
        else:
            self._sharing[address] = _Sharing(request)
        if request.share_key:
            self._by_key.setdefault(request.share_key, set()).add(address)
        self._take(pool, address)

    def _take(self, pool: Pool, address: int) -> None:
        self._made.taken.setdefault(pool.name, set()).add(address)
