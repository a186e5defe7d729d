"""The model of who has an address: two nodes, two controllers, one address.

`Grants` of the controller and `Holds` of the agent are not modelled but called. Time is counted in
ticks; a message may take any time, or is lost, so a stopped process and a cut network need no steps
of their own. The broken property: both nodes have the address, each by its own clock.
"""

import sys
from collections.abc import Iterator
from ipaddress import IPv4Address
from typing import Final, NamedTuple

from controller.address_owners.claims import Claim
from controller.address_owners.grants import Answer, Grants
from controller.address_owners.standing import Standing
from flows.refs import ObjectRef
from node_agent.address_holds import Hold, Holds, Said
from tests.model.explorer import Explored, Step, TooManyStatesError
from wire.address_grants import Granted

ADDRESS: Final = IPv4Address("192.0.2.1")
NODES: Final = "ab"
CONTROLLERS: Final = "XY"
MOST_STATES: Final = 300_000
"""One state takes some 80 µs."""
CLAIM: Final = Claim(ObjectRef("Service", "default", "web"), frozenset(NODES))


class Rules(NamedTuple):
    """What the parts do. The values by default are what is shipped."""

    from_sending: bool = True
    """An agent counts from before it sent the request, not from the answer (1)."""
    waits: bool = True
    """A controller waits until the owner's time is over (2)."""
    by_number: bool = True
    """A release counts for the grant that it names, not for the node's (2)."""
    opens_late: bool = True
    """A controller that begins to lead grants nothing for a while (3)."""
    ignores_late: bool = True
    """An agent renews only what it still has (4)."""
    asks_all: bool = True
    """Without a leader an agent needs the word of all controllers, not of one (5)."""


SHIPPED: Final = Rules()


class Faults(NamedTuple):
    """How often each may happen."""

    leaders: int = 0
    """The leader ceases to lead, and another one, or the same, may begin."""
    losses: int = 0
    """An agent gives up a request, which arrives later, or its answer never does."""
    drains: int = 0
    """A node is drained, or is not any more."""
    agents: int = 0
    """An agent starts again."""
    controllers: int = 0
    """A controller starts again."""


class Request(NamedTuple):
    node: str
    controller: str
    age: int
    held: int
    """The number of the node's grant; 0: none."""
    released: int


class Reply(NamedTuple):
    request: Request
    leads: bool
    leader: str
    granted: int


class Node(NamedTuple):
    hold: tuple[int, int] = (0, 0)
    """Number, and ticks left."""
    said: tuple[tuple[int, str] | None, ...] = (None, None)
    """By controller: age, and the leader."""
    released: int = 0
    """The number of a grant that was given up and has to be told."""
    waits: Request | Reply | None = None


class Controller(NamedTuple):
    owner: str = ""
    number: int = 0
    left: int = 0
    is_revoked: bool = False
    closed: int = 0
    """Ticks until it grants what is new."""
    knows: str = ""
    """The controller that it believes to lead: this one, or one that has led."""


class World(NamedTuple):
    nodes: tuple[Node, ...]
    controllers: tuple[Controller, ...]
    leader: str
    drained: str
    late: Request | None
    """A request that nobody waits for any more."""
    newest: int
    faults: Faults


def start(faults: Faults) -> World:
    """X leads, and nobody has the address."""
    first = Controller(closed=0, knows="X")
    return World((Node(), Node()), (first, Controller(knows="X")), "X", "", None, 0, faults)


def is_broken(world: World) -> bool:
    """Both nodes have the address."""
    return all(node.hold[1] > 0 for node in world.nodes)


class _Grants(Grants):
    """Where every agent is there at all times."""

    def is_present(self, *_: object) -> bool:
        return True


