"""Owners of addresses, as sources of claims, agents and people see them, by the real API."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.address_api import BYTES_BURST, BYTES_PER_SECOND, MOST_WAITING, REQUESTS_BURST
from controller.address_owners import Claim
from controller.address_owners.claims import MAX_ADDRESSES
from controller.address_owners.grants import KEPT
from controller.address_owners.owners import CONFLICT, VACANT
from controller.address_owners.standing import EXCLUDED_LABEL
from controller.api import Api
from controller.inventory import Inventory
from controller.leadership import Leadership
from controller.reconciler import Reconciler
from controller.sources.objects import NodeCondition
from flows.refs import ObjectRef
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER
from wire.address_grants import (
    AddressDuties,
    Granted,
    GrantRequest,
    decode_duties,
    decode_granted,
    encode,
)

ADDRESS = IPv4Address("192.0.2.1")
WEB = ObjectRef("Service", "default", "web")
NAME, OTHER = NODE.metadata.name, PEER.metadata.name
GRANTS = f"/v1/nodes/{NAME}/grants"


class World:
    """A controller that has read two Nodes, with a clock of the test's own."""

    def __init__(self, *, elected: bool = False) -> None:
        self.now = 1_000.0
        self.leadership = Leadership(elected=elected, clock=lambda: self.now)
        self.inventory = Inventory(CLUSTER)
        self.owners = self.inventory.address_owners
        self.owners._clock = lambda: self.now
        self.owners._warnings._clock = lambda: self.now
        self.reconciler = Reconciler(self.inventory, leadership=self.leadership)
        self.api = Api(self.reconciler, SETTINGS)
        self.client: TestClient[Any, Any]

    def read(self) -> None:
        self.reconciler.update([NODE, PEER], [])
        self.reconciler.source_complete(True)

    def want(self, *nodes: str, gated: bool = False) -> None:
        self.owners.want("test", {ADDRESS: Claim(WEB, frozenset(nodes), gated=gated)})

    async def wait(self, seconds: float) -> None:
        self.now += seconds
        self.owners._review()
        await asyncio.sleep(0)

    async def open(self) -> None:
        """Until the controller grants what nobody has."""
        await self.duties(NAME)
        await self.wait(KEPT)

    async def duties(self, node: str, after: str = "", wait: float = 0) -> AddressDuties | int:
        answer = await self.client.get(
            f"/v1/nodes/{node}/grants", params={"after": after, "wait": str(wait)}
        )
        return decode_duties(await answer.read()) if answer.status == 200 else answer.status

    async def ask(self, node: str, **request: Any) -> Granted:
        answer = await self.client.post(
            f"/v1/nodes/{node}/grants", data=encode(GrantRequest(**request))
        )
        assert answer.status == 200, await answer.text()
        return decode_granted(await answer.read())

    def problem(self) -> str:
        return "; ".join(each.text for each in self.reconciler.problems.of_subject(WEB))


@asynccontextmanager
async def serving(*, elected: bool = False, listed: bool = True) -> AsyncIterator[World]:
    world = World(elected=elected)
    async with TestClient(TestServer(world.api.application(local=True))) as world.client:
        if listed:
            world.read()
            await world.reconciler.listed.wait()
        yield world


def story(told: Callable[[World], Awaitable[None]], **options: bool) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), serving(**options) as world:
            await told(world)

    asyncio.run(main())


def test_node_is_offered_an_address_takes_it_and_the_view_follows() -> None:
    async def told(world: World) -> None:
        seen: list[tuple[list[IPv4Address], dict[IPv4Address, str]]] = []

        def follow(changed: Any) -> set[Any]:
            seen.append((sorted(changed), dict(world.owners.owners)))
            return set()

        world.owners.followers.append(follow)
        world.want(NAME, gated=True)
        await world.open()
        found = await world.duties(NAME)
        assert isinstance(found, AddressDuties)
        assert (found.leads, found.addresses, found.gated) == (True, ((ADDRESS, True),), (ADDRESS,))
        assert found.may_answer
        answer = await world.ask(NAME, wanted=(ADDRESS,))
        assert [address for address, _ in answer.granted] == [ADDRESS]
        assert world.owners.owners == {ADDRESS: NAME}
        await world.wait(KEPT)
        assert world.owners.owners == {}
        assert seen == [([ADDRESS], {ADDRESS: NAME}), ([ADDRESS], {})]

    story(told)


