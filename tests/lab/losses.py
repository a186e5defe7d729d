"""Counters that say where packets were lost."""

import json
import re

from lab import Lab

NODES = ("node1", "node2")


def overflows(lab: Lab) -> int:
    """Packets that the kernel has dropped because ovs-vswitchd did not read its sockets in time.

    In the userspace datapath a packet socket on each veth feeds the switch and holds some 90
    packets. On a machine that is busy with something else, ovs-vswitchd runs too seldom: a loss
    that no flow, and so nothing of Sluice's, has caused.
    """
    shown = "".join(lab.exec(node, ["ss", "-0", "-n", "-m"]).stdout for node in NODES)
    return sum(map(int, re.findall(r"skmem:\(.*,d(\d+)\)", shown)))


def drops(lab: Lab) -> dict[str, int]:
    """Packets dropped since the start, by where and why, such as `node1 datapath_drop_meter`.

    By the switches (`ovs-appctl coverage/show`), and by interfaces and UDP sockets (nstat(8)).
    """
    found: dict[str, int] = {}
    for node in NODES:
        shown = lab.exec(node, ["ovs-appctl", "coverage/show"]).stdout
        for reason, count in re.findall(r"^(\w*drop\w*) .*total: (\d+)$", shown, re.MULTILINE):
            found[f"{node} {reason}"] = int(count)
    for where in (*NODES, *(f"{pod.namespace}/{pod.name}" for pod in lab.pods())):
        counted = json.loads(lab.exec(where, ["nstat", "-a", "-s", "-z", "-j"]).stdout)["kernel"]
        for reason in ("UdpNoPorts", "UdpInErrors", "IpInDiscards", "IpOutDiscards"):
            found[f"{where} {reason}"] = counted[reason]
        for link in json.loads(lab.exec(where, ["ip", "-s", "-j", "link"]).stdout):
            for way, stats in link["stats64"].items():
                found[f"{where} {link['ifname']} {way}"] = stats["dropped"] + stats["errors"]
    return {name: count for name, count in found.items() if count}
