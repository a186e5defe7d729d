"""Planted faults in what keeps state: leases, snapshot, OVSDB, files, switches."""

from typing import Final

from tests.mutants.fault import Fault

_LEASES = "node_agent/leases.py"
_SNAPSHOT = "node_agent/snapshot.py"
_ATTACH = "node_agent/attach.py"
_BRIDGE = "node_agent/bridge.py"
_UNINSTALL = "node_agent/uninstall.py"
_DIRECTORY = "controller/sources/directory.py"
_LEASE_TESTS = ("tests/node_agent/test_leases.py",)
_SNAPSHOT_TESTS = ("tests/node_agent/test_snapshot.py",)
_ATTACH_TESTS = ("tests/node_agent/test_attach.py",)
_AGENT_TESTS = ("tests/node_agent/test_attach.py", "tests/node_agent/test_agent.py")

STATE: Final = (
    Fault(
        "leases are not synced to disk",
        _LEASES,
        "PRAGMA synchronous = FULL",
        "PRAGMA synchronous = OFF",
        _LEASE_TESTS,
    ),
    Fault(
        "after a failed commit the lease table in memory differs from the file",
        _LEASES,
        "                    self._held = before\n",
        "",
        _LEASE_TESTS,
    ),
    Fault(
        "a released address is leased again at once",
        _LEASES,
        "if abs(now - at) >= self._quarantine:",
        "if True:",
        _LEASE_TESTS,
    ),
    Fault(
        "an address that was just released comes back first",
        _LEASES,
        "FROM released ORDER BY at, address",
        "FROM released ORDER BY at DESC, address",
        _LEASE_TESTS,
    ),
    Fault(
        "an ofport is used again at once",
        _LEASES,
        '                self._set(database, "next ofport", str(following))\n',
        "",
        _LEASE_TESTS,
    ),
    Fault(
        "one host port is given to two pods",
        _LEASES,
        "if wanted.claim in theirs:",
        "if False:",
        _LEASE_TESTS,
    ),
    Fault(
        "a new podCIDR takes effect while old attachments are left",
        _LEASES,
        "            if foreign:\n",
        "            if False:\n",
        _LEASE_TESTS,
    ),
    Fault(
        "anybody reads the lease file",
        _LEASES,
        "        path.chmod(0o600)\n",
        "        path.chmod(0o644)\n",
        _LEASE_TESTS,
    ),
    Fault(
        "the snapshot is not synced to disk",
        _SNAPSHOT,
        "        os.fsync(file.fileno())\n",
        "",
        _SNAPSHOT_TESTS,
    ),
    Fault(
        "the snapshot's name is not synced to disk",
        _SNAPSHOT,
        "    install.sync(path.parent)\n",
        "",
        _SNAPSHOT_TESTS,
    ),
    Fault(
        "an empty bridge replaces a good snapshot",
        _SNAPSHOT,
        "    if not snapshot.lets_packets_in:\n        raise ValueError(",
        "    if False:\n        raise ValueError(",
        _SNAPSHOT_TESTS,
    ),
    Fault(
        "a snapshot without its end is put back",
        _SNAPSHOT,
        "    if content or not found.lets_packets_in:\n",
        "    if False:\n",
        _SNAPSHOT_TESTS,
    ),
    Fault(
        "the seals of a snapshot are put back first",
        _SNAPSHOT,
        "[flow for flow in self.flows if flow not in seals],",
        "self.flows,",
        _SNAPSHOT_TESTS,
    ),
    Fault(
        "anybody reads the snapshot",
        _SNAPSHOT,
        "        os.fchmod(descriptor, 0o600)\n",
        "        os.fchmod(descriptor, 0o644)\n",
        _SNAPSHOT_TESTS,
    ),
    Fault(
        "a lease is released though a part of its attachment is left",
        _ATTACH,
        "        if complete and lease is not None:\n",
        "        if lease is not None:\n",
        _ATTACH_TESTS,
    ),
    Fault(
        "GC deletes a pod whose ADD is running",
        _ATTACH,
        "            if lock.locked():\n"
        "                continue  # being added: the runtime's list is older\n",
        "",
        _ATTACH_TESTS,
    ),
    Fault(
        "an address meets its previous owner's connections",
        _ATTACH,
        "                    await self._switch.forget_connections(lease.address)\n",
        "",
        _AGENT_TESTS,
    ),
    Fault(
        "ADD answers before the switch has its flows",
        _ATTACH,
        "                    await self._wait_for_flows(call, lease)\n",
        "",
        _AGENT_TESTS,
    ),
    Fault(
        "a failed ADD leaves its parts",
        _ATTACH,
        "                await asyncio.shield(self._delete(lease.container_id, lease.ifname))\n",
        "",
        _AGENT_TESTS,
    ),
    Fault(
        "a host port that every node needs is given away",
        _ATTACH,
        "            _refuse_reserved(call, ready.config)\n",
        "",
        _AGENT_TESTS,
    ),
    Fault(
        "GC without a list releases everything",
        "node_agent/cni_call.py",
        "            case list(entries) if all(map(_names_attachment, entries)):\n",
        "            case None:\n                return set()\n"
        "            case list(entries) if all(map(_names_attachment, entries)):\n",
        ("tests/node_agent/test_cni_call.py",),
    ),
    Fault(
        "uninstall removes a foreign SSL row",
        _BRIDGE,
        "any(row.private_key == str(tls_files.kept(agent.state).key) for row in root.ssl)",
        "bool(root.ssl)",
        ("tests/node_agent/test_attach.py", "tests/node_agent/test_uninstall.py"),
    ),
    Fault(
        "uninstall cuts pods off without being forced",
        _UNINSTALL,
        "        if attached and not force:\n",
        "        if False:\n",
        ("tests/node_agent/test_attach.py", "tests/node_agent/test_uninstall.py"),
    ),
    Fault(
        "the last primary controller of somebody else is removed",
        _BRIDGE,
        "        elif _is_marked(row):\n",
        "        else:\n",
        ("tests/node_agent/test_node.py",),
    ),
    Fault(
        "a bridge of another system is taken over",
        _BRIDGE,
        "    if owner:\n        raise OvsdbError(",
        "    if False:\n        raise OvsdbError(",
        _AGENT_TESTS,
    ),
    Fault(
        "an object in a file that became unreadable is removed",
        _DIRECTORY,
        "        objects = {**old, **objects}\n",
        "        pass\n",
        ("tests/controller/test_directory.py",),
    ),
    Fault(
        "the objects of a file that is being written are removed",
        _DIRECTORY,
        "                self._being_written.add(path)\n            return set()\n",
        "                self._being_written.add(path)\n            objects, problem, unreadable, "
        'touched = {}, "", False, set(old)\n',
        ("tests/controller/test_directory.py",),
    ),
    Fault(
        "a source with an unreadable file counts as read completely",
        _DIRECTORY,
        "self._feed.source_complete(not self._unreadable)",
        "self._feed.source_complete(True)",
        ("tests/controller/test_directory.py",),
    ),
    Fault(
        "the hold on flow-restore-wait is not renewed",
        "node_agent/local_switch.py",
        "                if not bridge.has_restore_wait(self._ovsdb):\n",
        "                if False:\n",
        ("tests/node_agent/test_attach.py",),
    ),
)
