"""The desired OVSDB rows of this node: bridge, tunnel, gateway, controllers, attachments.

Each function is a change for `Ovsdb.transact`, or reads the local copy. A change sets only columns
that differ: a second call sends nothing, and does not reconfigure a switch that carries traffic.
Never use `ovs-vsctl set-controller` here: the first primary controller flushes all flows, and
hidden in-band flows bypass every policy.
"""

from collections.abc import Callable, Iterable, Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from flows import names
from flows.pipeline import LAYOUT, TABLES, Table
from node_agent import limits, tls_files
from node_agent.cni_call import HostPort, Pod
from node_agent.interface_index import SANDBOX
from node_agent.leases import Lease
from node_agent.ovsdb import Ovsdb, OvsdbError, Row, Transaction
from settings import Agent, Tls
from wire.documents import NodeConfig, decode_config, encode

PROTOCOLS: Final = ["OpenFlow10", "OpenFlow13", "OpenFlow14", "OpenFlow15"]
"""1.5 is the controller's; 1.0 is what a plain `ovs-ofctl` speaks."""
INACTIVITY_PROBE: Final = 60_000
"""Milliseconds. A controller that recompiles must not lose all its switches at once. With two
controllers nobody waits for it: the other one has a session already."""
_WAIT: Final = "flow-restore-wait"
_CONFIG: Final = "sluice-config"
_OUR_CONTROLLER_IDS: Final = {"sluice": "controller"}
"""external_ids of the Controller rows that the agent made; they stay known when targets change."""
_NOTHING_YET: Final = "nothing reported yet"


def converge(agent: Agent, config: NodeConfig, mtu: int) -> Callable[[Transaction], None]:
    """The change that sets up bridge, tunnel, gateway and controllers."""

    def change(transaction: Transaction) -> None:
        root = _root(transaction)
        bridge = transaction.row("Bridge", names.INTEGRATION_BRIDGE)
        _refuse_foreign(root, bridge)
        remembered = {_CONFIG: encode(config).decode()}
        transaction.update_keys(root, "external_ids", **remembered)
        limits.bound(transaction, root, agent.datapath)
        if not agent.plain_tcp:
            _ssl(transaction, root, tls_files.kept(agent.state))
        if bridge is None:
            bridge = transaction.insert("Bridge", name=names.INTEGRATION_BRIDGE)
            root.addvalue("bridges", bridge)
            # Every bridge has a port of its own name; Sluice does not use it.
            _add_port(transaction, bridge, names.INTEGRATION_BRIDGE, type="internal")
            bridge.datapath_type = agent.datapath
            bridge.fail_mode = ["secure"]
            bridge.protocols = PROTOCOLS
            bridge.other_config = _other_config(agent)
            bridge.controller = [
                _controller(transaction, agent, target) for target in _targets(agent)
            ]
            bridge.flow_tables = _flow_tables(transaction)
        else:
            transaction.update(
                bridge, datapath_type=agent.datapath, fail_mode=["secure"], protocols=PROTOCOLS
            )
            transaction.update_keys(bridge, "other_config", **_other_config(agent))
            _update_controllers(transaction, bridge, agent)
            found = {
                number: {column: getattr(row, column) for column in _TABLE_COLUMNS}
                for number, row in bridge.flow_tables.items()
            }
            if found != {table.number: flow_table_columns(table) for table in TABLES}:
                bridge.flow_tables = _flow_tables(transaction)
        _port(
            transaction, bridge, names.TUNNEL_PORT,
            type=config.tunnel,
            ofport_request=[names.TUNNEL_OFPORT],
            options={
                "remote_ip": "flow",
                "local_ip": str(config.address),
                "key": str(config.tunnel_id),
                "dst_port": str(config.tunnel_port),
                # The inner checksum protects the packet; an outer one only costs.
                "csum": "false",
            },
        )  # fmt: skip
        _port(
            transaction, bridge, names.GATEWAY_PORT,
            type="internal",
            ofport_request=[names.GATEWAY_OFPORT],
            mac=[names.GATEWAY_MAC],
            mtu_request=[mtu],
        )  # fmt: skip

    return change