def test_other_nodes_learn_nothing_of_it() -> None:
    async def told(world: World) -> None:
        world.want(NAME, gated=True)
        await world.open()
        found = await world.duties(OTHER)
        assert isinstance(found, AddressDuties)
        assert (found.addresses, found.gated, found.may_answer) == ((), (), False)
        assert (await world.ask(OTHER, wanted=(ADDRESS,), held=((ADDRESS, 1),))).granted == ()
        assert world.owners.owners == {}

    story(told)


@pytest.mark.parametrize("what", ["unschedulable", "not ready", "excluded", "gone"])
def test_owner_is_woken_when_its_node_should_not_have_the_address_any_more(what: str) -> None:
    async def told(world: World) -> None:
        world.want(NAME, OTHER)
        await world.open()
        for node in (OTHER, NAME):  # whichever is offered it
            await world.duties(node)
        await world.wait(0.1)
        duties = {node: await world.duties(node) for node in (NAME, OTHER)}
        (owner,) = (
            node
            for node, found in duties.items()
            if isinstance(found, AddressDuties) and found.addresses
        )
        other = OTHER if owner == NAME else NAME
        (grant,) = (await world.ask(owner, wanted=(ADDRESS,))).granted
        before = await world.duties(owner)
        assert isinstance(before, AddressDuties)
        waiting = asyncio.create_task(world.duties(owner, before.revision, 20))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        object_ = NODE if owner == NAME else PEER
        match what:
            case "unschedulable":
                spec = msgspec.structs.replace(object_.spec, unschedulable=True)
                changed = msgspec.structs.replace(object_, spec=spec)
            case "not ready":
                conditions = [NodeCondition("Ready", "Unknown")]
                status = msgspec.structs.replace(object_.status, conditions=conditions)
                changed = msgspec.structs.replace(object_, status=status)
            case _:
                labels = {EXCLUDED_LABEL: ""}
                metadata = msgspec.structs.replace(object_.metadata, labels=labels)
                changed = msgspec.structs.replace(object_, metadata=metadata)
        if what == "gone":
            world.want(other)
        else:
            world.reconciler.update([changed], [])
        after = await waiting
        assert isinstance(after, AddressDuties)
        assert after.addresses == ()
        assert (await world.ask(owner, held=(grant,))).granted == ()
        await world.ask(owner, released=(grant,))
        await world.duties(other)
        await world.wait(0.1)
        assert [a for a, _ in (await world.ask(other, wanted=(ADDRESS,))).granted] == [ADDRESS]

    story(told)


def test_controller_without_the_right_to_write_grants_nothing_and_says_who_leads() -> None:
    async def told(world: World) -> None:
        world.want(NAME)
        world.leadership.follows("other_1234")
        await world.open()
        found = await world.duties(NAME)
        assert isinstance(found, AddressDuties)
        assert not found.leads
        answer = await world.ask(NAME, held=((ADDRESS, 7),))
        assert (answer.leads, answer.leader, answer.granted) == (False, "other_1234", ())
        # It follows what the owner says.
        assert world.owners.owners == {ADDRESS: NAME}

    story(told, elected=True)


def test_standby_that_begins_to_lead_keeps_the_owner() -> None:
    async def told(world: World) -> None:
        world.want(NAME, OTHER)
        held = ((ADDRESS, 7),)
        await world.ask(NAME, held=held)
        world.leadership.grant(1, world.now + 1e6, world.now)
        for _ in range(8):
            assert (await world.ask(NAME, held=held)).granted == held
            assert world.owners.owners == {ADDRESS: NAME}
            await world.wait(0.3)
        found = await world.duties(NAME)
        assert isinstance(found, AddressDuties)
        assert found.addresses == ((ADDRESS, True),)
        world.leadership.withdraw()
        assert not (await world.ask(NAME, held=held)).leads

    story(told, elected=True)


