"""Attacks of a client outside the cluster."""

import re

import pytest

from flows.pipeline import LAYOUT, Feature
from lab import Lab
from tests.hostile.harness import Hostile
from tests.lab.served import NODE1, endpoints, service
from tests.ovs import Ovs
from tests.waiting import wait_until

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


FLOOD = """
import itertools, socket, struct, sys
target, port = socket.inet_aton(sys.argv[1]), int(sys.argv[2])
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
print("ready", flush=True)
for number in itertools.count():
    source = struct.pack("!I", (198 << 24 | 18 << 16) + number % 100_000)
    udp = struct.pack("!HHHH", 1024 + number % 60_000, port, 9, 0) + b"x"
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + source + target
    try:
        raw.sendto(head + udp, (sys.argv[1], 0))
    except OSError:
        pass
"""
NODE_PORT = 30_066


@pytest.mark.hostile
def test_source_addresses_without_end_at_a_service_with_affinity(hostile: Hostile) -> None:
    """Forged datagrams to a NodePort: each source is a client to be remembered."""
    lab = hostile.lab
    ports = [{"name": "UDP", "protocol": "UDP", "port": 53, "nodePort": NODE_PORT}]
    server = hostile.address("default/server")
    with hostile.attack("outside", "forged clients of a Service with affinity") as attack:
        attack.until(lambda: lab.delete("Service", "default", "sticky"))
        attack.until(lambda: lab.delete("EndpointSlice", "default", "sticky-1"))
        lab.apply(endpoints("sticky", [(server, {"nodeName": "node1"})], ports=[
            {"name": "UDP", "protocol": "UDP", "port": 9}]))  # fmt: skip
        lab.apply(service("sticky", "10.96.0.67", ports, type="NodePort",
                          sessionAffinity="ClientIP"))  # fmt: skip
        attack.run("outside", FLOOD, NODE1, str(NODE_PORT))
        wait_until(lambda: remembered(lab) > 1_000, seconds=60)
        during = attack.measure()
        assert TABLE.max_flows is not None
        assert remembered(lab) <= TABLE.max_flows
    assert during.same_node_rate > 0
    assert during.other_node_rate > 0
    assert during.add is not None
    # They go with the Service.
    wait_until(lambda: remembered(lab) == 0)


def remembered(lab: Lab) -> int:
    """How many clients node1's switch remembers."""
    words = ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int", f"table={TABLE.number}"]
    return lab.exec("node1", words, timeout=60).stdout.count("nw_src=")
