"""Attacks of a client outside the cluster."""

import re

from flows.pipeline import LAYOUT, Feature
from tests.ovs import Ovs

TABLE = LAYOUT.tables["Affinity"]


def clients_of(ovs: Ovs) -> dict[int, int]:
    """By Service, how many clients the switch remembers."""
    found: dict[int, int] = {}
    for number in re.findall(r"reg2=(0x[0-9a-f]+)", ovs.ofctl("dump-flows", str(ovs.mgmt))):
        found[int(number, 16)] = found.get(int(number, 16), 0) + 1
    return found


def test_many_clients_of_a_service_evict_only_its_own(ovs: Ovs) -> None:
    """Each source address that a datagram claims is remembered, and anybody can claim any."""
    assert TABLE.max_flows is not None
    cookie = int(Feature.LEARNED) << 56 | 10_800
    others, flood = 100, TABLE.max_flows + 1_000
    flows = [
        f"table=Affinity,cookie={cookie:#x},priority=100,idle_timeout=10800,ip,"
        f"reg2={service},nw_src=198.{18 + (n >> 16)}.{n >> 8 & 255}.{n & 255},"
        "actions=set_field:9->reg3"
        for service, count in ((7, others), (8, flood))
        for n in range(count)
    ]
    file = ovs.directory / "flows"
    file.write_text("\n".join(flows))
    ovs.ofctl("add-flows", str(ovs.mgmt), str(file))
    assert clients_of(ovs) == {7: others, 8: TABLE.max_flows - others}