class Model:
    """The steps that are possible under some rules."""

    def __init__(self, rules: Rules, lifetime: int) -> None:
        """`lifetime`: of a grant, in ticks. What is as old as that is not getting older."""
        self._rules = rules
        self._lifetime = lifetime

    def steps(self, world: World) -> Iterator[Step[World]]:
        """All that may happen next."""
        for step in self._steps(world):
            yield step._replace(after=_canonical(step.after, self._lifetime))

    def _steps(self, world: World) -> Iterator[Step[World]]:
        yield Step("time passes", self._tick(world))
        for number, node in enumerate(NODES):
            yield from self._of_node(world, number, node)
        if world.late is not None:
            after, _ = self._taken(world, world.late)
            yield Step(
                f"the late request of {world.late.node} arrives at {world.late.controller}",
                after._replace(late=None),
            )
        for step in self._faults(world):
            yield step._replace(is_fault=True)
        if not world.leader:
            for name in CONTROLLERS:
                yield Step(f"{name} begins to lead", self._led(world, name))

    # --- a node ---

    def _of_node(self, world: World, number: int, name: str) -> Iterator[Step[World]]:
        node = world.nodes[number]
        if node.waits is None:
            for controller in CONTROLLERS:
                held = node.hold[0] if node.hold[1] > 0 else 0
                request = Request(name, controller, 0, held, node.released)
                after = _with_node(world, number, node._replace(waits=request))
                yield Step(f"{name} asks {controller}", after)
        elif isinstance(node.waits, Request):
            after, reply = self._taken(world, node.waits)
            after = _with_node(after, number, node._replace(waits=reply))
            yield Step(f"{node.waits.controller} answers {name}", after)
        else:
            after = _with_node(world, number, self._answered(node, node.waits))
            yield Step(f"the answer arrives at {name}", after)
        if node.hold[1] > 0 and self._must_release(world, name):
            released = node._replace(hold=(0, 0), released=node.hold[0])
            yield Step(f"{name} gives it up", _with_node(world, number, released))

    def _must_release(self, world: World, name: str) -> bool:
        if not world.leader:
            return False
        leader = world.controllers[CONTROLLERS.index(world.leader)]
        return leader.closed == 0 and (leader.owner != name or leader.is_revoked)

    def _answered(self, node: Node, reply: Reply) -> Node:
        request = reply.request
        controllers = CONTROLLERS if self._rules.asks_all else request.controller
        holds = Holds(controllers, self._lifetime)
        if node.hold[0]:
            holds.held[ADDRESS] = Hold(*node.hold)
        for controller, said in zip(CONTROLLERS, node.said, strict=True):
            if said is not None and controller in holds._said:
                holds._said[controller] = Said(-said[0], controller, said[1])
        sent = -request.age if self._rules.from_sending else 0
        grants = ((ADDRESS, reply.granted),) if reply.granted else ()
        if not self._rules.ignores_late and reply.granted and node.hold[0] == reply.granted:
            holds.held[ADDRESS] = Hold(reply.granted, 1)
        holds.answered(
            request.controller,
            Granted(request.controller, reply.leads, reply.leader, grants),
            () if request.held or request.released else (ADDRESS,),
            sent=sent,
            now=0,
        )
        hold = holds.held.get(ADDRESS)
        said_now = tuple(
            None if (each := holds._said.get(name)) is None else (int(-each.sent), each.leader)
            for name in CONTROLLERS
        )
        told = node.released if node.released != request.released else 0
        return Node((hold.number, int(hold.until)) if hold else (0, 0), said_now, told)

    # --- a controller ---

    def _taken(self, world: World, request: Request) -> tuple[World, Reply]:
        number = CONTROLLERS.index(request.controller)
        grants, numbers = self._grants(world, number)
        grants.review(0)
        released = request.released
        if released and not self._rules.by_number:
            released = world.controllers[number].number
        answer: Answer = grants.request(
            request.node,
            0,
            ((ADDRESS, request.held),) if request.held else (),
            () if request.held or request.released else (ADDRESS,),
            ((ADDRESS, released),) if released else (),
        )
        grants.review(0)
        granted = dict(answer.granted).get(ADDRESS, 0)
        knows = world.controllers[number].knows
        leader = knows if knows != request.controller else ""
        after = _with_controller(world, number, grants, knows)
        newest = numbers[0]
        return after._replace(newest=newest), Reply(request, answer.leads, leader, granted)

    def _grants(self, world: World, number: int) -> tuple[Grants, list[int]]:
        given = world.controllers[number]
        numbers = [world.newest]

        def new_number() -> int:
            numbers[0] += 1
            return numbers[0]

        grants = _Grants(
            lambda node: Standing.DRAINED if node in world.drained else Standing.READY,
            new_number,
            self._lifetime if self._rules.waits else self._lifetime - 1,
        )
        grants.want({ADDRESS: CLAIM})
        grants.leads = world.leader == CONTROLLERS[number]
        grants.opens = given.closed
        found = grants.addresses[ADDRESS]
        found.owner, found.number, found.until = given.owner, given.number, given.left
        # Any node may be offered it at any time.
        found.is_revoked, found.offered = given.is_revoked, set(NODES)
        for node in NODES:
            grants._by_node.setdefault(node, set()).add(ADDRESS)
        return grants, numbers

    def _led(self, world: World, name: str) -> World:
        number = CONTROLLERS.index(name)
        grants, _ = self._grants(world, number)
        grants.lead(0)
        if not self._rules.opens_late:
            grants.opens = 0
        world = _with_controller(world, number, grants, name)
        return world._replace(leader=name)

    # --- time and faults ---

    def _tick(self, world: World) -> World:
        nodes = tuple(
            node._replace(
                hold=(node.hold[0], max(node.hold[1] - 1, 0)),
                said=tuple(s and (s[0] + 1, s[1]) for s in node.said),
                waits=_older(node.waits, self._lifetime),
            )
            for node in world.nodes
        )
        world = world._replace(
            nodes=nodes,
            controllers=tuple(
                c._replace(left=max(c.left - 1, 0), closed=max(c.closed - 1, 0))
                for c in world.controllers
            ),
        )
        for number in range(len(CONTROLLERS)):
            grants, _ = self._grants(world, number)
            grants.review(0)
            world = _with_controller(world, number, grants, world.controllers[number].knows)
        return world

    def _faults(self, world: World) -> Iterator[Step[World]]:
        faults = world.faults
        if faults.leaders and world.leader:
            number = CONTROLLERS.index(world.leader)
            grants, _ = self._grants(world, number)
            grants.follow()
            after = _with_controller(world, number, grants, world.leader)
            after = after._replace(leader="", faults=faults._replace(leaders=faults.leaders - 1))
            yield Step(f"{world.leader} ceases to lead", after)
        for number, node in enumerate(world.nodes):
            if faults.losses and node.waits is not None and world.late is None:
                late = node.waits if isinstance(node.waits, Request) else None
                after = _with_node(world, number, node._replace(waits=None))
                after = after._replace(late=late, faults=faults._replace(losses=faults.losses - 1))
                yield Step(f"{NODES[number]} waits no longer", after)
            if faults.agents and (node.hold[0] or node.waits is not None) and world.late is None:
                late = node.waits if isinstance(node.waits, Request) else None
                after = _with_node(world, number, Node())
                after = after._replace(late=late, faults=faults._replace(agents=faults.agents - 1))
                yield Step(f"the agent of {NODES[number]} starts again", after)
        if faults.drains:
            less = faults._replace(drains=faults.drains - 1)
            for name in ("", *NODES):
                if name != world.drained:
                    after = world._replace(drained=name, faults=less)
                    yield Step(f"drained is {name or 'nobody'}", self._reviewed(after))
        if faults.controllers:
            less = faults._replace(controllers=faults.controllers - 1)
            for number, name in enumerate(CONTROLLERS):
                controllers = list(world.controllers)
                controllers[number] = Controller(knows="" if world.leader == name else world.leader)
                leader = "" if world.leader == name else world.leader
                after = world._replace(controllers=tuple(controllers), leader=leader, faults=less)
                yield Step(f"{name} starts again", after)

    def _reviewed(self, world: World) -> World:
        for number in range(len(CONTROLLERS)):
            grants, _ = self._grants(world, number)
            grants.review(0)
            world = _with_controller(world, number, grants, world.controllers[number].knows)
        return world


