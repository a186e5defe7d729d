"""Planted faults in the flows that guard: spoofing, tunnels, connections, ranges."""

from typing import Final

from tests.mutants.fault import Fault

_CLASSIFY = "flows/features/classify.py"
_CONNTRACK = "flows/features/conntrack.py"
_FORWARDING = "flows/features/forwarding.py"
# Not the goldens: they notice everything, and say nothing of why.
_TRACES = ("tests/flows/test_trace.py",)
_WAYS = ("tests/flows/test_ways.py",)
_SERVICE_TRACES = ("tests/flows/test_service_trace.py",)

PACKETS: Final = (
    Fault(
        "a pod may send with any source address",
        _CLASSIFY,
        '            "in_port": attachment.ofport,\n'
        '            "dl_src": mac(attachment.mac),\n'
        '            "dl_type": family.ether_type,\n'
        "            family.source: ip(attachment.address),\n",
        '            "in_port": attachment.ofport,\n'
        '            "dl_src": mac(attachment.mac),\n'
        '            "dl_type": family.ether_type,\n',
        _TRACES,
    ),
    Fault(
        "a pod may send with any source MAC",
        _CLASSIFY,
        '            "dl_src": mac(attachment.mac),\n'
        '            "dl_type": family.ether_type,\n'
        "            family.source: ip(attachment.address),\n",
        '            "dl_type": family.ether_type,\n'
        "            family.source: ip(attachment.address),\n",
        _TRACES,
    ),
    Fault(
        "a pod may say any address in ARP",
        _CLASSIFY,
        '            "arp_spa": ip(attachment.address),\n',
        "",
        _TRACES,
    ),
    Fault(
        "a peer may send for pods of other nodes",
        _CLASSIFY,
        "            outer.tunnel_source: ip(node.address),\n"
        "            inner.source: net(node.pod_cidr),\n",
        "            outer.tunnel_source: ip(node.address),\n",
        _TRACES,
    ),
    Fault(
        "anybody may send in a peer's name by the tunnel",
        _CLASSIFY,
        "            outer.tunnel_source: ip(node.address),\n"
        "            inner.source: net(node.pod_cidr),\n",
        "            inner.source: net(node.pod_cidr),\n",
        _TRACES,
    ),
    Fault(
        "a pod's address comes in by the host",
        _CLASSIFY,
        '        Feature.CLASSIFY, "GatewayGuard", Priority.RANGE,\n'
        '        {"dl_type": family.ether_type, family.source: net(cluster.pod_range)},\n'
        "        [],\n",
        '        Feature.CLASSIFY, "GatewayGuard", Priority.RANGE,\n'
        '        {"dl_type": family.ether_type, family.source: net(cluster.pod_range)},\n'
        '        [LAYOUT.goto("UnSnat")],\n',
        _TRACES,
    ),
    Fault(
        "packets of no connection go on",
        _CONNTRACK,
        '        ("+trk+inv", [], "invalid: of no connection, and cannot open one"),\n',
        '        ("+trk+inv", [LAYOUT.goto("NewConnection")], "belongs to no connection"),\n',
        _TRACES,
    ),
    Fault(
        "a pod may speak to a node's tunnel port",
        _CONNTRACK,
        '            {**to_node, "tp_dst": cluster.tunnel_port},\n            [],\n',
        '            {**to_node, "tp_dst": cluster.tunnel_port},\n'
        '            [LAYOUT.goto("Forwarding")],\n',
        _TRACES,
    ),
    Fault(
        "fragments pass the guard of the tunnel port",
        _CONNTRACK,
        '            {**to_node, "nw_frag": ANY_FRAGMENT, "ct_state": ct_state("-rpl")},\n'
        "            [],\n",
        '            {**to_node, "nw_frag": ANY_FRAGMENT, "ct_state": ct_state("-rpl")},\n'
        '            [LAYOUT.goto("Forwarding")],\n',
        _TRACES,
    ),
    Fault(
        "the tunnel port of a node's further addresses is not guarded",
        _CONNTRACK,
        "    for address in (node.address, *node.further_addresses):\n"
        "        family = family_of(address)\n"
        "        to_node",
        "    for address in (node.address,):\n        family = family_of(address)\n        to_node",
        ("tests/flows/test_guards.py",),
    ),
    Fault(
        "a pod's ICMP error about others' connections goes on",
        _CONNTRACK,
        '        {"Source": Source.POD},\n        [],\n',
        '        {"Source": Source.POD},\n        [LAYOUT.goto("DestinationGuard")],\n',
        _TRACES,
    ),
    Fault(
        "established connections pass no guard",
        _CONNTRACK,
        '        {"ct_state": ct_state("+trk+new-inv"), "ct_mark": (KNOWN, KNOWN)},\n'
        '        [LAYOUT.goto("DestinationGuard")],\n',
        '        {"ct_state": ct_state("+trk+new-inv"), "ct_mark": (KNOWN, KNOWN)},\n'
        '        [LAYOUT.goto("Forwarding")],\n',
        _TRACES,
    ),
    Fault(
        "a pod's new connections are not metered",
        _CONNTRACK,
        '        [ApplyMeter(connections), LAYOUT.goto("NodeAddress")],\n',
        '        [LAYOUT.goto("NodeAddress")],\n',
        _TRACES,
    ),
    Fault(
        "a pod's fragments are not metered",
        _CONNTRACK,
        "        [ApplyMeter(fragments), _LOOKUP],\n",
        "        [_LOOKUP],\n",
        _TRACES,
    ),
    Fault(
        "a pod may act as a DHCP server",
        _CONNTRACK,
        '                "tp_src": DHCP_SERVER_PORT,\n            },\n            [],\n',
        '                "tp_src": DHCP_SERVER_PORT,\n            },\n'
        '            [LAYOUT.goto("NodeAddress")],\n',
        _TRACES,
    ),
    Fault(
        "what came from a tunnel leaves by another one",
        _FORWARDING,
        '        {"dl_type": family.ether_type, "Source": Source.PEER},\n'
        '        [LAYOUT.goto("Egress")],\n',
        '        {"dl_type": family.ether_type, "Source": Source.PEER},\n'
        "        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),\n",
        _TRACES,
    ),
    Fault(
        "every node takes a peer's pods from its host",
        _CLASSIFY,
        "inner.source: net(node.pod_cidr), **receivers},\n",
        "inner.source: net(node.pod_cidr)},\n",
        _WAYS,
    ),
    Fault(
        "addresses of the node's own pods are taken from its host",
        _CLASSIFY,
        '            Feature.CLASSIFY, "PeerGuard", Priority.OWN_RANGE,\n',
        '            Feature.CLASSIFY, "PeerGuard", Priority.DEFAULT,\n',
        _WAYS,
    ),
    Fault(
        "nodes in mode noEncap count as in no subnet",
        "flows/features/direct_peers.py",
        "    if peer.mode is not Mode.ENCAP and (number",
        "    if peer.mode is Mode.HYBRID and (number",
        _WAYS,
    ),
    Fault(
        "connections from outside to a direct peer are translated as hairpins are",
        "flows/features/services.py",
        '            {**_to_be_translated(family), "ToPeer": 1},\n'
        "            _snat(snat_address),\n",
        '            {**_to_be_translated(family), "ToPeer": 1},\n'
        "            _snat(family.hairpin),\n",
        _WAYS,
    ),
    Fault(
        "addresses of the node's own range that no pod has go to the host",
        _FORWARDING,
        '        {"dl_type": family.ether_type, family.destination: net(node.pod_cidr)},\n'
        "        [],\n",
        '        {"dl_type": family.ether_type, family.destination: net(node.pod_cidr)},\n'
        "        _to(names.GATEWAY_OFPORT, names.GATEWAY_MAC),\n",
        (*_TRACES, "tests/flows/test_golden.py"),
    ),
    Fault(
        "a pod's packets go to a peer without its tunnel address",
        _FORWARDING,
        "            SetField(outer.tunnel_destination, ip(node.address)),\n",
        "            SetField(outer.tunnel_destination, ip(node.gateway)),\n",
        _TRACES,
    ),
)
