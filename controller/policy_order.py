"""The order of messages for a change of policy that one bundle cannot hold.

Between two bundles a switch has a mixture of the flows before and after the change. So that a
mixture never judges a packet, the flows of `flows.features.judgement.control` are the first or the
last of the change:

- first phase of a change: all conditional flows, then the flows that judge by both states;
- second phase: judge by the new state alone, then everything else, then judge as always;
- a switch of which only the cookies are known: deny what policy selects, until all is in place.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

from flows.diff import Delta
from flows.features.judgement import control
from flows.flow import Flow
from flows.pipeline import Feature
from openflow.batch import DeleteByCookie

BOTH: Final = tuple(control("both"))
_NEW: Final = tuple(control("new"))
_CLOSED: Final = tuple(control("closed"))
CONTROL: Final = frozenset(flow.cookie for flow in (*BOTH, *_NEW, *_CLOSED))
"""The cookies of all flows of control."""


class Around(NamedTuple):
    """Messages before and after all others of a change, if it takes several bundles."""

    first: tuple[Flow, ...]
    last: tuple[Flow | DeleteByCookie, ...]


def around(
    delta: Delta, program: Mapping[int, tuple[Flow, object]], *, known: bool, empty: bool
) -> Around | None:
    """What has to surround a change of a node's own flows; None: nothing.

    `program` has the flows after the change, by cookie. `known`: the switch holds exactly the flows
    before the change. `empty`: the switch has no flows of the node: it lets no packet in before the
    last bundle.
    """
    if empty or not _touches_policy(delta):
        return None
    if not known:
        # A flow of control replaces the other ones, so the right one has to come back.
        wanted = tuple(program[cookie][0] for cookie in CONTROL if cookie in program)
        return Around(_CLOSED, (*wanted, *_deleted(CONTROL - program.keys())))
    entered = tuple(flow for flow in delta.adds if flow.cookie in CONTROL)
    if entered:
        return Around((), entered)
    if not CONTROL.isdisjoint(delta.deletes):
        return Around(_NEW, _deleted(CONTROL))
    return None


def _touches_policy(delta: Delta) -> bool:
    return any(flow.feature == Feature.POLICY for flow in delta.adds) or any(
        cookie >> 56 == Feature.POLICY for cookie in delta.deletes
    )


def _deleted(cookies: frozenset[int]) -> tuple[DeleteByCookie, ...]:
    return tuple(map(DeleteByCookie, sorted(cookies)))
