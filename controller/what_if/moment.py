"""What the view says about policies at one moment."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace

from controller.policies.needs import Needs
from flows.compile import Compiler
from flows.kinds import ISOLATION, PEER_MEMBER, PEER_SET, PORT_SET, WALK
from flows.policy import Walks
from flows.view import ClusterView, Key

NO_COOKIES = frozenset[int]()


@dataclass(frozen=True)
class Moment:
    """What a view says about policies at one moment."""

    view: ClusterView
    needs: Needs

    @classmethod
    def of(cls, view: ClusterView, needs: Needs) -> "Moment":
        """A copy of what the view says now. The values are frozen, so they are shared."""
        return cls(
            replace(
                view,
                isolations={node: dict(some) for node, some in view.isolations.items()},
                walks=dict(view.walks),
                peer_sets=dict(view.peer_sets),
                peer_members={name: dict(some) for name, some in view.peer_members.items()},
                port_sets=dict(view.port_sets),
                needed_by={},
            ),
            needs,
        )

    def all_walks(self) -> Iterator[Walks]:
        """The walks of every isolated attachment, for each direction; those of many once."""
        found = {
            id(walks): walks
            for some in self.view.isolations.values()
            for each in some.values()
            for walks in (each.from_pod, each.to_pod)
        }
        yield from (walks for walks in found.values() if walks is not None)

    def concerned_sets(self, touched: Collection[Key]) -> set[int]:
        """The peer sets of all attachments that a change of these keys concerns."""
        names = {(key.kind, key.name[:16]) for key in touched}
        walks = {
            walk.id: walk
            for name, walk in self.view.walks.items()
            if (WALK.name, name[:16]) in names
            or any((PORT_SET.name, f"{step.ports:016x}") in names for step in walk.steps)
            or any(
                (kind.name, f"{step.peers or 0:016x}") in names
                for step in walk.steps
                for kind in (PEER_SET, PEER_MEMBER)
            )
        }
        isolated = {
            id(found)
            for key in touched
            if key.kind == ISOLATION.name
            and (of := self.view.isolations.get(key.scope, {}).get(key.name)) is not None
            for found in (of.from_pod, of.to_pod)
        }
        return {
            step.peers
            for each in self.all_walks()
            for numbers in [(*each.admin, *each.policies, *each.baseline)]
            if id(each) in isolated or not walks.keys().isdisjoint(numbers)
            for number in numbers
            if (walk := self.view.walks.get(f"{number:016x}")) is not None
            for step in walk.steps
            if step.peers is not None
        }

    def walks_of(self, key: Key) -> tuple[Walks | None, Walks | None]:
        """The walks of the attachment of this key, from the pod and to the pod."""
        found = self.view.isolations.get(key.scope, {}).get(key.name)
        return (None, None) if found is None else (found.from_pod, found.to_pod)

    def longest_walk(self) -> int:
        """The most rules that a packet of one pod goes through in one direction."""
        lengths = {int(name, 16): len(walk.steps) for name, walk in self.view.walks.items()}
        return max(
            (
                sum(lengths.get(number, 0) for number in (*walks.admin, *inner))
                for walks in self.all_walks()
                for inner in (walks.policies if walks.isolated else walks.baseline,)
            ),
            default=0,
        )

    def cookies(self, compiler: Compiler, key: Key) -> frozenset[int]:
        """The flows of a fragment."""
        found = compiler.fragment(self.view, key)
        return frozenset(flow.cookie for flow in found.flows) if found else NO_COOKIES

    def nodes(self, key: Key) -> frozenset[str]:
        """The nodes that need a shared fragment."""
        return self.needs.get((key.kind, key.name[:16]), frozenset())