def _older(waits: Request | Reply | None, oldest: int) -> Request | Reply | None:
    if isinstance(waits, Request):
        return waits._replace(age=min(waits.age + 1, oldest))
    if waits is None:
        return None
    age = min(waits.request.age + 1, oldest)
    return waits._replace(request=waits.request._replace(age=age))


def _with_node(world: World, number: int, node: Node) -> World:
    nodes = list(world.nodes)
    nodes[number] = node
    return world._replace(nodes=tuple(nodes))


def _with_controller(world: World, number: int, grants: Grants, knows: str) -> World:
    found = grants.addresses[ADDRESS]
    controllers = list(world.controllers)
    controllers[number] = Controller(
        found.owner,
        found.number,
        int(max(found.until, 0)),
        found.is_revoked,
        int(max(grants.opens, 0)) if grants.leads else 0,
        knows,
    )
    return world._replace(controllers=tuple(controllers))


def _canonical(world: World, lifetime: int) -> World:
    """Numbers tell grants apart, and mean nothing else. What is old does not get older."""
    numbers: dict[int, int] = {0: 0}

    def new(number: int) -> int:
        return numbers.setdefault(number, len(numbers))

    def request(given: Request) -> Request:
        return given._replace(held=new(given.held), released=new(given.released))

    def waits(given: Request | Reply | None) -> Request | Reply | None:
        if isinstance(given, Reply):
            return given._replace(request=request(given.request), granted=new(given.granted))
        return given and request(given)

    return world._replace(
        controllers=tuple(c._replace(number=new(c.number)) for c in world.controllers),
        nodes=tuple(
            node._replace(
                hold=(new(node.hold[0]), node.hold[1]) if node.hold[1] or node.waits else (0, 0),
                released=new(node.released),
                said=tuple(said if said and said[0] < lifetime else None for said in node.said),
                waits=waits(node.waits),
            )
            for node in world.nodes
        ),
        late=world.late and request(world.late),
        newest=max(numbers.values()),
    )


