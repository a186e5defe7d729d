"""What a change costs the switches: which of them get other flows, and how many."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from controller.policies.needs import KINDS, Needs
from controller.what_if.report import Cost, LongestWalk
from flows.compile import Compiler
from flows.policy import Walks
from flows.view import SOME_SCOPE, ClusterView, Key

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
        """The walks of every isolated attachment, for each direction."""
        for some in self.view.isolations.values():
            for each in some.values():
                yield from (walks for walks in (each.from_pod, each.to_pod) if walks is not None)

    def longest_walk(self) -> int:
        """The most rules that a packet of one pod goes through in one direction."""
        lengths = {int(name, 16): len(walk.steps) for name, walk in self.view.walks.items()}
        return max(
            (
                sum(lengths.get(number, 0) for number in (*walks.admin, *inner))
                for walks in set(self.all_walks())
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


def cost(before: Moment, after: Moment, touched: Iterable[Key]) -> Cost:
    """The cost of a change that touched these keys."""
    compiler = Compiler()
    nodes: set[str] = set()
    added = removed = 0
    keys = {
        each if each.kind == "isolation" else Key(SOME_SCOPE, each.kind, each.name)
        for each in touched
        if each.kind == "isolation" or each.kind in KINDS
    }
    for key in keys:
        flows = before.cookies(compiler, key), after.cookies(compiler, key)
        if key.scope == SOME_SCOPE:
            needing = before.nodes(key), after.nodes(key)
        else:
            needing = frozenset({key.scope}), frozenset({key.scope})
        for node in needing[0] | needing[1]:
            had, has = (
                some if node in these else NO_COOKIES
                for some, these in zip(flows, needing, strict=True)
            )
            if had != has:
                nodes.add(node)
                added += len(has - had)
                removed += len(had - has)
    longest = LongestWalk(before.longest_walk(), after.longest_walk())
    return Cost(len(nodes), added, removed, longest)
