"""Namespaces, wires and switches as the lab makes them, without Sluice: what rivals run on."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flows import names
from lab import Lab
from lab.commands import run
from lab.layout import FABRIC_ADDRESS, UNDERLAY, NodeLayout
from lab.network import UPLINK, configure, connect, create_namespace, delete_namespace
from lab.node import start_switch
from lab.runtime import Sandbox, new_container_id
from lab.sources import DirectorySource


@contextmanager
def bare_lab(name: str, nodes: int) -> Iterator[Lab]:
    """The lab's namespaces and its nodes' Open vSwitch, no more; gone at the end."""
    lab = Lab(unique(name))
    try:
        lab.layout.directory.mkdir(parents=True)
        everyone = lab.layout.nodes(nodes)
        connect(lab.layout, everyone, "netdev")
        for node in everyone:
            start_switch(node, everyone, "netdev")
        yield lab
    finally:
        lab.down()


def set_up_uplink(node: NodeLayout) -> None:
    """Give a node its address on its uplink, as where the kernel forwards. Raises `LabError`."""
    configure(
        node.netns,
        [
            f"addr add {node.address}/{UNDERLAY.prefixlen} dev {UPLINK}",
            f"link set {UPLINK} up",
            f"route add default via {FABRIC_ADDRESS}",
        ],
    )


def unique(name: str) -> str:
    """A lab's name that no other run on this machine has."""
    return f"bench-{name}-{os.getpid()}"


@contextmanager
def sandboxes(lab: Lab, node: NodeLayout, listed: Sequence[str]) -> Iterator[list[Sandbox]]:
    """Pods as they are before the runtime calls the plugin: an object each, and a namespace."""
    source = DirectorySource(lab.layout.cluster)
    made = [
        Sandbox(
            new_container_id(),
            lab.layout.pod_netns("default", name),
            "default",
            name,
            source.add_pod("default", name, node.name, {}),
        )
        for name in listed
    ]
    try:
        for sandbox in made:
            create_namespace(sandbox.netns)
        yield made
    finally:
        for sandbox in made:
            delete_namespace(sandbox.netns)
            source.delete_pod("default", sandbox.pod)


def compiled(source: str, program: Path) -> Path:
    """A program of this directory, in C."""
    run(["gcc", "-O2", "-Wall", "-o", str(program), str(Path(__file__).with_name(source))])
    return program


def vsctl(node: NodeLayout, *arguments: str) -> str:
    """Have a node's switch configured, and return when it is."""
    return run(["ovs-vsctl", f"--db=unix:{node.ovsdb}", "--timeout=30", *arguments])


def ofctl(node: NodeLayout, command: str, *arguments: str) -> str:
    """`ovs-ofctl COMMAND br-int ...` on a node. Options come with the command."""
    words = ["ovs-ofctl", "-O", "OpenFlow15", *command.split()]
    return run([*words, str(node.mgmt), *arguments])


def make_bridge(node: NodeLayout) -> None:
    """The integration bridge as the agent makes it, without ports and controller."""
    vsctl(
        node,
        *("add-br", names.INTEGRATION_BRIDGE, "--", "set", "Bridge", names.INTEGRATION_BRIDGE),
        *("datapath_type=netdev", "fail_mode=secure"),
        "protocols=OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15",
        f"other_config:datapath-id={names.datapath_id(node.name):016x}",
    )


def dial(node: NodeLayout, controller: str) -> None:
    """Tell that bridge of its controller, by HOST:PORT."""
    vsctl(
        node,
        *("--id=@c", "create", "Controller", f'target="tcp:{controller}"'),
        *("type=service", "connection_mode=out-of-band", "inactivity_probe=60000", "--"),
        *("set", "Bridge", names.INTEGRATION_BRIDGE, "controller=@c"),
    )
