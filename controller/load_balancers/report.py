"""Reports about address pools and the addresses of Services, for people."""

from collections.abc import Generator, Iterable
from ipaddress import IPv4Address

from controller.inventory import Inventory
from controller.load_balancers.allocation import free
from controller.load_balancers.balancers import REPORTER, Announced
from controller.load_balancers.pools import Pool
from controller.policies.selectors import text_of
from controller.reports.pools import BalancerRow, PoolList, PoolRow, UserRow, announced_text
from controller.sources.objects import ServiceObject
from flows.refs import ObjectRef
from settings.plain_yaml import shown


def listed(inventory: Inventory) -> Generator[None, None, PoolList]:
    """Every pool with its users."""
    balancers = inventory.load_balancers
    users: dict[str, list[UserRow]] = {}
    for announced in sorted(balancers.announced.values(), key=lambda each: each.address):
        yield
        users.setdefault(announced.pool, []).append(_user(inventory, announced))
    rows = []
    known = {pool.name for pool in balancers.pools.all}
    for pool in balancers.pools.all:
        yield
        rows.append(_pool(inventory, pool, users.get(pool.name, ())))
    rows += [
        PoolRow(name, (), 0, 0, False, (), "", "", 0, (), _problem(inventory, name))
        for name in sorted(inventory.address_pools.objects.keys() - known)
    ]
    waiting = balancers.foreign | balancers.allocation.problems
    return PoolList(pools=tuple(rows), waiting=dict(sorted(waiting.items())))


def _pool(inventory: Inventory, pool: Pool, users: Iterable[UserRow]) -> PoolRow:
    balancers = inventory.load_balancers
    return PoolRow(
        name=pool.name,
        ranges=tuple(map(str, pool.intervals)),
        size=pool.size,
        free=free(pool, balancers.allocation),
        auto_assign=pool.auto_assign,
        announce=tuple(sorted(pool.announce)),
        namespaces=text_of(pool.namespaces),
        node_selector=text_of(pool.nodes),
        node_count=len(balancers.nodes_of(pool)),
        users=tuple(users),
        problem=_problem(inventory, pool.name),
    )


def _problem(inventory: Inventory, pool: str) -> str:
    return inventory.problems.text(REPORTER, ObjectRef("AddressPool", "", pool))


def _user(inventory: Inventory, announced: Announced) -> UserRow:
    return UserRow(
        str(announced.address),
        tuple(f"{each.namespace}/{each.name}" for each in announced.services),
        inventory.address_owners.owners.get(announced.address, ""),
        tuple(sorted(announced.nodes)),
    )


def of_service(inventory: Inventory, name: str) -> BalancerRow | None:
    """Its address of a pool; None: it gets none from a pool."""
    balancers = inventory.load_balancers
    request = balancers.requests.get(name)
    if request is None:
        why = balancers.foreign.get(name)
        return BalancerRow("", "", why, False, (), "", (), ()) if why else None
    number = balancers.allocation.addresses.get(name)
    if number is None:
        why = balancers.allocation.problems.get(name) or balancers.allocation.lost.get(name)
        return BalancerRow("", "", why or "it is not decided yet", False, (), "", (), ())
    pool = balancers.pools.of(number)
    others = [each.name for each in balancers.allocation.users.get(number, ()) if each.name != name]
    if request.wanted == number:
        why = f"{request.wanted_by} asks for it"
    elif others:
        why = f"the Services with the sharing key {shown(request.share_key)} have it"
    elif request.pool:
        why = f"it was free when the Service asked for one of AddressPool {request.pool}"
    else:
        why = "it was free when the Service asked for any address"
    announced = balancers.announced.get(IPv4Address(number))
    return BalancerRow(
        address=str(IPv4Address(number)),
        pool=pool.name if pool else "",
        why=why,
        assigned=number in request.addresses,
        shared_with=tuple(others),
        owner=inventory.address_owners.owners.get(IPv4Address(number), ""),
        nodes=tuple(sorted(announced.nodes)) if announced else (),
        ways=tuple(sorted(announced.ways)) if announced else (),
    )


def facts(inventory: Inventory, given: ServiceObject | None, name: str) -> list[tuple[str, str]]:
    """What `sluice explain` says about it."""
    row = of_service(inventory, name) if given else None
    if row is None:
        return []
    if not row.address:
        return [("load balancer address", f"none: {row.why}")]
    return [
        ("load balancer address", f"{row.address} of AddressPool {row.pool}"),
        ("why this address", row.why),
        ("announced", announced_text(row)),
    ]
