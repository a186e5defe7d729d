"""A change of policies on one switch: the state between the old and the new one.

Policy from the pod and policy to the pod are enforced at two switches. If both change, in any order
of the switches, a packet may meet the new policies at one end and the old ones at the other, and
pass although neither state allows it. So a change has two phases. In phase one each switch lets
pass only what the old *and* the new policies of its pods allow. When that is in force on all
switches, phase two leaves the new ones alone.

In phase one the tables of policy hold both states. The register field `Pass` tells them apart:
flows that only one of the states has match it, and flows of both states do not. The flows of
`flows.features.judgement.control` judge each new connection with `Pass` OLD and then NEW.
"""

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from flows.flow import Flow, match
from flows.pipeline import LAYOUT, Pass

_TABLES: Final = frozenset(
    table.number for table in LAYOUT.tables.values() if "Pass" in table.match
)
_KEPT: Final = {Pass.OLD: "old_state", Pass.NEW: "new_state"}
_REGISTER: Final = LAYOUT.registers["Pass"].register


def transition(old: Iterable[Flow], new: Iterable[Flow]) -> list[Flow]:
    """The flows of phase one: those of both states, each in force for its own state alone.

    Both are flows of policy. They may be those of one fragment, because two fragments never have
    flows with one key. With the flows of `control("both")` a packet passes if the old and the new
    flows accept it; with those of `control("new")` if the new ones do; otherwise if the old do.
    """
    before = {flow.cookie: flow for flow in old}
    after = {flow.cookie: flow for flow in new}
    found = {flow.key: flow for cookie, flow in after.items() if cookie in before}
    for flows, others, state in ((before, after, Pass.OLD), (after, before, Pass.NEW)):
        for cookie, flow in flows.items():
            if cookie not in others:
                made = conditional(flow, state)
                # In a table without `Pass` the new flow takes the place of an old one.
                found[made.key] = made
    return list(found.values())


def conditional(flow: Flow, state: Pass) -> Flow:
    """The flow, in force for one state alone; unchanged if its table knows no states.

    It is kept with the flow, so all programs that share the flow share it, too.
    """
    if flow.table not in _TABLES:
        return flow
    name = _KEPT[state]
    kept: Flow | None = getattr(flow, name, None)
    if kept is None:
        fields = {name: (value, mask) for name, value, mask in flow.match}
        value, mask = fields.pop(_REGISTER, (0, 0))
        bit, bits = LAYOUT.registers["Pass"].value(state)
        given = {n: v if m is None else (v, m) for n, (v, m) in fields.items()}
        given[_REGISTER] = value | bit, (mask or 0) | bits
        kept = replace(flow, match=match(given))
        flow.keep(name, kept)
    return kept
