"""One node: its own Open vSwitch, its uplink, and Sluice's agent."""

from collections.abc import Callable, Sequence

from lab import machine
from lab.commands import LabError, run
from lab.daemons import Daemons
from lab.datapath import Datapath
from lab.layout import (
    API_PORT,
    OPENFLOW_PORT,
    ControllerLayout,
    NodeLayout,
)
from lab.network import UPLINK, configure, links, node_mac, router_mac
from lab.patience import PATIENCE
from lab.programs import python, write_settings
from lab.runtime import Runtime
from settings import Agent, Settings, Tls

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"
PHYSICAL_BRIDGE = "br-phy"
"""The bridge with the uplink: in the userspace datapath a tunnel's own address has to be on one."""


def daemons(node: NodeLayout) -> Daemons:
    return Daemons(node.netns, node.logs)


def start_database(node: NodeLayout) -> None:
    """Start ovsdb-server, with the database that is there or a new one. Raises `LabError`."""
    node.ovs_run.mkdir(parents=True, exist_ok=True)
    database = node.directory / "conf.db"
    if not database.exists():
        run(["ovsdb-tool", "create", str(database), SCHEMA])
    ours = daemons(node)
    if ours.pid("ovsdb-server") is None:
        node.ovsdb.unlink(missing_ok=True)
    server = ["ovsdb-server", str(database), f"--remote=punix:{node.ovsdb}", "--pidfile"]
    ours.start(
        "ovsdb-server",
        [*server, "--no-chdir"],
        _environment(node),
        listens_at=lambda _: node.ovsdb,
        pid_file=node.ovs_run / "ovsdb-server.pid",
    )


def start_vswitchd(node: NodeLayout, datapath: Datapath) -> int:
    """Start ovs-vswitchd; return its process id. Raises `LabError`."""
    switch = ["ovs-vswitchd", f"unix:{node.ovsdb}", "--pidfile", "--no-chdir"]
    if datapath == "netdev":
        switch += ["--disable-system"]
    # In the node's own mounts: it reads the certificate that the agent puts there.
    return daemons(node).start(
        "ovs-vswitchd",
        machine.enter(node, switch),
        _environment(node),
        listens_at=lambda pid: node.ovs_run / f"ovs-vswitchd.{pid}.ctl",
        pid_file=node.ovs_run / "ovs-vswitchd.pid",
    )


def _vsctl(node: NodeLayout) -> list[str]:
    # --retry: the socket exists a moment before ovsdb-server listens at it.
    timeout = f"--timeout={20 * PATIENCE:.0f}"
    return ["ovs-vsctl", f"--db=unix:{node.ovsdb}", "--retry", timeout]


def _environment(node: NodeLayout) -> dict[str, str]:
    return {"OVS_RUNDIR": str(node.ovs_run), "OVS_DBDIR": str(node.directory)}


def start_switch(node: NodeLayout, all_nodes: Sequence[NodeLayout], datapath: Datapath) -> None:
    """Start Open vSwitch, and give the node its address. Raises `LabError`."""
    if datapath == "netdev":
        _start_userspace(node, all_nodes)
    else:
        _set_up_address(node, UPLINK)
        start_database(node)
        start_vswitchd(node, datapath)
        run([*_vsctl(node), "init"])


