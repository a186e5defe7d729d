"""Planted faults in what the controller knows of a switch, and does to it."""

from typing import Final

from tests.mutants.fault import Fault

_SESSION = "controller/session.py"
_STATE = "controller/session_state.py"
_SWITCHES = "controller/switches.py"
_DESIRED = "controller/desired.py"
_AUDIT = "controller/audit.py"
_RECONCILER_TESTS = (
    "tests/controller/test_switch_sessions.py",
    "tests/controller/test_reconciler.py",
)
_AUDIT_TESTS = ("tests/controller/test_audit.py",)

SWITCHES: Final = (
    Fault(
        "a switch with another node's certificate is accepted",
        _SWITCHES,
        "if name is not None and switch.dpid != names.datapath_id(name):",
        "if False:",
        _RECONCILER_TESTS,
    ),
    Fault(
        "any number of switches may wait for their Nodes",
        _SWITCHES,
        "elif len(self._unclaimed) >= MAX_UNCLAIMED:",
        "elif False:",
        _RECONCILER_TESTS,
    ),
    Fault(
        "a second session takes over from one that is alive",
        _SWITCHES,
        "if await earlier.switch.alive(2.0):",
        "if False:",
        _RECONCILER_TESTS,
    ),
    Fault(
        "a switch that never acknowledges a batch is never cut off",
        _SESSION,
        "            async with asyncio.timeout(LONGEST_APPLY):\n",
        "            async with asyncio.timeout(None):\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "flows that a switch rejected are forgotten when old seals are still there",
        _SESSION,
        "        if self.left_out or not self._may_seal:\n            return False",
        "        if not self._may_seal:\n            return False",
        _RECONCILER_TESTS,
    ),
    Fault(
        "members that may be pods of a node that is away are removed",
        _SESSION,
        "        kept = set() if self.desired.members_known else",
        "        kept = set() if self.desired.source_complete else",
        ("tests/controller/test_switch_sessions.py",),
    ),
    Fault(
        "a switch that lacks refused flows is sealed",
        _SESSION,
        "        return self.desired.source_complete and not self.left_out\n",
        "        return self.desired.source_complete\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "one seal is enough",
        "controller/seal_history.py",
        "    version = desired.sealed_version(held)\n",
        "    version = desired.sealed_version(held) or desired.shared.version\n",
        _AUDIT_TESTS,
    ),
    Fault(
        "a node's flows are deleted before the whole source was read",
        _SESSION,
        "            delta = replace(delta, deletes=(), meters_delete=(), groups_delete=())\n",
        "            pass\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "shared flows are deleted before the whole source was read",
        _DESIRED,
        "            delta = Delta(adds=delta.adds, groups_set=delta.groups_set)\n",
        "            pass\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "shared flows that belong to nobody any more stay after a comparison",
        _SESSION,
        "{cookie for cookie in installed - held if is_ours(cookie)}",
        "{cookie for cookie in installed - held if False}",
        _RECONCILER_TESTS,
    ),
    Fault(
        "flows of others are removed",
        _SESSION,
        "{cookie for cookie in installed - held if is_ours(cookie)}",
        "installed - held",
        (*_RECONCILER_TESTS, *_AUDIT_TESTS),
    ),
    Fault(
        "a change that comes while one is sent is missed",
        _STATE,
        "    (S.UPDATING, E.CHANGED): S.BEHIND,\n",
        "    (S.UPDATING, E.CHANGED): S.UPDATING,\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "a batch that failed counts as sent",
        _STATE,
        "    (S.UPDATING, E.FAILED): S.UNKNOWN,\n",
        "    (S.UPDATING, E.FAILED): S.BEHIND,\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "a comparison that is asked for during another one is lost",
        _STATE,
        "    (S.COMPARING, E.INVALIDATED): S.UNKNOWN,\n",
        "    (S.COMPARING, E.INVALIDATED): S.COMPARING,\n",
        _RECONCILER_TESTS,
    ),
    Fault(
        "a digest with too few sums passes",
        _AUDIT,
        "enumerate(zip(given.sums, expected, strict=True))",
        "enumerate(zip(given.sums[:0], expected, strict=False))",
        _AUDIT_TESTS,
    ),
    Fault(
        "an audit reads the seals after the flows",
        "node_agent/audit.py",
        "            seals=seals,\n",
        "            seals=[\n"
        "                flow.cookie for flow in ours if state.is_seal(flow.table, flow.cookie)\n"
        "            ],\n",
        _AUDIT_TESTS,
    ),
    Fault(
        "the seal comes before the deletion of meters",
        "openflow/batch.py",
        "        if bundles and not gone and len(ending) <= room:\n",
        "        if bundles and len(ending) <= room:\n",
        _AUDIT_TESTS,
    ),
    Fault(
        "changed meters are not noticed",
        _AUDIT,
        "wrong_meters = given.meters != digest.of_meters(own.meters.values())",
        "wrong_meters = False",
        _AUDIT_TESTS,
    ),
    Fault(
        "changed groups are not noticed",
        _AUDIT,
        "wrong_groups = given.groups != digest.total(each.groups_total for each in digests)",
        "wrong_groups = False",
        ("tests/controller/test_audit.py", "tests/controller/test_groups.py"),
    ),
    Fault(
        "seals of an older program pass for ever",
        _AUDIT,
        "                session.invalidate()\n",
        "                pass\n",
        _AUDIT_TESTS,
    ),
    Fault(
        "stale flows stay after a repair",
        _AUDIT,
        "DeleteByCookie(cookie) for cookie in (*drift.altered, *drift.stale)",
        "DeleteByCookie(cookie) for cookie in drift.altered",
        _AUDIT_TESTS,
    ),
    Fault(
        "connections of an address with a new owner are cut",
        "controller/conntrack_flush.py",
        "if address not in attached[node]]",
        "]",
        ("tests/controller/test_conntrack_flush.py",),
    ),
    Fault(
        "connections of an address that gets a new owner are flushed on",
        "controller/conntrack_flush.py",
        "            flush.keep(set(flush.items).difference(addresses))\n",
        "            pass\n",
        ("tests/controller/test_conntrack_flush.py",),
    ),
    Fault(
        "connections of an endpoint that came back are flushed on",
        "controller/conntrack_flush.py",
        "        if self._changes != self._stale_udp.changes:\n",
        "        if False:\n",
        ("tests/controller/test_conntrack_flush.py",),
    ),
    Fault(
        "connections of a freed address are not forgotten",
        "controller/conntrack_flush.py",
        "            asyncio.get_running_loop().call_later(FREED_TICK, self._forget_freed)\n",
        "            pass\n",
        ("tests/controller/test_conntrack_flush.py",),
    ),
)
