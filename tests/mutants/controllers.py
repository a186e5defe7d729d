"""Faults of the agent's side of several controllers."""

from typing import Final

from tests.mutants.fault import Fault

_CONTROLLERS = "node_agent/controllers.py"
_AUDIT = "node_agent/audit.py"
_GENERATION = "node_agent/generation.py"
_CONTROLLER_TESTS = ("tests/node_agent/test_controllers.py",)
_AUDIT_TESTS = ("tests/node_agent/test_audit.py",)
_GENERATION_TESTS = ("tests/node_agent/test_generation.py",)

CONTROLLERS: Final = (
    Fault(
        "a controller that was started anew is not told again",
        _CONTROLLERS,
        "if report == self._report and losses == self._losses and not",
        "if report == self._report and not",
        _CONTROLLER_TESTS,
    ),
    Fault(
        "a controller that is away delays reports to others",
        "node_agent/addresses.py",
        "            tasks.create_task(_report_to(controller, current))\n",
        "            await _report_to(controller, current)\n",
        _CONTROLLER_TESTS,
    ),
    Fault(
        "a refusal is final though another controller knows the Node",
        _CONTROLLERS,
        "            if not is_refusal(answer):\n",
        "            if True:\n",
        _CONTROLLER_TESTS,
    ),
    Fault(
        "an answer has no bound",
        _CONTROLLERS,
        "        if len(body) > MAX_ANSWER:\n",
        "        if False:\n",
        _CONTROLLER_TESTS,
    ),
    Fault(
        "a controller that does not answer gets every report",
        _CONTROLLERS,
        "        if time.monotonic() < self._next_report:\n",
        "        if False:\n",
        _CONTROLLER_TESTS,
    ),
    Fault(
        "the verdict of a dead controller counts",
        _AUDIT,
        "            self._judged = self._verdict = None\n            return\n",
        "            return\n",
        _AUDIT_TESTS,
    ),
    Fault(
        "the verdict of a silent controller is waited for",
        _AUDIT,
        "await asyncio.wait(asked, timeout=_PATIENCE)",
        "await asyncio.wait(asked)",
        _AUDIT_TESTS,
    ),
    Fault(
        "a dump that one controller finds wrong is saved",
        _AUDIT,
        "            if Verdict.DRIFT in verdicts:\n",
        "            if verdicts == {Verdict.DRIFT}:\n",
        _AUDIT_TESTS,
    ),
    Fault(
        "each controller may have a node answer as many questions as all together",
        "node_agent/questions.py",
        "    working = asyncio.Semaphore(MAX_QUESTIONS)\n",
        "    working = asyncio.Semaphore(1000)\n",
        ("tests/node_agent/test_questions.py",),
    ),
    Fault(
        "a controller that has not read the cluster says that there is no such Node",
        "controller/api.py",
        "        if not self._reconciler.listed.is_set():\n            # Not 404",
        "        if False:\n            # Not 404",
        ("tests/controller/test_api.py",),
    ),
    Fault(
        "the newest generation becomes less",
        _GENERATION,
        "said > self._number",
        "said != self._number",
        _GENERATION_TESTS,
    ),
    Fault(
        "a restarted switch is not told the generation",
        _GENERATION,
        "if self._number is not None and self._number not in said:",
        "if False:",
        _GENERATION_TESTS,
    ),
    Fault(
        "revisions of documents depend on what came before",
        "controller/host_services.py",
        "    return _digest(of, new) - _digest(of, old)\n",
        "    return _digest(of, new)\n",
        ("tests/controller/test_service_effects.py",),
    ),
)