def test_controller_that_begins_to_lead_waits_for_no_request() -> None:
    """Agents that have nothing wait for as long as half a minute in their long polls."""

    async def told(world: World) -> None:
        world.want(NAME)
        before = await world.duties(NAME)
        assert isinstance(before, AddressDuties)
        waiting = asyncio.create_task(world.duties(NAME, before.revision, 20))
        await asyncio.sleep(0.1)
        world.leadership.grant(1, world.now + 1e6, world.now)
        while not world.owners.grants.leads:
            await asyncio.sleep(0.01)
        world.now += KEPT
        while not waiting.done():
            await asyncio.sleep(0.01)
        after = waiting.result()
        assert isinstance(after, AddressDuties)
        assert after.leads

    story(told, elected=True)


def test_controller_that_has_not_read_the_cluster_says_that_it_does_not_lead() -> None:
    """So agents keep what they have while the API server is away."""

    async def told(world: World) -> None:
        answer = await world.ask("unknown", held=((ADDRESS, 7),))
        assert not answer.leads
        assert await world.duties(NAME) == 503

    story(told, listed=False)


def test_hostile_requests_are_refused() -> None:
    async def told(world: World) -> None:
        world.want(NAME)
        for body in (b"", b"{", b"[" * 100_000, b'{"held": [["192.0.2.1", 0]]}',
                     b'{"held": [["192.0.2.1", 9223372036854775808]]}', b'{"held": [["x", 1]]}',
                     b'{"conflicts": [["192.0.2.1", "<script>"]]}'):  # fmt: skip
            answer = await world.client.post(GRANTS, data=body)
            assert answer.status == 400, body[:50]
        many = encode(GrantRequest(held=tuple((ADDRESS, 1) for _ in range(4_097))))
        assert (await world.client.post(GRANTS, data=many)).status == 400
        assert (await world.client.post("/v1/nodes/none/grants", data=b"{}")).status == 404
        for _ in range(REQUESTS_BURST):
            last = await world.client.post(GRANTS, data=b"{}")
        assert last.status == 429
        world.now += 60
        assert (await world.client.post(GRANTS, data=b"{}")).status == 200

    story(told)


def test_long_requests_of_one_node_are_bounded() -> None:
    # One costs 28 ms of the event loop.
    many = tuple((ADDRESS + number, number + 1) for number in range(MAX_ADDRESSES))
    body = encode(GrantRequest(many, tuple(address for address, _ in many), many))

    async def told(world: World) -> None:
        answers = [(await world.client.post(GRANTS, data=body)).status for _ in range(10)]
        assert 0 < answers.count(200) <= BYTES_BURST / len(body)
        assert set(answers) == {200, 429}
        # An agent that has all addresses renews them four times a second.
        renewal = encode(GrantRequest(tuple((each, 1 << 62) for each, _ in many)))
        world.now += BYTES_BURST / BYTES_PER_SECOND
        for _ in range(20):
            assert (await world.client.post(GRANTS, data=renewal)).status == 200
            world.now += 0.3

    story(told)


def test_long_polls_of_one_node_are_bounded() -> None:
    async def told(world: World) -> None:
        world.want(NAME)
        await world.open()
        found = await world.duties(NAME)
        assert isinstance(found, AddressDuties)
        async with asyncio.TaskGroup() as tasks:
            polls = [
                tasks.create_task(world.duties(NAME, found.revision, 0.5))
                for _ in range(MOST_WAITING)
            ]
            while world.owners.waiting(NAME) < MOST_WAITING:
                await asyncio.sleep(0.01)
            assert await world.duties(NAME, found.revision, 0.5) == 429
        assert [each.result() for each in polls] == [304] * MOST_WAITING
        assert world.owners.waiting(NAME) == 0
        assert world.owners._changes == {}

    story(told)