def _refuse_foreign(root: Row, bridge: Row | None) -> None:
    """Raise `OvsdbError` if the bridge belongs to another system, such as OVN or OpenStack.

    An empty bridge belongs to nobody.
    """
    marks = bridge.external_ids if bridge is not None else {}
    # ovn-controller(8): `ovn-bridge` is br-int where it is not set.
    ovn_bridge = root.external_ids.get("ovn-bridge", names.INTEGRATION_BRIDGE)
    is_ovns = "ovn-remote" in root.external_ids and ovn_bridge == names.INTEGRATION_BRIDGE
    owner = ""
    if is_ovns or any(key.startswith(("ovn-", "ct-zone-")) for key in marks):
        owner = "OVN"
    elif bridge is not None:
        ports = {str(port.name) for port in bridge.ports}
        others = sorted(
            port
            for port in ports - {names.INTEGRATION_BRIDGE}
            if not names.is_attachment_port(port)
        )
        if others and ports.isdisjoint({names.GATEWAY_PORT, names.TUNNEL_PORT}):
            owner = f"another system (it has the port {others[0]})"
    if owner:
        raise OvsdbError(
            f"bridge {names.INTEGRATION_BRIDGE} belongs to {owner}, and Sluice does not share it"
        )


def remove(transaction: Transaction, agent: Agent) -> int:
    """Remove everything of Sluice from OVSDB; return the `next_cfg` to pass to `applied`.

    A switch that waits for its flows starts to forward.
    """
    root = _root(transaction)
    bridge = transaction.row("Bridge", names.INTEGRATION_BRIDGE)
    if bridge is not None:
        # OVSDB deletes its ports, interfaces and controllers: nothing else refers to them.
        root.delvalue("bridges", bridge)
    limits.unbound(root, agent.datapath)
    if _CONFIG in root.external_ids:
        root.delkey("external_ids", _CONFIG)
    if any(row.private_key == str(tls_files.kept(agent.state).key) for row in root.ssl):
        root.ssl = []
    return clear_restore_wait(transaction)


def attach(lease: Lease) -> Callable[[Transaction], None]:
    """The change that adds a pod's port to the bridge, with its lease in external_ids."""
    # Other tools read `iface-id`.
    ids = {
        "iface-id": lease.title,
        SANDBOX: lease.container_id,
        "sluice-ifname": lease.ifname,
        "sluice-address": str(lease.address),
    }
    if lease.netns is not None:
        ids["sluice-netns"] = str(lease.netns)
    if lease.pod is not None:
        ids["sluice-pod"] = lease.title
        ids["sluice-pod-uid"] = lease.pod.uid
    if lease.host_ports:
        ids["sluice-host-ports"] = ",".join(map(str, lease.host_ports))

    def change(transaction: Transaction) -> None:
        bridge = transaction.row("Bridge", names.INTEGRATION_BRIDGE)
        if bridge is None:
            raise OvsdbError(f"there is no bridge {names.INTEGRATION_BRIDGE}")
        _port(
            transaction, bridge, lease.port,
            ofport_request=[lease.ofport],
            external_ids=ids,
        )  # fmt: skip

    return change


def detach(ports: Iterable[str]) -> Callable[[Transaction], None]:
    """The change that removes these ports from their bridges."""
    wanted = frozenset(ports)

    def change(transaction: Transaction) -> None:
        for bridge in transaction.rows("Bridge"):
            for port in bridge.ports:
                if port.name in wanted:
                    bridge.delvalue("ports", port)

    return change


def attachments(ovsdb: Ovsdb) -> Iterator[Lease]:
    """Every attachment that OVSDB describes; see `corrupt_attachments` for the others."""
    for row in ovsdb.rows("Interface"):
        if isinstance(found := ovsdb.made_of(row, _read), Lease):
            yield found


def attachments_of(ovsdb: Ovsdb, container_id: str) -> Iterator[Lease]:
    """Those of one container, without a look at the others."""
    for row in ovsdb.interfaces_of(container_id):
        if isinstance(found := ovsdb.made_of(row, _read), Lease):
            yield found


def corrupt_attachments(ovsdb: Ovsdb) -> list[str]:
    """The ports of attachments whose row cannot be read because somebody else changed it.

    CHECK and GC ignore such a port. If it has a lease, its row is written again.
    """
    made = (ovsdb.made_of(row, _read) for row in ovsdb.rows("Interface"))
    return sorted(port for port in made if isinstance(port, str))


