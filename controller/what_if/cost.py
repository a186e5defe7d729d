"""What a change costs the switches: which of them get other flows, and how many."""

from collections.abc import Iterable

from controller.policies.needs import KINDS
from controller.what_if.moment import NO_COOKIES, Moment
from controller.what_if.report import Cost, LongestWalk
from flows.compile import Compiler
from flows.kinds import ISOLATION
from flows.view import SOME_SCOPE, Key


def cost(before: Moment, after: Moment, touched: Iterable[Key]) -> Cost:
    """The cost of a change that touched these keys."""
    compiler = Compiler()
    nodes: set[str] = set()
    added = removed = 0
    keys = {Key(SOME_SCOPE, each.kind, each.name) for each in touched if each.kind in KINDS}
    for key in keys:
        flows = before.cookies(compiler, key), after.cookies(compiler, key)
        needing = before.nodes(key), after.nodes(key)
        for node in needing[0] | needing[1]:
            had, has = (
                some if node in these else NO_COOKIES
                for some, these in zip(flows, needing, strict=True)
            )
            if had != has:
                nodes.add(node)
                added += len(has - had)
                removed += len(had - has)
    # Pods with the same policies have flows that differ in their ofport alone.
    alike: dict[tuple[int, ...], list[Key]] = {}
    for key in {each for each in touched if each.kind == ISOLATION.name}:
        walks = (*before.walks_of(key), *after.walks_of(key))
        alike.setdefault(tuple(map(id, walks)), []).append(key)
    for same in alike.values():
        had, has = before.cookies(compiler, same[0]), after.cookies(compiler, same[0])
        if had != has:
            nodes.update(key.scope for key in same)
            added += len(has - had) * len(same)
            removed += len(had - has) * len(same)
    longest = LongestWalk(before.longest_walk(), after.longest_walk())
    return Cost(len(nodes), added, removed, longest)