def test_address_that_nobody_has_is_reported_on_its_object() -> None:
    async def told(world: World) -> None:
        world.want("gone")
        await world.open()
        await world.wait(0.1)
        assert world.problem() == ""
        await world.wait(VACANT)
        assert world.problem() == "no node has 192.0.2.1: all 1 candidates are excluded"
        world.want(NAME)
        await world.duties(NAME)
        await world.wait(0.1)
        await world.ask(NAME, wanted=(ADDRESS,))
        await world.wait(0.1)
        assert world.problem() == ""

    story(told)


def test_another_host_with_the_address_is_reported_with_its_mac() -> None:
    async def told(world: World) -> None:
        world.want(NAME, OTHER)
        await world.open()
        mac = "02:00:00:00:00:07"
        conflicts = ((ADDRESS, mac),)
        await world.ask(OTHER, conflicts=conflicts)
        await world.wait(0.1)
        assert world.problem() == "", "who does not have the address says nothing about it"
        world.want(NAME)
        await world.duties(NAME)
        await world.wait(0.1)
        (grant,) = (await world.ask(NAME, wanted=(ADDRESS,))).granted
        await world.ask(NAME, held=(grant,), conflicts=conflicts)
        await world.wait(0.1)
        assert f"has 192.0.2.1, too: its MAC is {mac}" in world.problem()
        for _ in range(int(CONFLICT) + 1):
            await world.wait(1.0)
            await world.ask(NAME, held=(grant,))
        assert "MAC" not in world.problem()

    story(told)


def test_conflict_of_an_address_that_nobody_claims_any_more_is_no_conflict() -> None:
    async def told(world: World) -> None:
        world.want(NAME)
        await world.open()
        await world.duties(NAME)
        await world.wait(0.1)
        (grant,) = (await world.ask(NAME, wanted=(ADDRESS,))).granted
        # The request comes in the same turn of the event loop.
        world.owners.want("test", {})
        conflicts = ((ADDRESS, "02:00:00:00:00:07"),)
        world.owners.request(NAME, "this", GrantRequest(held=(grant,), conflicts=conflicts))
        assert world.owners.conflicts == {}
        await world.wait(0.1)

    story(told)


def test_address_of_two_sources_stays_with_the_first_one() -> None:
    world = World()
    other = ObjectRef("EgressAddress", "", "out")
    nodes = frozenset({NAME})
    world.owners.want("load balancer", {ADDRESS: Claim(WEB, nodes)})
    world.owners.want("egress", {ADDRESS: Claim(other, nodes, gated=True)})
    assert world.owners.grants.addresses[ADDRESS].claim.subject == WEB
    (problem,) = world.reconciler.problems.of_subject(other)
    assert problem.text == "192.0.2.1 is Service default/web's already"
    world.owners.want("load balancer", {})
    assert world.owners.grants.addresses[ADDRESS].claim.subject == other
    assert world.reconciler.problems.of_subject(other) == []


def test_number_of_addresses_is_bounded() -> None:
    world = World()
    nodes = frozenset({NAME})
    first = {IPv4Address("10.0.0.0") + n: Claim(WEB, nodes) for n in range(MAX_ADDRESSES)}
    late = ObjectRef("Service", "default", "late")
    world.owners.want("a", first)
    world.owners.want("a", {ADDRESS: Claim(late, nodes), **first})
    assert len(world.owners.grants.addresses) == MAX_ADDRESSES
    assert ADDRESS not in world.owners.grants.addresses
    (problem,) = world.reconciler.problems.of_subject(late)
    assert "4096 such addresses" in problem.text


def test_report_says_who_has_it_and_who_could() -> None:
    async def told(world: World) -> None:
        world.want(NAME, OTHER, "gone")
        await world.open()
        for node in (NAME, OTHER):
            await world.duties(node)
        await world.wait(0.1)
        for node in (NAME, OTHER):
            await world.ask(node, wanted=(ADDRESS,))
        answer = await world.client.get("/v1/addresses")
        (row,) = (await answer.json())["addresses"]
        assert row["owner"] in {NAME, OTHER}
        assert row["reason"] == "the first of 3 candidates that can have it"
        assert row["name"] == "web"
        assert [each["node"] for each in row["candidates"]][2] == "gone"
        assert row["candidates"][0] == {"node": row["owner"], "state": "ready", "isAble": True}

    story(told)
