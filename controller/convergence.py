"""Proof that switches hold the flows of an object: `sluice wait`.

A switch holds a version of a program if it has acknowledged it: the answer to the commit of a
bundle, or to a barrier. So what is needed is noted once, when somebody first asks: the version of
the shared program that has the object, and the version that each node's own program has then.
Whoever asks again with the same id is told about that state, even if the cluster changes all the
time.

A change of an object also removes flows, perhaps on switches that need nothing of it any more. So
removals count that were made before somebody asks, and so do all connected switches that have not
acknowledged their last change then. A switch that is away, and needs nothing of the object, may
still hold what was removed; of an object that is gone, it is waited for.
"""

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from controller.acknowledgements import Acknowledged
from controller.causes import POLICY_KINDS, alike, holders, keys_of
from controller.object_names import UnknownObject, is_known, object_named, ref_named
from controller.policies.slices import SLICE, Slices
from controller.policy_reports.pods import why_not_attached
from controller.reconciler import Reconciler
from controller.references import Reference
from controller.reports.convergence import Convergence, LackingRow, LastRow
from controller.session import Session
from controller.session_state import State
from controller.work_budget import in_turns
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Key

MOST_WAITS: Final = 32
"""Waits that are remembered; then the one that was asked about the longest ago is forgotten."""
MOST_NAMED: Final = 20
"""Nodes that are named because they lack it."""
PATIENCE: Final = 2.0
"""Seconds that an answer waits until all changes so far are compiled."""
_UNPROVEN: Final = frozenset(
    (State.UNKNOWN, State.RETRY, State.COMPARING, State.SUSPECT, State.REPAIRING, State.PAUSED)
)
"""States in which what a switch acknowledged once proves nothing."""


@dataclass
class _Wait:
    """What the switches need to hold."""

    ref: ObjectRef
    keys: list[Key]
    shared: int
    """The version of the shared program."""
    own: dict[str, int]
    """By node, the version of its own program; 0: the object has nothing there."""
    is_gone: bool
    """Whether the object is to be gone from all switches."""
    changed: int
    """The version of the shared program in which the object changed last: removals of others may
    follow."""
    held: dict[str, tuple[Acknowledged, float]] = field(default_factory=dict)
    """By node, its proof, and how many seconds its datapath needs to follow."""


