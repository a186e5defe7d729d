"""What the certificate of one node, or its switch, can cost the other nodes.

Here the stolen node speaks OpenFlow itself, in place of an Open vSwitch.
"""

import json
from pathlib import Path

from controller.problems import MAX_OF_NODE
from flows import names
from lab import Lab
from lab.layout import CONTROL_ADDRESS, OPENFLOW_PORT
from tests.hostile.harness import Hostile
from tests.waiting import wait_until

STOLEN = "node9"
PORTS, EVENTS = 800, 20_000

SWITCH = """
import socket, struct, sys
host, port, datapath_id, ports, events = sys.argv[1], *map(int, sys.argv[2:])
HELLO, ECHO, ECHO_REPLY, FEATURES, FEATURES_REPLY, PORT_STATUS = 0, 2, 3, 5, 6, 12
MULTIPART, MULTIPART_REPLY, BARRIER, BARRIER_REPLY, BUNDLE_CONTROL = 18, 19, 20, 21, 33
PORT_DESC = 13

def message(kind, body, xid=0):
    return struct.pack("!BBHI", 6, kind, 8 + len(body), xid) + body

def described(number):  # struct ofp_port: every port has the same MAC
    mac, digits = bytes.fromhex("0a580af40905"), bytes.maketrans(b"0123456789", b"abcdefghij")
    name = (b"p%014d" % number).translate(digits)
    return (struct.pack("!IHxx6sxx16sII", 16 + number, 72, mac, name, 0, 0)
            + struct.pack("!HHIIIIIII", 0, 32, 0, 0, 0, 0, 0, 0, 0))

def answer(kind, body, xid):
    if kind == ECHO:
        return message(ECHO_REPLY, body, xid)
    if kind == FEATURES:
        return message(FEATURES_REPLY,
                       struct.pack("!QIBBxxII", datapath_id, 0, 254, 0, 0x24F, 0), xid)
    if kind == MULTIPART:
        (asked,) = struct.unpack_from("!H", body)
        found = b""
        if asked == PORT_DESC:
            found = b"".join(described(number) for number in range(ports))
        return message(MULTIPART_REPLY, struct.pack("!HHI", asked, 0, 0) + found, xid)
    if kind == BARRIER:
        return message(BARRIER_REPLY, b"", xid)
    if kind == BUNDLE_CONTROL:
        bundle, asked, flags = struct.unpack_from("!IHH", body)
        return message(BUNDLE_CONTROL, struct.pack("!IHH", bundle, asked + 1, flags), xid)
    return b""

made = socket.create_connection((host, port), 30)
made.sendall(message(HELLO, struct.pack("!HHI", 1, 8, 1 << 6)))
with made.makefile("rb") as messages:
    flooded = False
    while header := messages.read(8):
        _, kind, length, xid = struct.unpack("!BBHI", header)
        body = messages.read(length - 8)
        made.sendall(answer(kind, body, xid))
        if not flooded and kind == MULTIPART and body[:2] == struct.pack("!H", PORT_DESC):
            flooded = True
            made.settimeout(None)
            for number in range(events):  # added and modified by turns
                body = struct.pack("!Bxxxxxxx", 2 * (number % 2)) + described(number % 900)
                made.sendall(message(PORT_STATUS, body))
            print("ready", flush=True)
"""


def node_file(lab: Lab) -> Path:
    return lab.layout.cluster / "nodes" / f"{STOLEN}.yaml"


def write_node(lab: Lab) -> None:
    """A Node of which nothing but this fake switch exists."""
    manifest = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": STOLEN, "uid": "9", "creationTimestamp": "2026-01-01T00:00:00Z"},
        "spec": {"podCIDR": "10.244.9.0/24", "podCIDRs": ["10.244.9.0/24"]},
        "status": {"addresses": [{"type": "InternalIP", "address": "172.30.1.9"}]},
    }
    part = lab.layout.cluster.with_name("stolen-node.part")
    part.write_text(json.dumps(manifest))
    part.rename(node_file(lab))


def test_flood_of_ports_with_one_mac_leaves_the_other_nodes_served(hostile: Hostile) -> None:
    lab = hostile.lab
    with hostile.attack("stolen node", f"{PORTS} ports, {EVENTS} port events") as attack:
        attack.until(node_file(lab).unlink)
        write_node(lab)
        attack.run(
            "control", SWITCH, str(CONTROL_ADDRESS), str(OPENFLOW_PORT),
            str(names.datapath_id(STOLEN)), str(PORTS), str(EVENTS),
        )  # fmt: skip
        wait_until(lambda: len(problems(lab)) > PORTS // 2)
        during = attack.measure()
        assert len(problems(lab)) <= MAX_OF_NODE + 1
    assert during.add is not None
    assert during.healthz is not None
    assert during.same_node_rate > 0
    assert during.other_node_rate > 0
    assert during.memory["controller"] - attack.before.memory["controller"] < 64
    # Nothing is left of the stolen node.
    wait_until(lambda: not problems(lab))


def problems(lab: Lab) -> list[str]:
    """The titles of the stolen node's problems."""
    return [title for title in lab.status()["problems"] if title.endswith(f"of {STOLEN}")]
