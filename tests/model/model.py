"""A model of the election: replicas, one Lease, one switch, its agent, and what can go wrong.

Between any two steps any other step can happen. So a replica that is stopped (SIGSTOP) needs no
step of its own, nor does a message that is late: its next step comes late. Requests and replies of
one connection keep their order.

Time is not counted. A step makes everything that a replica remembers old: its term is over, and the
Lease of somebody else is free. It can happen at any moment, so clocks may differ in any way.

One switch is enough: what a replica does at one switch does not depend on another one, except that
it renews its Lease more often, and here it may do so at any moment.

`Election` is the real one (`tests.model.elections`). What surrounds it is mirrored: `Leadership` of
controller/leadership.py, and `Mastery` of controller/mastery.py. For each rule of `Rules`,
tests/controller/test_mastery.py and test_leadership.py show that the code keeps it.
"""

from collections.abc import Iterator
from typing import Final, TypeAlias

from openflow.messages import Role
from tests.model import elections
from tests.model.elections import CURRENT, Copy
from tests.model.explorer import Step
from tests.model.switch import is_older
from tests.model.world import (
    NAMES,
    Answer,
    Confirmed,
    Connection,
    Kind,
    Message,
    Put,
    Replica,
    Rules,
    Stage,
    World,
)

MOST_UNDER_WAY: Final = 2
"""Requests and replies of one connection."""
_GRANTED: Final = (Stage.GRANTED, Stage.READ)
_Steps: TypeAlias = Iterator[Step[World]]