def _read(row: Row) -> Lease | str | None:
    """An attachment, the name of one that cannot be read, or None: it is another interface."""
    if not _is_attachment(row):
        return None
    try:
        return _attachment(row)
    except (KeyError, ValueError, IndexError):
        return str(row.name)


def _is_attachment(row: Row) -> bool:
    return names.is_attachment_port(row.name) and SANDBOX in row.external_ids


def _attachment(row: Row) -> Lease:
    ids = row.external_ids
    namespace, _, name = ids.get("sluice-pod", "").partition("/")
    ports = filter(None, ids.get("sluice-host-ports", "").split(","))
    return Lease(
        port=row.name,
        container_id=ids[SANDBOX],
        ifname=ids["sluice-ifname"],
        address=IPv4Address(ids["sluice-address"]),
        ofport=row.ofport_request[0],
        netns=Path(ids["sluice-netns"]) if "sluice-netns" in ids else None,
        pod=Pod(namespace, name, ids.get("sluice-pod-uid", "")) if name else None,
        host_ports=tuple(map(HostPort.read, ports)),
    )


def refusal(ovsdb: Ovsdb, port: str, ofport: int) -> str | None:
    """Why the switch will not give a port this ofport; None while it still may."""
    row = ovsdb.row("Interface", port)
    if row is None:
        return "its row has been removed from OVSDB"
    if row.error:
        return f"Open vSwitch says: {row.error[0]}"
    if row.ofport and row.ofport[0] not in (ofport, -1):
        return f"Open vSwitch gave it ofport {row.ofport[0]} instead of {ofport}"
    return None


def has_ofport(ovsdb: Ovsdb, port: str, ofport: int) -> bool:
    """Whether the switch has the port under this number."""
    row = ovsdb.row("Interface", port)
    return row is not None and row.ofport == [ofport]


def port_difference(ovsdb: Ovsdb, port: str, ofport: int) -> str | None:
    """How a port differs from what `attach` set, in words; None if it does not."""
    if has_ofport(ovsdb, port, ofport):
        return None
    why = refusal(ovsdb, port, ofport) or "ovs-vswitchd has not applied it yet"
    return f"the switch has no port {port} with ofport {ofport}: {why}"


def controller_session(ovsdb: Ovsdb) -> tuple[bool, str]:
    """Whether the switch has a controller session, and the state of each connection in words.

    ovs-vswitchd updates this every 5 s.
    """
    bridge = ovsdb.row("Bridge", names.INTEGRATION_BRIDGE)
    ours = list(filter(_is_marked, bridge.controller if bridge is not None else ()))
    if not ours:
        return False, f"bridge {names.INTEGRATION_BRIDGE} has no Controller row of Sluice"
    states = [
        f"{row.target}: {row.status.get('last_error') or row.status.get('state', _NOTHING_YET)}"
        for row in sorted(ours, key=lambda row: row.target)
    ]
    return any(row.is_connected for row in ours), "; ".join(states)


def remembered_config(ovsdb: Ovsdb) -> NodeConfig | None:
    """The copy of the configuration in OVSDB, used while no controller answers.

    Raises `OvsdbError` if the copy cannot be read.
    """
    for root in ovsdb.rows("Open_vSwitch"):
        if text := root.external_ids.get(_CONFIG):
            try:
                return decode_config(text.encode())
            except ValueError as error:
                raise OvsdbError(
                    f"external_ids:{_CONFIG} of the Open_vSwitch row cannot be read: {error}"
                ) from error
    return None


def _other_config(agent: Agent) -> dict[str, str]:
    return {"datapath-id": f"{names.datapath_id(agent.node):016x}", "hwaddr": names.BRIDGE_MAC}


def clear_restore_wait(transaction: Transaction) -> int:
    """Let a waiting switch start to forward; return the `next_cfg` to pass to `applied`."""
    root = _root(transaction)
    if _WAIT in root.other_config:
        root.delkey("other_config", _WAIT)
    goal = int(root.next_cfg) + 1
    root.next_cfg = goal
    return goal


def set_restore_wait(transaction: Transaction) -> None:
    """Make the next ovs-vswitchd process wait for its flows; a running one ignores the key."""
    root = _root(transaction)
    if root.other_config.get(_WAIT) != "true":
        root.setkey("other_config", _WAIT, "true")