class Variant(NamedTuple):
    """A set of rules under some faults."""

    faults: Faults
    rules: Rules = SHIPPED
    lifetime: int = 1
    """Of a grant, in ticks. One tick is enough for most: any delay can be longer than that."""

    def explore(self, most_states: int = MOST_STATES) -> Explored[World]:
        """All states, or those until the property is broken."""
        model = Model(self.rules, self.lifetime)
        return Explored(start(self.faults), model.steps, is_broken, most_states)


HOLDS: Final = {
    "nothing goes wrong": Variant(Faults(), lifetime=2),
    "a node is drained": Variant(Faults(drains=1)),
    "a leader ceases to lead": Variant(Faults(leaders=1)),
    "a controller starts again": Variant(Faults(controllers=1)),
    "an agent starts again": Variant(Faults(agents=1)),
    "a request is late": Variant(Faults(losses=1)),
}
"""No two nodes have the address at one moment."""
MORE: Final = {
    f"{name}, over two ticks": each._replace(lifetime=2) for name, each in HOLDS.items()
} | {
    "a node is drained, a request is late": Variant(Faults(drains=1, losses=1)),
    "two leaders cease to lead": Variant(Faults(leaders=2)),
}
"""The same, for which tests have no time."""
FAILS: Final = {
    "an agent counts from the answer": Variant(Faults(), Rules(from_sending=False)),
    "a controller does not wait for the owner's end": Variant(
        Faults(), Rules(waits=False), lifetime=2
    ),
    "a new leader grants at once": Variant(Faults(leaders=1), Rules(opens_late=False)),
    "an agent renews what has ended": Variant(Faults(), Rules(ignores_late=False)),
    "an agent believes one controller that does not lead": Variant(
        Faults(leaders=1), Rules(asks_all=False), lifetime=2
    ),
}
"""Two nodes have the address, each by its own clock."""
MORE_FAILS: Final = {
    "a release counts for a later grant": Variant(
        Faults(drains=1, losses=1), Rules(by_number=False)
    ),
}
"""The same, for which tests have no time."""


def report(name: str, variant: Variant) -> str:
    """What an exploration finds, for people."""
    try:
        found = variant.explore(5 * MOST_STATES)
    except TooManyStatesError as error:
        return f"{name}: {error}, so far one owner at a time"
    if found.broken is None:
        return f"{name}: {len(found.states):,} states, one owner at a time"
    path = found.path(found.broken)
    steps = "".join(f"\n  {number:2}. {step}" for number, step in enumerate(path, 1))
    return f"{name}: two owners after {len(path)} steps{steps}"


if __name__ == "__main__":
    for title, each in (HOLDS | MORE | FAILS | MORE_FAILS).items():
        if any(word in title for word in sys.argv[1:] or [""]):
            print(report(title, each), flush=True)
