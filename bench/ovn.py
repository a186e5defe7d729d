"""OVN on the lab's bare nodes: Debian's, with the same Open vSwitch, and never machine-wide.

Central daemons in the control namespace, an ovn-controller on each node, one logical switch for
all pods, with port security and nothing else but the load balancers that it is given.
"""

import os
from collections.abc import Mapping
from ipaddress import IPv4Address
from pathlib import Path

from bench.nodes import vsctl
from flows import names
from lab import Lab, LabError
from lab import node as lab_node
from lab.commands import run
from lab.control import daemons
from lab.layout import CONTROL_ADDRESS, NodeLayout

SB_PORT = 6642
LOGICAL_SWITCH = "pods"

CLASSIFYING, REMOTE_OUTPUT, LOCAL_OUTPUT = 0, 39, 65
"""Tables of OVN 23.03: a switch's own ports each have a flow in the first and the last, all
others' one in between (OFTABLE_* of its controller/lflow.h)."""


def start(lab: Lab, nodes: int) -> None:
    """Start everything, and return when every node's switch has OVN's flows."""
    directory = lab.layout.control / "ovn"
    directory.mkdir(parents=True)
    central = daemons(lab.layout.controller(1))
    environment = {f"OVN_{kind}DIR": str(directory) for kind in ("RUN", "DB", "LOG")}
    sockets = {name: directory / f"{name}.sock" for name in ("nb", "sb")}
    for name, socket in sockets.items():
        database = directory / f"{name}.db"
        run(["ovsdb-tool", "create", str(database), f"/usr/share/ovn/ovn-{name}.ovsschema"])
        server = ["ovsdb-server", str(database), f"--remote=punix:{socket}"]
        server += [f"--unixctl={directory}/{name}.ctl", "--no-chdir"]
        if name == "sb":
            server.append(f"--remote=ptcp:{SB_PORT}:{CONTROL_ADDRESS}")
        central.start(f"ovsdb-{name}", server, environment)
        if not central.wait(socket.exists, timeout=15):
            raise LabError(f"OVN's {name} database is not served\n{central.tail(f'ovsdb-{name}')}")
    northd = [f"--ovn{name}-db=unix:{socket}" for name, socket in sockets.items()]
    northd.append(f"--unixctl={directory}/northd.ctl")
    central.start("ovn-northd", ["ovn-northd", *northd], environment)
    served = [f"--db=unix:{sockets['nb']}", "--detach", "-u", str(_nbctl_socket(lab))]
    run(["env", f"OVN_RUNDIR={directory}", "ovn-nbctl", *served], netns=central.netns)
    nbctl(lab, "ls-add", LOGICAL_SWITCH)
    for node in lab.layout.nodes(nodes):
        _start_controller(node)
    for node in lab.layout.nodes(nodes):
        if not lab_node.daemons(node).wait(node.mgmt.exists, timeout=30):
            raise LabError(lab_node.daemons(node).tail("ovn-controller"))
    nbctl(lab, "--wait=hv", "sync")


def add_ports(lab: Lab, ports: Mapping[str, tuple[str, IPv4Address]]) -> None:
    """Logical ports by name, with MAC and address; returns when every node knows them."""
    commands = []
    for name, (mac, address) in ports.items():
        addresses = f"{mac} {address}"
        commands += ["--", "lsp-add", LOGICAL_SWITCH, name]
        commands += ["--", "lsp-set-addresses", name, addresses]
        commands += ["--", "lsp-set-port-security", name, addresses]
    nbctl(lab, *commands)
    nbctl(lab, "--wait=hv", "sync")


def bind_ports(lab: Lab, nodes: int) -> None:
    """A logical port on each node: without one, a node's switch gets nothing of them all."""
    logical = {
        f"{LOGICAL_SWITCH}-{node.name}": (names.mac_of(node.pod_cidr[2]), node.pod_cidr[2])
        for node in lab.layout.nodes(nodes)
    }
    for node, (name, (mac, _)) in zip(lab.layout.nodes(nodes), logical.items(), strict=True):
        vsctl(
            node,
            *("add-port", names.INTEGRATION_BRIDGE, "bound", "--", "set", "Interface", "bound"),
            *("type=internal", f'mac="{mac}"', f"external_ids:iface-id={name}"),
        )
    add_ports(lab, logical)


def nbctl(lab: Lab, *arguments: str) -> str:
    """`ovn-nbctl`, by the one that stays: it has read the database already."""
    words = ["ovn-nbctl", "-u", str(_nbctl_socket(lab)), "--timeout=60", *arguments]
    return run(words, timeout=90)


def _nbctl_socket(lab: Lab) -> Path:
    return lab.layout.control / "ovn" / "nbctl.ctl"


def _start_controller(node: NodeLayout) -> None:
    vsctl(
        node,
        *("set", "Open_vSwitch", "."),
        f"external_ids:ovn-remote=tcp:{CONTROL_ADDRESS}:{SB_PORT}",
        "external_ids:ovn-encap-type=geneve",
        f"external_ids:ovn-encap-ip={node.address}",
        f"external_ids:system-id={node.name}",
        "external_ids:ovn-bridge-datapath-type=netdev",
    )
    directories = {"OVN_RUNDIR": str(node.ovs_run), "OVS_RUNDIR": str(node.ovs_run)}
    command = ["ovn-controller", f"unix:{node.ovsdb}", "--no-chdir"]
    lab_node.daemons(node).start("ovn-controller", command, os.environ | directories)
