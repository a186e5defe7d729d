"""Priorities of ClusterNetworkPolicies: those of one tier with equal ones go by name."""

from bisect import bisect_left, insort

from controller.policies.drafts import PolicyDraft, Tier
from flows.refs import ObjectRef

_Key = tuple[Tier, int]


class Priorities:
    """Which ClusterNetworkPolicies have a tier and a priority in common."""

    def __init__(self) -> None:
        self._of: dict[ObjectRef, _Key] = {}
        self._refs: dict[_Key, list[ObjectRef]] = {}
        """Sorted."""

    def set(self, ref: ObjectRef, draft: PolicyDraft | None) -> dict[ObjectRef, None]:
        """A policy was added, changed or removed. Returns the others for which `before` changed."""
        concerned: dict[ObjectRef, None] = {}
        if (old := self._of.pop(ref, None)) is not None:
            refs = self._refs[old]
            place = bisect_left(refs, ref)
            del refs[place]
            concerned.update(dict.fromkeys(refs[place : place + 1]))
            if not refs:
                del self._refs[old]
        if draft is not None and draft.tier is not Tier.POLICY:
            new = self._of[ref] = draft.tier, draft.priority
            refs = self._refs.setdefault(new, [])
            insort(refs, ref)
            place = bisect_left(refs, ref) + 1
            concerned.update(dict.fromkeys(refs[place : place + 1]))
        return concerned

    def before(self, ref: ObjectRef) -> ObjectRef | None:
        """The policy that comes directly before this one and has the same tier and priority."""
        if (key := self._of.get(ref)) is None:
            return None
        place = bisect_left(self._refs[key], ref)
        return self._refs[key][place - 1] if place else None