def _start_userspace(node: NodeLayout, all_nodes: Sequence[NodeLayout]) -> None:
    """With the node's address on a bridge, behind the uplink."""
    # The kernel must not receive what Open vSwitch receives: it would answer, too.
    nft = (
        "add table netdev sluice-lab\n"
        "add chain netdev sluice-lab uplink "
        f'{{ type filter hook ingress device "{UPLINK}" priority 0; policy drop; }}\n'
    )
    run(["nft", "-f", "-"], netns=node.netns, stdin=nft)
    configure(node.netns, [f"link set {UPLINK} up"])
    start_database(node)
    switch_pid = start_vswitchd(node, "netdev")

    # Returns when ovs-vswitchd has applied it.
    bridge = ["--may-exist", "add-br", PHYSICAL_BRIDGE, "--", "set", "bridge", PHYSICAL_BRIDGE]
    bridge += ["datapath_type=netdev", "fail_mode=standalone"]
    bridge += [f'other_config:hwaddr="{node_mac(node)}"']
    uplink = ["--may-exist", "add-port", PHYSICAL_BRIDGE, UPLINK]
    try:
        run([*_vsctl(node), "init", "--", *bridge, "--", *uplink])
    except LabError:
        daemons(node).check()
        raise
    # If the database had all of it already, ovs-vsctl did not wait.
    if not daemons(node).wait(lambda: PHYSICAL_BRIDGE in links(node.netns), timeout=20):
        raise LabError(f"{node.name}: no {PHYSICAL_BRIDGE}\n{daemons(node).tail('ovs-vswitchd')}")
    _set_up_address(node, PHYSICAL_BRIDGE)
    # A kernel keeps a packet while it resolves the next hop. The userspace datapath drops it, so
    # each tunnel would begin with a loss that Sluice does not cause.
    appctl = ["ovs-appctl", f"--target={node.ovs_run}/ovs-vswitchd.{switch_pid}.ctl"]
    run([*appctl, "tnl/neigh/aging", "3600"])
    neighbours = {
        str(peer.address): node_mac(peer)
        for peer in all_nodes
        if peer != node and peer.subnet == node.subnet
    }
    if any(peer.subnet != node.subnet for peer in all_nodes):
        neighbours[str(node.router)] = router_mac(node)
    for address, mac in neighbours.items():
        run([*appctl, "tnl/neigh/set", PHYSICAL_BRIDGE, address, mac])


def _set_up_address(node: NodeLayout, device: str) -> None:
    configure(
        node.netns,
        [
            f"addr replace {node.interface} dev {device}",
            f"link set {device} up",
            f"route replace default via {node.router}",
        ],
    )


def start_agent(
    node: NodeLayout, controllers: Sequence[ControllerLayout], datapath: Datapath, tls: Tls | None
) -> None:
    """Start the agent; return when it listens for CNI calls. `wait_ready` waits for its work.

    Raises `LabError`.
    """
    for directory in (node.cni_conf, node.cni_bin, node.state):
        directory.mkdir(parents=True, exist_ok=True)
    node.cni_socket.parent.mkdir(mode=0o700, exist_ok=True)
    agent = Agent(
        node=node.name,
        controllers=tuple(str(place.address) for place in controllers),
        openflow_port=OPENFLOW_PORT,
        api_port=API_PORT,
        datapath=datapath,
        state=node.state,
        socket=node.cni_socket,
        ovsdb=node.ovsdb,
        ovs_run=node.ovs_run,
        cni_conf=node.cni_conf,
        cni_bin=node.cni_bin,
        tls=tls,
        plain_tcp=tls is None,
        add_timeout=20 * PATIENCE,
        # Short, so that changes by hand are repaired while one watches. With kubelets it is longer.
        audit_interval=10 if machine.is_there(node) else 2,
    )
    write_settings(node.settings, Settings(agent=agent))
    command = python("node_agent", "--config", str(node.settings))
    # In the mounts of containerd, whose sandboxes have paths there.
    daemons(node).start("agent", machine.enter(node, command), listens_at=lambda _: node.cni_socket)


def wait_ready(
    node: NodeLayout, controllers: Sequence[Daemons], cancelled: Callable[[], bool]
) -> None:
    """Wait as a container runtime does: for the CNI configuration, and until STATUS succeeds."""
    ours = daemons(node)
    runtime = Runtime(node)
    problem = f"there is no CNI configuration in {node.cni_conf}"

    def ready() -> bool:
        nonlocal problem
        for controller in controllers:
            controller.check()
        if not runtime.configured():
            return False
        try:
            runtime.status()
        except LabError as error:
            problem = str(error)
            return False
        return True

    if not ours.wait(ready, timeout=60, cancelled=cancelled):
        logs = "\n".join([ours.tail("agent"), *(each.tail("controller") for each in controllers)])
        raise LabError(f"{node.name} is not ready after 60 s: {problem}\n{logs}")
