"""What a gateway counts in the list of what its switch tracks."""

from ipaddress import IPv4Address

from node_agent.egress_use import count
from wire.documents import decode_egress_use, encode
from wire.egress import MAX_DESTINATIONS, MAX_PODS

NINE = IPv4Address("192.0.2.9")
KERNEL = (
    "tcp,orig=(src=10.244.1.2,dst=203.0.113.10,sport=4000,dport=443),"
    "reply=(src=203.0.113.10,dst=192.0.2.9,sport=443,dport=4000),zone=101,"
    "protoinfo=(state=ESTABLISHED)\n"
    "udp,orig=(src=10.244.1.2,dst=203.0.113.10,sport=4001,dport=53),"
    "reply=(src=203.0.113.10,dst=192.0.2.9,sport=53,dport=4001),zone=101\n"
)
USERSPACE = (
    "icmp,orig=(src=10.244.2.2,dst=203.0.113.10,id=7,type=8,code=0),"
    "reply=(src=203.0.113.10,dst=192.0.2.9,id=7,type=0,code=0),zone=101\n"
    "tcp,orig=(src=10.244.2.2,dst=203.0.113.10,sport=4000,dport=443),"
    "reply=(src=203.0.113.10,dst=192.0.2.9,sport=443,dport=1024),zone=101,"
    "protoinfo=(state=SYN_SENT)\n"
    "tcp,orig=(src=172.30.1.1,dst=10.244.2.2,sport=5000,dport=80),"
    "reply=(src=10.244.2.2,dst=10.244.1.0,sport=80,dport=5000),zone=101\n"
    "what=(is this)\n"
)


def test_ports_are_counted_by_destination_and_pod() -> None:
    use = count(KERNEL + USERSPACE, [NINE], 1_000)
    assert (use.tracked, use.capacity) == (5, 1_000)
    (address,) = use.addresses
    assert (address.connections, address.destination_count) == (4, 3)
    first = address.destinations[0]
    assert (str(first.address), first.protocol, first.port, first.ports) == (
        "203.0.113.10", 6, 443, 2,
    )  # fmt: skip
    assert first.pods == ((IPv4Address("10.244.1.2"), 1), (IPv4Address("10.244.2.2"), 1))
    assert {(each.protocol, each.port) for each in address.destinations} == {
        (6, 443), (17, 53), (1, 0),
    }  # fmt: skip
    assert decode_egress_use(encode(use)) == use


def test_report_of_very_many_destinations_and_pods_is_bounded() -> None:
    lines = "".join(
        f"tcp,orig=(src=10.244.{n % 250}.2,dst=203.0.{n % 200}.10,sport={n},dport=443),"
        f"reply=(src=203.0.113.10,dst=192.0.2.9,sport=443,dport={n}),zone=101\n"
        for n in range(20_000)
    )
    use = count(lines, [NINE], 0)
    (address,) = use.addresses
    assert (address.connections, address.destination_count) == (20_000, 200)
    assert len(address.destinations) == MAX_DESTINATIONS
    assert len(address.pods) == MAX_PODS
    assert all(len(each.pods) <= MAX_PODS for each in address.destinations)
    assert len(encode(use)) < 20_000


def test_address_without_connections_is_told_as_well() -> None:
    (address,) = count("", [NINE], 0).addresses
    assert (address.connections, address.destinations) == (0, ())
