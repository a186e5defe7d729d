"""Who gets an address: the rules of one controller. `tests.model` has two of them, and agents."""

from collections.abc import Collection, Iterable
from ipaddress import IPv4Address

import pytest

from controller.address_owners.claims import Claim, ownership_order
from controller.address_owners.grants import CHOICES, KEPT, PATIENCE, Grants
from controller.address_owners.standing import Standing
from flows.refs import ObjectRef
from wire.address_grants import RENEWAL

ADDRESS = IPv4Address("192.0.2.1")
WEB = ObjectRef("Service", "default", "web")
NODES = ("a", "b", "c")
FIRST, SECOND, THIRD = ownership_order(ADDRESS, NODES)


class World:
    """One controller, whose agents act when the test says so."""

    def __init__(self, *, leads: bool = True, nodes: Collection[str] = NODES) -> None:
        self.now = 100.0
        self.standings = dict.fromkeys(nodes, Standing.READY)
        self.numbers = iter(range(1, 10_000))
        self.grants = Grants(lambda node: self.standings[node], lambda: next(self.numbers))
        self.want({ADDRESS: nodes})
        self.held: dict[str, dict[IPv4Address, int]] = {node: {} for node in nodes}
        for node in nodes:
            self.poll(node)
        if leads:
            self.grants.lead(self.now)
            self.wait(KEPT)

    def want(self, addresses: dict[IPv4Address, Iterable[str]]) -> None:
        self.grants.want(
            {address: Claim(WEB, frozenset(nodes)) for address, nodes in addresses.items()}
        )
        self.grants.review(self.now)

    def poll(self, node: str, seconds: float = 1000.0) -> None:
        self.grants.seen(node, self.now + seconds)
        self.grants.review(self.now)

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.grants.review(self.now)

    def act(self, node: str, *, releases: bool = True) -> None:
        """What an agent does every 0.3 s: take, renew, release."""
        duties = self.grants.duties(node, self.now)
        held = self.held[node]
        gone = [(a, n) for a, n in held.items() if a not in duties] if releases else []
        for address, _ in gone:
            del held[address]
        wanted = [each for each in duties if each not in held]
        answer = self.grants.request(node, self.now, list(held.items()), wanted, gone)
        self.grants.review(self.now)
        self.held[node] = dict(answer.granted)

    def owner(self, address: IPv4Address = ADDRESS) -> str:
        return self.grants.addresses[address].owner


def owned(**options: bool) -> World:
    """A world in which the first node has the address."""
    world = World(**options)
    world.act(FIRST)
    assert world.owner() == FIRST
    return world


def test_first_node_in_the_order_is_offered_the_address() -> None:
    world = World()
    assert [world.grants.duties(node, world.now) for node in (FIRST, SECOND, THIRD)] == [
        [ADDRESS], [], []
    ]  # fmt: skip
    world.act(FIRST)
    assert world.owner() == FIRST
    assert world.grants.changed == {ADDRESS}


def test_nobody_else_gets_it_while_the_owner_renews_it() -> None:
    world = owned()
    for _ in range(20):
        world.wait(RENEWAL)
        world.act(FIRST)
        answer = world.grants.request(SECOND, world.now, wanted=[ADDRESS])
        assert answer.granted == []
    assert world.owner() == FIRST


def test_owner_that_does_not_renew_it_loses_it_when_its_time_is_over() -> None:
    world = owned()
    world.wait(KEPT - 0.01)
    assert world.owner() == FIRST
    assert world.grants.request(SECOND, world.now, wanted=[ADDRESS]).granted == []
    world.wait(0.02)
    assert world.owner() == ""
    # Not the one that has just been silent, although it is the first.
    assert world.grants.duties(SECOND, world.now) == [ADDRESS]
    world.act(SECOND)
    assert world.owner() == SECOND


def test_node_that_returns_does_not_take_the_address_back() -> None:
    world = owned()
    world.wait(KEPT)
    world.act(SECOND)
    world.act(FIRST)
    world.poll(FIRST)
    world.wait(RENEWAL)
    world.act(SECOND)
    assert world.owner() == SECOND
    assert world.grants.duties(FIRST, world.now) == []


