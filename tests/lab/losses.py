"""Counters that say where packets were lost."""

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
    """Packets that the switches have dropped, by node and reason, such as `datapath_drop_meter`."""
    found: dict[str, int] = {}
    for node in NODES:
        shown = lab.exec(node, ["ovs-appctl", "coverage/show"]).stdout
        for reason, count in re.findall(r"^(\w*drop\w*) .*total: (\d+)$", shown, re.MULTILINE):
            found[f"{node} {reason}"] = int(count)
    return found