def has_restore_wait(ovsdb: Ovsdb) -> bool:
    """Whether the key `flow-restore-wait` is set."""
    return any(root.other_config.get(_WAIT) == "true" for root in ovsdb.rows("Open_vSwitch"))


def applied(ovsdb: Ovsdb, goal: int) -> bool:
    """Whether ovs-vswitchd has applied OVSDB up to this `next_cfg`."""
    return any(root.cur_cfg >= goal for root in ovsdb.rows("Open_vSwitch"))


def _root(transaction: Transaction) -> Row:
    for root in transaction.rows("Open_vSwitch"):
        return root
    raise OvsdbError("the database is empty; `ovs-vsctl init` makes the row in Open_vSwitch")


def _port(transaction: Transaction, bridge: Row, name: str, **columns: object) -> None:
    # Interface names are unique in OVSDB, whatever bridge they are on.
    interface = transaction.row("Interface", name)
    if interface is None:
        _add_port(transaction, bridge, name, **columns)
    else:
        transaction.update(interface, **columns)


def _add_port(transaction: Transaction, bridge: Row, name: str, **columns: object) -> None:
    interface = transaction.insert("Interface", name=name, **columns)
    bridge.addvalue("ports", transaction.insert("Port", name=name, interfaces=[interface]))


def _flow_tables(transaction: Transaction) -> dict[int, Row]:
    return {
        table.number: transaction.insert("Flow_Table", **flow_table_columns(table))
        for table in TABLES
    }


_TABLE_COLUMNS: Final = ("name", "flow_limit", "overflow_policy", "groups")


def flow_table_columns(table: Table) -> dict[str, object]:
    """Name and bound of a table, as columns of a Flow_Table row."""
    columns: dict[str, object] = {column: [] for column in _TABLE_COLUMNS}
    columns["name"] = [table.name]
    if table.max_flows is not None:
        register = LAYOUT.registers[table.evict_by].register
        columns["flow_limit"] = [table.max_flows]
        columns["overflow_policy"] = ["evict"]
        columns["groups"] = [f"NXM_NX_{register.upper()}[]"]
    return columns


def _targets(agent: Agent) -> list[str]:
    scheme = "tcp" if agent.plain_tcp else "ssl"
    return [f"{scheme}:{host}:{agent.openflow_port}" for host in agent.controllers]


def _controller_columns(agent: Agent) -> dict[str, object]:
    return {
        # A service connection dials out like a primary one, but coming and going it flushes
        # nothing, and out-of-band adds no hidden flows.
        "type": ["service"],
        "connection_mode": ["out-of-band"],
        "inactivity_probe": [INACTIVITY_PROBE],
        # Milliseconds; apart from node to node, so that not all knock at one moment. Open vSwitch
        # 3.1 does not use it (seen): it tries again after 1, 2, 4 and then always 8 s.
        "max_backoff": [2000 + names.datapath_id(agent.node) % 2000],
        "external_ids": _OUR_CONTROLLER_IDS,
    }


def _controller(transaction: Transaction, agent: Agent, target: str) -> Row:
    return transaction.insert("Controller", target=target, **_controller_columns(agent))


def _update_controllers(transaction: Transaction, bridge: Row, agent: Agent) -> None:
    """One row for each target; a row that stays keeps its session."""
    wanted = set(_targets(agent))
    for row in list(bridge.controller):
        # Other rows are somebody's own: taking away the last primary one would flush all flows.
        if row.target in wanted and (_is_marked(row) or row.type == ["service"]):
            wanted.remove(row.target)
            transaction.update(row, **_controller_columns(agent))
        elif _is_marked(row):
            bridge.delvalue("controller", row)
    for target in sorted(wanted):
        bridge.addvalue("controller", _controller(transaction, agent, target))


def _is_marked(controller: Row) -> bool:
    return bool(_OUR_CONTROLLER_IDS.items() <= controller.external_ids.items())


def _ssl(transaction: Transaction, root: Row, tls: Tls) -> None:
    columns: dict[str, object] = {
        "private_key": str(tls.key),
        "certificate": str(tls.certificate),
        "ca_cert": str(tls.ca),
    }
    if root.ssl:
        transaction.update(root.ssl[0], **columns)
    else:
        root.ssl = [transaction.insert("SSL", **columns)]