class Model:
    """The steps that follow a state."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules

    def steps(self, world: World) -> _Steps:
        """All of them."""
        if world.is_stale:
            return
        for number in range(len(world.replicas)):
            yield from self._lease(world, number)
            yield from self._time(world, number)
            yield from self._put(world, number)
            yield from self._server(world, number)
            yield from self._requests(world, number)
            yield from self._switch(world, number)
            yield from self._replies(world, number)
        if world.seen < world.switch.stored and world.faults.restarts:
            seen = world._replace(seen=world.switch.stored)
            yield Step("the agent sees the stored generation", seen)
        yield from self._faults(world)

    def can_write(self, world: World) -> bool:
        """Whether the holder of the Lease is master of the switch, and its writes are accepted."""
        return any(
            replica.term == world.term != 0
            and replica.election.may_write
            and role is Role.MASTER
            and connection is not None
            and self._is_allowed(connection)
            for replica, connection, role in zip(
                world.replicas, world.connections, world.switch.roles, strict=True
            )
        )

    # --- a replica and the Lease: the loop around `Election` ---

    def _lease(self, world: World, number: int) -> _Steps:
        replica = world.replicas[number]
        election = replica.election
        if replica.put or replica.answer or (election.known and election.lease == world.lease):
            return
        seen = replica._replace(election=election.seen(world.lease))
        text = world.lease or "there is none"
        yield Step(f"{NAMES[number]} reads the Lease: {text}", _with_replica(world, number, seen))

    def _time(self, world: World, number: int) -> _Steps:
        replica = world.replicas[number]
        is_new = replica.election.aged() is not replica.election
        if not is_new and not replica.put and not replica.answer:
            return
        put = replica.put and replica.put._replace(is_recent=False)
        answer = replica.answer and replica.answer._replace(
            put=replica.answer.put._replace(is_recent=False)
        )
        aged = replica._replace(election=replica.election.aged(), put=put, answer=answer)
        if aged == replica:
            return
        after = _with_replica(world, number, aged)
        name = f"much time passes for {NAMES[number]}"
        holder = world.lease.holder if world.lease is not None else NAMES[number]
        if all(each.election.identity != holder for each in world.replicas):
            yield Step(name, after)
        elif left := world.faults.takeovers:
            yield _fault(name, after, takeovers=left - 1)

    def _put(self, world: World, number: int) -> _Steps:
        replica, connection = world.replicas[number], world.connections[number]
        if replica.put or replica.answer:
            return
        lease, election = replica.election.due(replica.refused_by if self._rules.raised else 0)
        if lease is None or not self._is_useful(replica, connection, lease):
            return
        put = Put(lease, self._can_be_confirmed(connection))
        yield Step(
            f"{NAMES[number]} sends a PUT of the Lease: {lease}",
            _with_replica(
                world, number, replica._replace(election=election, put=put, refused_by=0)
            ),
        )

    def _is_useful(self, replica: Replica, connection: Connection | None, lease: Copy) -> bool:
        """Whether a PUT changes anything: renewals that do not are left out."""
        election = replica.election
        is_renewal = election.may_write and lease == (
            election.identity, election.generation, CURRENT,
        )  # fmt: skip
        if not is_renewal or connection is None:
            return not is_renewal
        return self._can_be_confirmed(connection) and not connection.is_confirmed

    def _can_be_confirmed(self, connection: Connection | None) -> bool:
        """Whether a renewal that begins now shows that this replica may write."""
        confirmed = self._rules.confirmed
        if connection is None or confirmed is Confirmed.NOTHING:
            return False
        return confirmed is Confirmed.CONNECTION or connection.stage in _GRANTED

    def _server(self, world: World, number: int) -> _Steps:
        """The API server executes a PUT, or its answer arrives."""
        name, replica = NAMES[number], world.replicas[number]
        if replica.put is not None:
            after, answer = _executed(world, replica.put)
            done = after.replicas[number]._replace(put=None, answer=answer)
            yield Step(
                f"the API server takes {name}'s PUT: {'done' if answer.done else 'conflict'}",
                _with_replica(after, number, done),
            )
        if replica.late is not None:
            after, answer = _executed(world, replica.late)
            done = after.replicas[number]._replace(late=None)
            yield Step(
                f"the API server takes {name}'s late PUT: {'done' if answer.done else 'conflict'}",
                _with_replica(after, number, done),
            )
        if replica.answer is not None:
            yield Step(
                f"{name} gets the answer to its PUT",
                self._answered(world, number, replica, replica.answer),
            )

    def _answered(self, world: World, number: int, replica: Replica, answer: Answer) -> World:
        put = answer.put
        if not answer.done:
            election = replica.election.refused()
            refused = replica._replace(election=election, answer=None)
            return _with_replica(world, number, refused)
        election = replica.election.written(put.lease, put.is_recent)
        written = replica._replace(election=election, answer=None, term=answer.term)
        after = _with_replica(world, number, written)
        connection = after.connections[number]
        if connection is None or not self._may_write(written):
            return after
        if not put.confirms or not self._can_be_confirmed(connection):
            return after
        return _with_connection(after, number, connection._replace(is_confirmed=True))

    def _may_write(self, replica: Replica) -> bool:
        """`Leadership.holds`."""
        election = replica.election
        return election.may_write if self._rules.in_term else election.generation > 0

    # --- a replica and the switch: `Mastery` ---

    def _requests(self, world: World, number: int) -> _Steps:
        name, replica, connection = NAMES[number], world.replicas[number], world.connections[number]
        if connection is None:
            yield Step(f"the switch connects to {name}", _connected(world, number))
            return
        if _under_way(connection) >= MOST_UNDER_WAY:
            return
        for request, stage in self._wanted_requests(replica, connection):
            sent = connection
            if stage is not connection.stage:
                sent = self._without_role(connection)._replace(generation=request.generation)
            yield Step(
                f"{name} sends {request.kind.value} of generation {request.generation}",
                _with_connection(world, number, _sent(sent, request, stage)),
            )

    def _wanted_requests(
        self, replica: Replica, connection: Connection
    ) -> Iterator[tuple[Message, Stage]]:
        generation = replica.election.generation
        if not self._may_write(replica):
            if connection.stage is not Stage.FOLLOWS and replica.election.newest:
                yield Message(Kind.SLAVE, replica.election.newest), Stage.FOLLOWS
            return
        is_master = connection.stage not in {Stage.NEW, Stage.FOLLOWS}
        may_ask = connection.is_confirmed or self._rules.confirmed is not Confirmed.CONNECTION
        if may_ask and not (is_master and connection.generation == generation):
            yield Message(Kind.MASTER, generation), Stage.ASKED
        # A round of writes may outlive a term, and go on in the next one of the same replica.
        write = Message(Kind.WRITE, generation, replica.term)
        if self._is_allowed(connection) and write not in connection.requests:
            yield write, connection.stage

    def _is_allowed(self, connection: Connection) -> bool:
        """Whether `Mastery.take` has returned."""
        rules = self._rules
        if connection.stage is Stage.ASKED:
            return not rules.replied
        if connection.stage is Stage.GRANTED and rules.compared:
            return False
        is_confirmed = connection.is_confirmed or rules.confirmed is not Confirmed.REPLY
        return connection.stage in _GRANTED and is_confirmed

    def _switch(self, world: World, number: int) -> _Steps:
        """The switch takes the next request of a connection."""
        connection = world.connections[number]
        if connection is None or not connection.requests:
            return
        request, switch = connection.requests[0], world.switch
        rest = connection._replace(requests=connection.requests[1:])
        reply: Message | None = request
        if request.kind is Kind.READ:
            reply, done = Message(Kind.READ, switch.stored), switch
        elif request.kind is Kind.WRITE:
            done = switch.write(number, request.generation)
            reply = None if done else Message(Kind.IS_SLAVE, 0)
        else:
            role = Role.MASTER if request.kind is Kind.MASTER else Role.SLAVE
            done = switch.request_role(number, role, request.generation)
            # Who is refused can ask which generation the switch knows (OFPCR_ROLE_NOCHANGE).
            reply = request if done else Message(Kind.STALE, switch.newest or 0)
        after = world
        if request.kind is Kind.WRITE and done:
            after = world._replace(
                is_stale=request.term < world.newest_term,
                newest_term=max(world.newest_term, request.term),
            )
        if reply is not None:
            rest = rest._replace(replies=(*rest.replies, reply))
        asked = f"{request.kind.value} of generation {request.generation}"
        text = f"tells {NAMES[number]} the stored generation: {switch.stored or 'none'}"
        if request.kind is not Kind.READ:
            text = f"{'accepts' if done else 'refuses'} {asked} from {NAMES[number]}"
        after = _with_connection(after._replace(switch=done or switch), number, rest)
        yield Step(f"the switch {text}", after)

    def _replies(self, world: World, number: int) -> _Steps:
        """A replica takes the next reply of a connection."""
        connection = world.connections[number]
        if connection is None or not connection.replies:
            return
        replica, reply = world.replicas[number], connection.replies[0]
        rest = connection._replace(replies=connection.replies[1:])
        after = world
        if reply.kind is Kind.MASTER and connection.stage is Stage.ASKED:
            rest = rest._replace(stage=Stage.GRANTED)
            if self._rules.compared:
                rest = _sent(rest, Message(Kind.READ, 0), Stage.GRANTED)
        elif reply.kind is Kind.READ and connection.stage is Stage.GRANTED:
            rest = self._compared(replica, rest, reply.generation)
        elif reply.kind is Kind.IS_SLAVE and connection.stage in _GRANTED:
            rest = self._without_role(rest)
        elif reply.kind is Kind.STALE and connection.stage in {Stage.ASKED, Stage.FOLLOWS}:
            rest = self._without_role(rest)
            after = self._refused(world, number, reply.generation)
        refuses = "a refusal of " if reply.kind in {Kind.STALE, Kind.IS_SLAVE} else "the reply: "
        text = f"{NAMES[number]} gets {refuses}{reply.kind.value}"
        yield Step(text, _with_connection(after, number, rest))

    def _compared(self, replica: Replica, connection: Connection, stored: int) -> Connection:
        # Whoever proves afterwards that the Lease is its own may write, whatever is stored.
        if stored <= replica.election.generation or self._rules.confirmed is Confirmed.REPLY:
            return connection._replace(stage=Stage.READ)
        return self._without_role(connection)

    def _without_role(self, connection: Connection) -> Connection:
        is_confirmed = connection.is_confirmed and self._rules.confirmed is Confirmed.CONNECTION
        return connection._replace(stage=Stage.NEW, is_confirmed=is_confirmed)

    def _refused(self, world: World, number: int, known: int) -> World:
        """By a switch that knows a newer generation."""
        replica = world.replicas[number]
        if not is_older(replica.election.newest, known):
            return world
        return _with_replica(world, number, replica._replace(refused_by=known))

    # --- what goes wrong ---

    def _faults(self, world: World) -> _Steps:
        left = world.faults
        if left.restarts:
            restarted = world._replace(
                switch=world.switch.restart(world.seen if self._rules.restored else 0),
                connections=(None,) * len(world.connections),
            )
            yield _fault("the switch restarts", restarted, restarts=left.restarts - 1)
        if left.deletions and world.lease is not None:
            deleted = _outdated(world)._replace(lease=None, term=0)
            yield _fault("somebody deletes the Lease", deleted, deletions=left.deletions - 1)
        for number, replica in enumerate(world.replicas):
            yield from self._faults_of(world, number, replica)

    def _faults_of(self, world: World, number: int, replica: Replica) -> _Steps:
        name, left = NAMES[number], world.faults
        if left.breaks and world.connections[number] is not None:
            broken = _with_connection(world, number, None)
            broken = broken._replace(switch=broken.switch.disconnect(number))
            yield _fault(f"{name}'s connection breaks", broken, breaks=left.breaks - 1)
        lease = replica.election.lease
        if left.suspicions and lease is not None and lease.holder != replica.election.identity:
            wrong = replica._replace(election=replica.election.dead(lease.holder))
            yield _fault(
                f"{name} takes {lease.holder} for dead",
                _with_replica(world, number, wrong),
                suspicions=left.suspicions - 1,
            )
        if left.timeouts and (replica.put or replica.answer):
            election = replica.election.refused()
            lost = replica._replace(put=None, answer=None, election=election, late=replica.put)
            yield _fault(
                f"{name} does not wait any longer for the answer to its PUT",
                _with_replica(world, number, lost),
                timeouts=left.timeouts - 1,
            )
        if left.kills:
            again = Replica(elections.new(replica.election.identity + "'"))
            killed = _with_connection(_with_replica(world, number, again), number, None)
            killed = killed._replace(switch=killed.switch.disconnect(number))
            yield _fault(f"{name} is killed, and starts again", killed, kills=left.kills - 1)


# --- parts of steps ---


def _executed(world: World, put: Put) -> tuple[World, Answer]:
    """The API server compares the version, and takes the Lease or refuses it."""
    if put.lease.version != (CURRENT if world.lease is not None else ""):
        return world, Answer(put, False, 0)
    lease = put.lease._replace(version=CURRENT)
    after = _outdated(world)._replace(lease=lease)
    if lease != world.lease:
        after = after._replace(term=world.terms + 1, terms=world.terms + 1)
    return after, Answer(put._replace(lease=lease), True, after.term)


def _outdated(world: World) -> World:
    """The Lease has changed: every copy of it has an old version."""
    return world._replace(
        replicas=tuple(
            replica._replace(
                election=replica.election.outdated(),
                put=replica.put and _old(replica.put),
                late=replica.late and _old(replica.late),
                answer=replica.answer and replica.answer._replace(put=_old(replica.answer.put)),
            )
            for replica in world.replicas
        )
    )


def _old(put: Put) -> Put:
    return put._replace(lease=elections.outdated(put.lease))


def _connected(world: World, number: int) -> World:
    """Requests that are under way began before this connection."""
    replica = world.replicas[number]
    put, answer = replica.put, replica.answer
    after = _with_replica(world, number, replica._replace(
        put=put and put._replace(confirms=False),
        answer=answer and answer._replace(put=answer.put._replace(confirms=False)),
    ))  # fmt: skip
    after = after._replace(switch=world.switch.connect(number))
    return _with_connection(after, number, Connection())


def _under_way(connection: Connection) -> int:
    return len(connection.requests) + len(connection.replies)


def _sent(connection: Connection, request: Message, stage: Stage) -> Connection:
    return connection._replace(requests=(*connection.requests, request), stage=stage)


def _fault(name: str, after: World, **left: int) -> Step[World]:
    return Step(name, after._replace(faults=after.faults._replace(**left)), True)


def _with_replica(world: World, number: int, replica: Replica) -> World:
    of_all = world.replicas
    return world._replace(replicas=(*of_all[:number], replica, *of_all[number + 1 :]))


def _with_connection(world: World, number: int, connection: Connection | None) -> World:
    of_all = world.connections
    return world._replace(connections=(*of_all[:number], connection, *of_all[number + 1 :]))