def test_node_that_does_not_take_it_is_passed_over_and_may_take_it_late() -> None:
    world = World()
    world.wait(PATIENCE)
    assert world.grants.duties(SECOND, world.now) == [ADDRESS]
    world.act(FIRST)
    assert world.owner() == FIRST
    world.act(SECOND)
    assert world.owner() == FIRST


def test_slow_nodes_get_it_although_each_takes_it_late() -> None:
    world = World()
    for _ in range(5):
        world.wait(2 * PATIENCE)
    world.act(THIRD)
    assert world.owner() == THIRD


def test_drained_owner_releases_it_and_another_node_has_it_at_once() -> None:
    world = owned()
    world.standings[FIRST] = Standing.DRAINED
    world.wait(0.0)
    assert FIRST in world.grants.woken
    world.act(FIRST)
    world.act(SECOND)
    assert world.owner() == SECOND


def test_drained_owner_that_does_not_release_it_has_it_until_its_time_is_over() -> None:
    world = owned()
    world.standings[FIRST] = Standing.DRAINED
    world.wait(RENEWAL)
    answer = world.grants.request(FIRST, world.now, list(world.held[FIRST].items()))
    assert answer.granted == []
    world.wait(KEPT - RENEWAL - 0.01)
    assert world.owner() == FIRST
    world.wait(0.01)
    assert world.owner() == ""


def test_release_of_another_grant_counts_for_nothing() -> None:
    world = owned()
    (number,) = world.held[FIRST].values()
    world.grants.request(FIRST, world.now, released=[(ADDRESS, number + 1)])
    world.grants.request(SECOND, world.now, released=[(ADDRESS, number)])
    assert world.owner() == FIRST
    world.grants.request(FIRST, world.now, released=[(ADDRESS, number)])
    assert world.owner() == ""


@pytest.mark.parametrize("standing", [Standing.DRAINED, Standing.NOT_READY])
def test_owner_keeps_it_where_no_candidate_is_better(standing: Standing) -> None:
    world = owned()
    world.standings = dict.fromkeys(NODES, standing)
    world.wait(RENEWAL)
    world.act(FIRST)
    assert world.owner() == FIRST


def test_owner_keeps_it_where_the_better_candidate_is_not_there() -> None:
    world = owned()
    for node in (SECOND, THIRD):
        world.grants.leaves(node)
    world.standings[FIRST] = Standing.DRAINED
    world.wait(RENEWAL)
    world.act(FIRST)
    assert world.owner() == FIRST
    world.poll(SECOND)
    world.act(FIRST)
    world.act(SECOND)
    assert world.owner() == SECOND


def test_excluded_node_gets_nothing_even_if_nobody_else_can() -> None:
    world = owned()
    world.standings = dict.fromkeys(NODES, Standing.NEVER)
    world.wait(RENEWAL)
    for node in NODES:
        world.act(node)
    assert world.owner() == ""


def test_node_that_is_no_candidate_any_more_releases_it() -> None:
    world = owned()
    world.want({ADDRESS: {SECOND, THIRD}})
    world.act(FIRST)
    world.act(SECOND)
    assert world.owner() == SECOND


def test_stranger_gets_nothing_whatever_it_claims() -> None:
    world = owned()
    world.want({ADDRESS: {FIRST, SECOND}})
    for grants in ([(ADDRESS, 1)], [(ADDRESS, 7)]):
        answer = world.grants.request(THIRD, world.now, held=grants, wanted=[ADDRESS])
        assert answer.granted == []
        assert answer.strange == [ADDRESS, ADDRESS]
    assert world.grants.request(THIRD, world.now, [(IPv4Address("10.0.0.1"), 1)]).granted == []
    assert world.owner() == FIRST


def test_candidate_does_not_get_it_by_saying_that_it_has_it() -> None:
    world = owned()
    (number,) = world.held[FIRST].values()
    assert world.grants.request(SECOND, world.now, held=[(ADDRESS, number)]).granted == []
    assert world.grants.request(SECOND, world.now, held=[(ADDRESS, 99)]).granted == []
    assert world.owner() == FIRST


