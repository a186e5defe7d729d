"""The difference between installed and desired flows: what to send to a switch."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from flows import names
from flows.flow import Bucket, Flow, Group, Meter
from flows.pipeline import Feature


@dataclass(frozen=True, slots=True)
class GroupChange:
    """A group must become `new`. `old` is what the switch holds; None: unknown."""

    new: Group
    old: Group | None = None

    def buckets(self) -> tuple[tuple[int, ...], tuple[Bucket, ...]] | None:
        """The ids of buckets to remove, then the buckets to insert; None: send the whole group.

        A changed bucket is removed and inserted. The whole group is sent if that is less, and
        always for `dp_hash`: after an insertion, Open vSwitch gives all hash slots to the inserted
        buckets, and after a removal the group has no slots (seen with 3.1).
        """
        new, old = self.new, self.old
        if new != old and new.method == "dp_hash":
            return None
        if old is None or (new.id, new.method, new.fields) != (old.id, old.method, old.fields):
            return None
        before = {bucket.id: bucket for bucket in old.buckets}
        inserted = tuple(each for each in new.buckets if before.get(each.id) != each)
        kept = {bucket.id for bucket in new.buckets}.difference(each.id for each in inserted)
        removed = tuple(number for number in before if number not in kept)
        return None if len(inserted) + len(removed) > len(new.buckets) else (removed, inserted)


@dataclass(frozen=True, slots=True)
class Delta:
    """The change of a switch from one state to another.

    Order on the switch: meters, `groups_set`, `adds`, `deletes`, then groups and meters to delete.
    The deletes of a program's change begin with the first table.
    Deletes are by cookie, so a flow that replaced another flow stays.
    """

    adds: tuple[Flow, ...] = ()
    deletes: tuple[int, ...] = ()
    meters_set: tuple[Meter, ...] = ()
    meters_delete: tuple[int, ...] = ()
    groups_set: tuple[GroupChange, ...] = ()
    groups_delete: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(
            self.adds
            or self.deletes
            or self.meters_set
            or self.meters_delete
            or self.groups_set
            or self.groups_delete
        )

    def keeping(self, cookies: Collection[int], groups: Collection[int]) -> "Delta":
        """Without deletions of these: they may have moved to another program."""
        return replace(
            self,
            deletes=tuple(each for each in self.deletes if each not in cookies),
            groups_delete=tuple(each for each in self.groups_delete if each not in groups),
        )


COMPILED_FEATURES = frozenset(Feature) - {Feature.LEARNED, Feature.GENERATION}


def is_ours(cookie: int) -> bool:
    """Whether a flow with this cookie was compiled by Sluice."""
    return cookie >> 56 in COMPILED_FEATURES


def is_generation(cookie: int) -> bool:
    """Whether a flow with this cookie says a controller's generation (`flows.features.state`)."""
    return cookie >> 56 == Feature.GENERATION


def is_learned(cookie: int) -> bool:
    """Whether the switch made a flow with this cookie by itself (`learn`)."""
    return cookie >> 56 == Feature.LEARNED


def diff(
    installed: Collection[int],
    installed_meters: Mapping[int, Meter],
    installed_groups: Mapping[int, Group | None],
    desired: Mapping[int, Flow],
    desired_meters: Mapping[int, Meter],
    desired_groups: Mapping[int, Group],
) -> Delta:
    """Set difference of cookies, which name flows by content.

    Foreign and learned flows are left alone, and so are meters and groups with ids outside of
    Sluice's ranges. `installed_groups` has None for a group with unknown content: it is sent whole.
    """
    return Delta(
        adds=tuple(flow for cookie, flow in desired.items() if cookie not in installed),
        deletes=tuple(sorted(c for c in installed if c not in desired and is_ours(c))),
        meters_set=tuple(
            meter for meter in desired_meters.values() if installed_meters.get(meter.id) != meter
        ),
        meters_delete=tuple(
            meter
            for meter in installed_meters
            if meter not in desired_meters and names.is_our_meter(meter)
        ),
        groups_set=tuple(
            GroupChange(group, installed_groups.get(number))
            for number, group in desired_groups.items()
            if installed_groups.get(number) != group
        ),
        groups_delete=tuple(
            sorted(
                number
                for number in installed_groups
                if number not in desired_groups and number in names.GROUPS
            )
        ),
    )
