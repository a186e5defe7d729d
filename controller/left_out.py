"""What has to go with a flow that a switch rejected."""

from collections.abc import Iterable
from typing import Final

from flows.compile import Program
from flows.flow import Flow, Group
from flows.pipeline import LAYOUT
from flows.policy import SET_REFS
from flows.refs import ObjectRef, Owners
from openflow.batch import BucketRemove, BucketsInsert, Message, message_text
from openflow.switch import Rejected


def left_out_of(program: Program, rejected: Rejected) -> tuple[set[int], dict[ObjectRef, str]]:
    """What of a program has to go: the cookies of the flows, and why, for each object of them."""
    found: list[tuple[Flow, Owners]] = []
    causes: dict[ObjectRef, str] = {}
    for message, error in rejected.rejections:
        if entry := program.cookies.get(_cookie_of(message, program)):
            found.append(entry)
            why = f"the switch rejected {message_text(message)}: {error}"
            causes |= dict.fromkeys(entry[1], why)
    return (_left_out_with(found, program) if found else set()), causes


def _left_out_with(rejected: Iterable[tuple[Flow, Owners]], program: Program) -> set[int]:
    """The cookies of all flows of a program that must go with rejected ones of it.

    All flows of an object, because some could allow what the others forbid; of a set, also the
    walks that use it: what a walk denies must be known.
    """
    owners, sets = set[Owners](), set[ObjectRef]()
    for flow, of_flow in rejected:
        owners.add(of_flow)
        if flow.table in _SET_TABLES:
            sets.update(owner for owner in of_flow if owner.kind in SET_REFS)
    return {
        cookie
        for cookie, (_, of_flow) in program.cookies.items()
        if of_flow in owners or not sets.isdisjoint(of_flow)
    }


_SET_TABLES: Final = frozenset(LAYOUT.tables[t].number for t in ("PolicyPeers", "PolicyPorts"))


def _cookie_of(message: Message, program: Program) -> int:
    """The cookie of a flow that belongs to what a rejected message is about; 0: none."""
    match message:
        case Flow():
            return message.cookie
        case Group(id=number) | BucketsInsert(group=number) | BucketRemove(group=number):
            return program.companions.get(number, 0)
    return 0
