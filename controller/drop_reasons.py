"""Why switches drop packets: each flow that drops, by a few reasons."""

from typing import Final

from flows import names
from flows.flow import Flow
from flows.pipeline import LAYOUT, Feature

MISS: Final = "table miss"
GUARD: Final = "guard"
POLICY: Final = "policy"
METER: Final = "meter"
NO_ENDPOINT: Final = "no endpoint"
NO_ROUTE: Final = "no route"
INVALID: Final = "invalid"
REASONS: Final = (MISS, GUARD, POLICY, METER, NO_ENDPOINT, NO_ROUTE, INVALID)
"""All of them."""

_OF_TABLES: Final = {
    "SpoofGuard": GUARD, "TunnelGuard": GUARD, "GatewayGuard": GUARD, "PeerGuard": GUARD,
    "RouterGuard": GUARD,
    "BroadcastGuard": GUARD, "IcmpError": GUARD, "NewConnection": GUARD,
    "DestinationGuard": GUARD, "ServiceSource": GUARD, "ServiceChoice": GUARD,
    "ConntrackState": INVALID,
    "EndpointChoice": NO_ENDPOINT, "ServiceNat": NO_ENDPOINT, "Refuse": NO_ENDPOINT,
    "DeniedFromPod": POLICY, "DeniedToPod": POLICY, "PolicyFromPod": POLICY,
    "PolicyFromPodVerdict": POLICY, "PolicyToPod": POLICY, "PolicyToPodVerdict": POLICY,
    "Forwarding": NO_ROUTE,
    "PeerWay": NO_ROUTE,
    "EgressReply": GUARD, "Egress": GUARD, "EgressRoute": NO_ROUTE,
}  # fmt: skip
"""By table; in others a drop is a miss."""
_COUNTS_ALL: Final = frozenset(("DeniedFromPod", "DeniedToPod"))
"""Tables of which every packet is denied, also if it is reported to the agent."""
_RETURNING: Final = frozenset(
    (
        "Affinity", "PolicyFromPodAgain", "IsolationFromPod", "PolicyToPodAgain", "IsolationToPod",
        "State", "Groups",
    )
)  # fmt: skip
"""Tables, besides subroutines, that packets come to by resubmit, or not at all: what no flow
matches there goes on at the caller."""
COUNTING: Final = frozenset(
    table.number
    for table in LAYOUT.tables.values()
    if not table.is_subroutine and table.name not in _RETURNING
)
"""The numbers of the tables in which packets end."""
_REFUSE: Final = LAYOUT.goto("Refuse")


def drop_reason(flow: Flow) -> str | None:
    """Why a flow drops the packets that it counts, or has them refused; None: it does not.

    A packet is counted once, but for those that a meter drops: see `meter_purpose`.
    """
    if flow.table not in COUNTING:
        return None
    name = LAYOUT.by_number[flow.table].name
    if flow.actions and name not in _COUNTS_ALL:
        return NO_ENDPOINT if _REFUSE in flow.actions else None
    if flow.feature == Feature.POLICY:
        return POLICY
    return _OF_TABLES.get(name, MISS)


def meter_purpose(number: int) -> str:
    """What a meter limits; empty: it is not one of Sluice."""
    if number in (names.REFUSAL_METER, names.POD_REFUSAL_METER):
        return "refusals of the whole node"
    if number == names.DENIAL_METER:
        return "denied packets that are reported to the agent"
    if not names.is_our_meter(number):
        return ""
    kinds = {
        names.connection_meter(number & 0xFFFF): "new connections of the pod",
        names.fragment_meter(number & 0xFFFF): "fragments of the pod",
        names.refusal_meter(number & 0xFFFF): "refusals to the pod, and its ARP",
    }
    return kinds.get(number, "")
