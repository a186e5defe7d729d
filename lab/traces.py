"""What pods need on a node: flows, ports, interfaces, leases. All of it must go with the pods."""

import re
import sqlite3
from contextlib import closing
from typing import Any

from flows.diff import is_generation
from flows.names import is_attachment_port
from lab.lab import Lab

OFCTL = ["ovs-ofctl", "-O", "OpenFlow15"]


def traces(lab: Lab, node: str) -> dict[str, list[Any]]:
    """Flows, meters, ports, veths, nftables chains and leases, each as a sorted list."""

    def run(*command: str) -> str:
        return lab.exec(node, command).stdout

    return {
        "flows": sorted(cookies(lab, node)),
        "meters": sorted(re.findall(r"meter=(\d+)", run(*OFCTL, "dump-meters", "br-int"))),
        "ports": sorted(run("ovs-vsctl", "list-ports", "br-int").split()),
        "veths": sorted(
            line.split("@")[0]
            for line in run("ip", "-br", "link", "show", "type", "veth").splitlines()
        ),
        "chains": sorted(
            word for word in run("nft", "list", "ruleset").split() if is_attachment_port(word)
        ),
        "leases": leases(lab, node),
    }


def cookies(lab: Lab, node: str) -> set[int]:
    """Of the flows on br-int, but the one that says the generation of the controller."""
    dump = lab.exec(node, [*OFCTL, "dump-flows", "br-int"]).stdout
    found = {int(cookie, 16) for cookie in re.findall(r"cookie=(0x[0-9a-f]+)", dump)}
    return {cookie for cookie in found if not is_generation(cookie)}


def leases(lab: Lab, node: str) -> list[Any]:
    """What the node's lease file says is in use."""
    path = lab.layout.directory / "nodes" / node / "state" / "leases.sqlite"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return sorted(database.execute("SELECT port, address, ofport FROM lease"))
