"""What an agent tells of its switch."""

import asyncio

from flows import names
from node_agent import audit
from openflow import digest
from openflow.watch import connect
from tests.openflow import samples
from tests.ovs import Ovs
from wire.documents import SwitchDigest, decode_digest, encode


def told(ovs: Ovs) -> SwitchDigest:
    async def look() -> SwitchDigest:
        async with connect(ovs.mgmt) as switch:
            return (await audit.look(switch)).digest

    return asyncio.run(look())


def test_groups_of_ours_are_digested_and_the_rest_is_counted(ovs: Ovs) -> None:
    groups = samples.groups()
    ovs.install(samples.for_services(), groups=groups)
    whole = told(ovs)
    assert decode_digest(encode(whole)) == whole
    assert whole.groups == digest.total(map(digest.of_group, groups))
    assert whole.foreign == 0

    # Learned as a flow of ours told it: nobody's work, and no two switches learn the same.
    ovs.ofctl("add-flow", str(ovs.mgmt), "cookie=0x0a00000000000001,table=62,actions=drop")
    assert told(ovs) == whole
    ovs.ofctl("add-flow", str(ovs.mgmt), "table=62,priority=1,actions=drop")
    ovs.ofctl("add-group", str(ovs.mgmt), "group_id=7,type=select,bucket=drop")
    assert told(ovs).foreign == 2
    assert told(ovs).groups == whole.groups

    bucket = "weight:1,actions=drop"
    ovs.ofctl("mod-group", str(ovs.mgmt), f"group_id={names.GROUPS[0]},type=select,bucket={bucket}")
    assert told(ovs).groups != whole.groups
    assert told(ovs).sums == whole.sums
