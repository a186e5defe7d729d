"""Guards of node addresses that the clusters of the trace tests do not have."""

from ipaddress import IPv4Address, IPv4Network

from flows.features import conntrack
from flows.flow import ip
from flows.view import Node
from tests.flows.worlds import CLUSTER

FURTHER = (IPv4Address("172.30.9.1"), IPv4Address("198.51.100.1"))
NODE = Node("node9", "n9", IPv4Address("172.30.1.9"), IPv4Network("10.244.9.0/24"), FURTHER)


def test_tunnel_port_of_every_address_of_a_node_is_guarded() -> None:
    drops = [flow for flow in conntrack.peer(CLUSTER, NODE) if not flow.actions]
    matches = [{field: value for field, value, _ in flow.match} for flow in drops]
    addresses = {ip(address) for address in (NODE.address, *FURTHER)}
    ports = {match["nw_dst"]: match["tp_dst"] for match in matches if "tp_dst" in match}
    assert ports == dict.fromkeys(addresses, CLUSTER.tunnel_port)
    assert {match["nw_dst"] for match in matches if "nw_frag" in match} == addresses
