"""installed vs desired -> what to send."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from flows import names
from flows.flow import Flow, Meter
from flows.pipeline import Feature


@dataclass(frozen=True, slots=True)
class Delta:
    """What brings a switch from one state to another.

    Order on the switch: meters, then `adds`, then `deletes` (by cookie, so that a flow which
    took another's place stays), then the meters that are gone.
    """

    adds: tuple[Flow, ...] = ()
    deletes: tuple[int, ...] = ()
    meters_set: tuple[Meter, ...] = ()
    meters_delete: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.adds or self.deletes or self.meters_set or self.meters_delete)


OURS = frozenset(int(feature) for feature in Feature if feature != Feature.LEARNED)


def is_ours(cookie: int) -> bool:
    """Whether a flow with this cookie was put there by a feature that compiles flows."""
    return cookie >> 56 in OURS


def diff(
    installed: Collection[int],
    installed_meters: Mapping[int, Meter],
    desired: Mapping[int, Flow],
    desired_meters: Mapping[int, Meter],
) -> Delta:
    """Set difference of cookies, which name flows by content.

    Flows that are not ours (made by hand, or learned) are left alone, and meters with ids that
    no attachment has.
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
            if meter not in desired_meters
            and names.FIRST_ATTACHMENT_OFPORT <= meter <= names.LAST_ATTACHMENT_OFPORT
        ),
    )
