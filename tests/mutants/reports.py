"""Planted faults in what people are told of a running cluster."""

from typing import Final

from tests.mutants.fault import Fault

_CONVERGENCE = ("tests/controller/test_convergence.py",)
_FLOWS = ("tests/controller/test_flow_report.py",)
_COUNTERS = ("tests/controller/test_counters.py",)
_EXPLANATIONS = ("tests/controller/test_explanations.py",)
_COMMANDS = ("tests/cli/test_reports.py",)
_RATES = ("tests/cli/test_top_and_drops.py",)

REPORTS: Final = (
    Fault(
        "a switch that drifted counts as proven",
        "controller/convergence.py",
        "        if session.state in _UNPROVEN:",
        "        if session.state is State.UNKNOWN:",
        _CONVERGENCE,
    ),
    Fault(
        "a switch that still holds what was removed is not waited for",
        "controller/convergence.py",
        "            if session.held_version < version and node in view.nodes:",
        "            if False:",
        _CONVERGENCE,
    ),
    Fault(
        "flows that a switch rejected count as held",
        "controller/convergence.py",
        "            if is_left_out:",
        "            if False:",
        _CONVERGENCE,
    ),
    Fault(
        "a change that is not compiled yet counts as held",
        "controller/convergence.py",
        "        while not reconciler.is_idle:",
        "        while False:",
        _CONVERGENCE,
    ),
    Fault(
        "a Pod without an interface counts as held",
        "controller/convergence.py",
        'why = "" if gone or made.keys else self._why_nothing(ref)',
        'why = ""',
        _CONVERGENCE,
    ),
    Fault(
        "the first acknowledgement that is remembered counts as the first of all",
        "controller/acknowledgements.py",
        "        is_exact = False\n",
        "        is_exact = True\n",
        _CONVERGENCE,
    ),
    Fault(
        "a repair keeps the proof from before the drift",
        "controller/session.py",
        "                    self.acknowledged.clear()\n",
        "",
        _CONVERGENCE,
    ),
    Fault(
        "all flows are dumped to show those of one object",
        "controller/flow_api.py",
        "await switch.dump_flows(None, cookie, ALL_BITS)",
        "await switch.dump_flows(None, cookie, 0)",
        _FLOWS,
    ),
    Fault(
        "learned flows of all Services are shown for one",
        "controller/flow_api.py",
        "            if flow_report.service_group(flow) in wanted.learned_for\n",
        "            if True\n",
        _FLOWS,
    ),
    Fault(
        "a policy without rules is thought to cause nothing",
        "controller/causes.py",
        "    for group in [*policy.subject.groups] if policy.subject is not None else ():",
        "    for group in [*policy.subject.groups] if policy.subject and ids else ():",
        ("tests/controller/test_causes.py",),
    ),
    Fault(
        "of equal flows on several nodes one is told of",
        "controller/explanations/flows.py",
        " if each != mine)",
        " if False)",
        _EXPLANATIONS,
    ),
    Fault(
        "packets that a subroutine returns count as dropped",
        "controller/drop_reasons.py",
        "if not table.is_subroutine and table.name not in _RETURNING",
        "if table.name not in _RETURNING",
        _COUNTERS,
    ),
    Fault(
        "a table of any size is read for counters",
        "controller/counters.py",
        "and size <= LARGEST_TABLE:\n            plan.tables.add(table)\n        elif len",
        "and True:\n            plan.tables.add(table)\n        elif len",
        _COUNTERS,
    ),
    Fault(
        "each viewer reads the counters of a switch anew",
        "controller/counters_api.py",
        "        if task is None:",
        "        if True:",
        _COUNTERS,
    ),
    Fault(
        "an agent speaks of pods of other nodes",
        "controller/recent_denials.py",
        "if denied_pod(self._inventory, node, each) is not None",
        "if True",
        ("tests/controller/test_recent_denials.py",),
    ),
    Fault(
        "a report of another version is read as if it were of this one",
        "cli/controller.py",
        "    if given != VERSION:",
        "    if False:",
        _COMMANDS,
    ),
    Fault(
        "counters that begin anew make negative rates",
        "cli/counters.py",
        "row.packets - before if row.packets >= before else row.packets",
        "row.packets - before",
        _RATES,
    ),
    Fault(
        "drops are followed without a bound",
        "cli/drops.py",
        "lines[-MOST_LINES:]",
        "lines",
        _RATES,
    ),
)
