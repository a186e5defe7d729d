"""What a change costs the switches: which of them get other flows, and how many."""

from collections.abc import Iterable

from controller.policies.needs import KINDS
from controller.what_if.moment import NO_COOKIES, Moment
from controller.what_if.report import Cost, LongestWalk
from flows.compile import Compiler
from flows.view import SOME_SCOPE, Key


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