def test_agent_that_has_lost_it_by_a_restart_gets_it_again() -> None:
    world = owned()
    before = world.held[FIRST]
    world.held[FIRST] = {}
    world.act(FIRST)
    assert world.owner() == FIRST
    assert world.held[FIRST].keys() == before.keys()
    assert world.held[FIRST] != before


def test_new_leader_grants_nothing_until_every_older_grant_has_ended() -> None:
    world = World(leads=False)
    world.grants.lead(world.now)
    world.wait(KEPT - 0.01)
    assert world.grants.duties(FIRST, world.now) == []
    assert world.grants.request(FIRST, world.now, wanted=[ADDRESS]).granted == []
    world.wait(0.01)
    world.act(FIRST)
    assert world.owner() == FIRST


def test_new_leader_waits_for_a_leader_that_may_still_believe_to_lead() -> None:
    world = World(leads=False)
    world.grants.lead(world.now, others_until=world.now + 3)
    world.wait(3 + KEPT - 0.01)
    assert not world.grants.decides(world.now)
    world.wait(0.01)
    assert world.grants.decides(world.now)


def test_new_leader_takes_over_what_nodes_have() -> None:
    world = World(leads=False)
    world.grants.lead(world.now)
    held = [(ADDRESS, 77)]
    for _ in range(10):
        world.wait(RENEWAL)
        assert world.grants.request(SECOND, world.now, held=held).granted == held
    assert world.owner() == SECOND
    assert world.grants.duties(SECOND, world.now) == [ADDRESS]


def test_of_two_nodes_that_say_that_they_have_it_the_first_is_believed() -> None:
    world = World(leads=False)
    world.grants.lead(world.now)
    assert world.grants.request(SECOND, world.now, held=[(ADDRESS, 77)]).granted
    assert not world.grants.request(FIRST, world.now, held=[(ADDRESS, 78)]).granted
    assert world.owner() == SECOND


def test_controller_that_does_not_lead_knows_owners_and_answers_nothing() -> None:
    world = World(leads=False)
    answer = world.grants.request(SECOND, world.now, held=[(ADDRESS, 77)], wanted=[])
    assert (answer.leads, answer.granted) == (False, [])
    assert world.owner() == SECOND
    world.grants.request(SECOND, world.now)
    assert world.owner() == ""


def test_leader_that_leads_no_more_offers_nothing() -> None:
    world = World()
    world.grants.follow()
    assert world.grants.duties(FIRST, world.now) == []
    assert world.grants.request(FIRST, world.now, wanted=[ADDRESS]).granted == []


def test_agent_that_stops_is_not_offered_what_it_gives_back() -> None:
    world = owned()
    held = list(world.held[FIRST].items())
    world.grants.request(FIRST, world.now, released=held)
    world.grants.leaves(FIRST)
    world.grants.review(world.now)
    assert world.grants.duties(SECOND, world.now) == [ADDRESS]


def test_address_that_nobody_claims_any_more_is_forgotten() -> None:
    world = owned()
    world.want({})
    assert world.grants.addresses == {}
    assert world.grants.duties(FIRST, world.now) == []
    assert world.grants._by_node == {}


def test_one_review_chooses_a_bounded_number_of_owners() -> None:
    world = World()
    many = [IPv4Address("198.51.100.0") + number for number in range(3 * CHOICES)]
    world.want(dict.fromkeys(many, NODES))
    offered = 0
    for _ in range(3):
        before, offered = offered, sum(len(world.grants.duties(n, world.now)) for n in NODES)
        assert offered - before == CHOICES
        world.grants.review(world.now)
    for node in NODES:
        world.act(node)
    assert all(world.owner(each) for each in many)


def test_review_of_drained_nodes_looks_at_each_candidate_once() -> None:
    world = World()
    many = [IPv4Address("198.51.100.0") + number for number in range(CHOICES)]
    world.want(dict.fromkeys(many, NODES))
    for node in NODES:
        world.act(node)
    assert all(world.owner(each) for each in many)
    world.standings = dict.fromkeys(NODES, Standing.DRAINED)
    asked: list[str] = []

    def standing(node: str) -> Standing:
        asked.append(node)
        return world.standings[node]

    world.grants._standing = standing
    world.grants.review(world.now)
    assert len(asked) == len(many) + len(NODES)