class Convergences:
    """The waits of everybody who asks."""

    def __init__(self, reconciler: Reconciler, clock: Callable[[], float] = time.time) -> None:
        self._reconciler = reconciler
        self._clock = clock
        self._waits: OrderedDict[str, _Wait] = OrderedDict()

    async def look(self, text: str, name: str = "", *, gone: bool = False) -> Convergence:
        """Which switches hold the object of a text; with the id of a former answer, that state.

        `gone`: which switches have removed all that it caused.
        """
        wait = self._waits.get(name)
        if wait is None:
            begun = await self._begin(text, gone=gone)
            if isinstance(begun, Convergence):
                return begun
            name, wait = secrets.token_hex(8), begun
            self._waits[name] = wait
            if len(self._waits) > MOST_WAITS:
                self._waits.popitem(last=False)
        self._waits.move_to_end(name)
        return await in_turns(self._judged(name, wait))

    async def _begin(self, text: str, *, gone: bool) -> _Wait | Convergence:
        """Note what is needed; an answer that says why that is not known yet."""
        try:
            ref = (ref_named if gone else object_named)(self._reconciler.inventory, text)
        except UnknownObject as error:
            return Convergence(object=None, id="", gone=gone, pending=str(error))
        why = await self._why_pending(ref, gone=gone)
        if not why:
            made = self._removed(ref) if gone else await in_turns(self._needed(ref))
            why = "" if gone or made.keys else self._why_nothing(ref)
            if not why:
                return made
        return Convergence(object=Reference.of(ref), id="", gone=gone, pending=why)

    async def _why_pending(self, ref: ObjectRef, *, gone: bool) -> str:
        """Why it cannot be said yet what the switches need; waits a moment until it can."""
        reconciler = self._reconciler
        if gone and is_known(reconciler.inventory, ref):
            return f"{ref} is still there"
        if not reconciler.desired.source_complete:
            return "not all of the cluster could be read: nothing is removed from switches"
        end = asyncio.get_running_loop().time() + PATIENCE
        while not reconciler.is_idle:
            if asyncio.get_running_loop().time() >= end:
                return "the controller is still compiling changes"
            await asyncio.sleep(0.01)
        return ""

    def _removed(self, ref: ObjectRef) -> _Wait:
        """Of an object that is gone: every switch has to acknowledge its programs of now."""
        desired, nodes = self._reconciler.desired, self._reconciler.inventory.view.nodes
        own = {node: desired.program(node).version for node in nodes}
        version = desired.shared_removed_at
        return _Wait(ref, [], version, own, is_gone=True, changed=version)

    def _needed(self, ref: ObjectRef) -> Slices[_Wait]:
        reconciler = self._reconciler
        desired, view = reconciler.desired, reconciler.inventory.view
        keys = yield from keys_of(reconciler.inventory, ref)
        shared = [key for key in keys if key.scope == CLUSTER_SCOPE]
        own: dict[str, int] = dict.fromkeys(view.nodes, 0) if shared else {}
        # Of the keys with the same holders, one is enough: a set may have very many members.
        for key in {alike(each): each for each in keys if each.scope != CLUSTER_SCOPE}.values():
            yield
            for node in holders(view, key):
                own[node] = desired.program(node).version
        for node, session in list(reconciler.sessions.items()):
            version = desired.program(node).version
            if session.held_version < version and node in view.nodes:
                own[node] = version
        changed = desired.shared_version_of(shared)
        removed = desired.shared_removed_at
        return _Wait(ref, keys, max(changed, removed), own, is_gone=False, changed=changed)

    def _why_nothing(self, ref: ObjectRef) -> str:
        """Why an object has no flows though it may get some; empty: it needs none."""
        inventory = self._reconciler.inventory
        name = f"{ref.namespace}/{ref.name}"
        for problem in inventory.problems.of_subject(ref):
            return f"{ref}: {problem.text}"
        match ref.kind:
            case "Pod":
                return why_not_attached(inventory, name)
            case "Node":
                return f"{ref}: {inventory.nodes.reason(ref.name)}"
            case "NetworkPolicy" | "ClusterNetworkPolicy":
                is_known = ref in inventory.policies.policies
                return "" if is_known else f"{ref} is not in force yet"
        return ""

    # --- judging ---

    def _judged(self, name: str, wait: _Wait) -> Slices[Convergence]:
        reconciler = self._reconciler
        lacking: list[LackingRow] = []
        hold = need = 0
        for number, node in enumerate(list(wait.own)):
            if number % SLICE == 0:
                yield
            if node not in reconciler.inventory.view.nodes:
                continue
            need += 1
            why = yield from self._lacks(node, wait)
            hold += not why
            if why and len(lacking) < MOST_NAMED:
                lacking.append(LackingRow(node, why))
        proofs = {node: wait.held[node] for node in wait.own if node in wait.held}
        last = max(proofs, key=lambda node: proofs[node][0].at, default="")
        settled = max((proof.at + settle for proof, settle in proofs.values()), default=0.0)
        return Convergence(
            object=Reference.of(wait.ref),
            id=name,
            gone=wait.is_gone,
            hold=hold,
            need=need,
            last=_last(last, proofs[last][0]) if last else None,
            in_force_at=settled if last and hold == need else None,
            in_force=hold == need and self._clock() >= settled,
            lacking=tuple(lacking),
        )

    def _lacks(self, node: str, wait: _Wait) -> Slices[str]:
        """Why a switch is not proven to hold it; empty: it is."""
        session = self._reconciler.sessions.get(node)
        why = "not connected"
        if session is not None:
            why = yield from self._unproven(session, wait)
        if session is None or why:
            wait.held.pop(node, None)
            return why
        if node in wait.held:
            return ""
        program = self._reconciler.desired.program(node)
        # A program that began anew counts from 0 again.
        own = wait.own[node] = min(wait.own[node], program.version)
        if session.acknowledged.of(wait.shared, own) is None:
            return "it has not acknowledged the change yet"
        proof = session.acknowledged.of(wait.changed, own)
        assert proof is not None  # noqa: S101  an older version than the one that it holds
        wait.held[node] = proof, session.settle_time
        return ""

    def _unproven(self, session: Session, wait: _Wait) -> Slices[str]:
        """Why what a switch has acknowledged proves nothing now; empty: it does."""
        if session.state in _UNPROVEN:
            return session.state.value
        if session.left_out:
            is_left_out = yield from self._is_left_out(session, wait.keys)
            if is_left_out:
                return "the switch rejected flows of it"
        if session.kept_members and (wait.is_gone or wait.ref.kind in POLICY_KINDS):
            return "it keeps pods of nodes that have not connected yet as peers of policies"
        return ""

    def _is_left_out(self, session: Session, keys: Iterable[Key]) -> Slices[bool]:
        desired = self._reconciler.desired
        programs = desired.shared, desired.program(session.node)
        for number, key in enumerate(keys):
            if number % SLICE == 0:
                yield
            for program in programs:
                fragment = program.fragments.get(key)
                if fragment is not None and any(
                    flow.cookie in session.left_out for flow in fragment.flows
                ):
                    return True
        return False


def _last(node: str, proof: Acknowledged) -> LastRow:
    return LastRow(node, proof.at, proof.is_exact)
