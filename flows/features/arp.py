"""ARP: the switch answers for the router's address, and no broadcast leaves it.

Pods and nodes have a permanent neighbour entry for the router and need no answer. The answer is
for a pod that lost the entry, and for people who use `arping`.
"""

from collections.abc import Iterable
from typing import Final

from flows import names
from flows.features.protocols import ARP, ARP_REPLY, ARP_REQUEST
from flows.flow import IN_PORT, Flow, Move, Output, SetField, ip, mac
from flows.kinds import EVERY_NODE
from flows.pipeline import LAYOUT, Feature, Priority
from flows.view import Cluster


def every_node(_: Cluster, __: Cluster) -> Iterable[Flow]:
    """One flow turns a request for the router into the reply and sends it back."""
    yield LAYOUT.flow(
        Feature.ARP, "Arp", Priority.DEFAULT,
        {"dl_type": ARP, "arp_op": ARP_REQUEST, "arp_tpa": ip(names.ROUTER_ADDRESS)},
        [
            Move("dl_src", "dl_dst"),
            SetField("dl_src", mac(names.ROUTER_MAC)),
            SetField("arp_op", ARP_REPLY),
            Move("arp_sha", "arp_tha"),
            Move("arp_spa", "arp_tpa"),
            SetField("arp_sha", mac(names.ROUTER_MAC)),
            SetField("arp_spa", ip(names.ROUTER_ADDRESS)),
            Output(IN_PORT),
        ],
        "the switch answers ARP requests for the router",
    )  # fmt: skip


WRITES: Final = (EVERY_NODE.by(every_node),)
