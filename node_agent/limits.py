"""Bounds of what packets may make the switch remember: connections, fragments, datapath flows.

One pod may open so many connections a second (`Cluster.new_connections_per_second`); how long the
switch remembers each says how many these come to. Unanswered and closed ones it forgets within
seconds. Established ones it must keep for hours, so two pods that help each other could fill the
table, and nobody else on the node could connect. Open vSwitch cannot count connections by pod. So
the agent looks (`connection_limits`): where the table is half full, whoever has opened most of it
loses what it opened.

    what                              userspace datapath        kernel's datapath
    connections of the zone, at most  MOST_CONNECTIONS x 3/4    3/4 of nf_conntrack_max
    of the zone of translated sources MOST_CONNECTIONS x 1/8    1/8 of nf_conntrack_max
    connections in all                MOST_CONNECTIONS          nf_conntrack_max
    incomplete fragments              MOST_FRAGMENTS            net.ipv4.ipfrag_high_thresh
    datapath flows                    FLOW_LIMIT                FLOW_LIMIT
"""

from typing import Final

from flows.pipeline import CT_ZONE, SNAT_ZONE
from node_agent.ovsdb import Row, Transaction

TIMEOUTS: Final = {
    "tcp_syn_sent": 20,
    "tcp_syn_recv": 20,
    # What RFC 5382 (REQ-5) asks of a translator at least, and more than TCP's own keepalive.
    "tcp_established": 7_440,
    "tcp_fin_wait": 120,
    # As kube-proxy: one side has ended, and the other may still have much to say.
    "tcp_close_wait": 3_600,
    "tcp_last_ack": 30,
    "tcp_time_wait": 30,
    "tcp_close": 10,
    "udp_first": 15,
    "udp_single": 15,
    "udp_multiple": 60,
    "icmp_first": 10,
    "icmp_reply": 10,
}
"""Seconds without a packet after which the switch forgets a connection (ovs-vswitchd.conf.db(5),
*CT_Timeout_Policy*)."""
MOST_CONNECTIONS: Final = 262_144
"""In the userspace datapath: what the kernel takes by default. Some 150 MB."""
MOST_FRAGMENTS: Final = 5_000
"""In the userspace datapath, of incomplete datagrams: the most that Open vSwitch takes."""
FLOW_LIMIT: Final = 50_000
"""Datapath flows, some 170 MB, beyond which Open vSwitch drops those not used for 0.1 s."""
_FLOW_LIMIT: Final = "flow-limit"
_ZONES: Final = (CT_ZONE, SNAT_ZONE)


def bound(transaction: Transaction, root: Row, datapath: str) -> None:
    """What of the bounds is kept in OVSDB: timeouts of our zone, and the limit of flows.

    A limit of flows that somebody else has set is left alone.
    """
    _set_timeouts(transaction, root, datapath)
    if _FLOW_LIMIT not in root.other_config:
        transaction.update_keys(root, "other_config", **{_FLOW_LIMIT: str(FLOW_LIMIT)})


def unbound(root: Row, datapath: str) -> None:
    """Undo `bound`."""
    row = root.datapaths.get(datapath)
    if row is not None and set(row.ct_zones) <= set(_ZONES):
        root.datapaths = {name: each for name, each in root.datapaths.items() if name != datapath}
    elif row is not None:
        row.ct_zones = {zone: each for zone, each in row.ct_zones.items() if zone not in _ZONES}
    if root.other_config.get(_FLOW_LIMIT) == str(FLOW_LIMIT):
        root.delkey("other_config", _FLOW_LIMIT)


def _set_timeouts(transaction: Transaction, root: Row, datapath: str) -> None:
    row = root.datapaths.get(datapath)
    if row is None:
        row = transaction.insert("Datapath")
        root.datapaths = {**root.datapaths, datapath: row}
        zones = {}
    else:
        zones = dict(row.ct_zones)
    for number in _ZONES:
        zone = zones.get(number)
        if zone is None:
            policy = transaction.insert("CT_Timeout_Policy", timeouts=TIMEOUTS)
            zones[number] = transaction.insert("CT_Zone", timeout_policy=[policy])
            row.ct_zones = dict(zones)
        elif not zone.timeout_policy or zone.timeout_policy[0].timeouts != TIMEOUTS:
            zone.timeout_policy = [transaction.insert("CT_Timeout_Policy", timeouts=TIMEOUTS)]
