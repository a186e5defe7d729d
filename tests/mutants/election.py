"""Faults of the election of a controller, and of who may write to a switch."""

from typing import Final

from tests.mutants.fault import Fault

_ELECTION = "controller/election.py"
_LEADERSHIP = "controller/leadership.py"
_LOOP = "controller/lease_loop.py"
_LINK = "controller/leader_link.py"
_MASTERY = "controller/mastery.py"
_SWITCHES = "controller/switches.py"
_ELECTION_TESTS = ("tests/controller/test_election.py",)
_LEADERSHIP_TESTS = ("tests/controller/test_leadership.py",)
_LOOP_TESTS = ("tests/controller/test_lease_loop.py",)
_LINK_TESTS = ("tests/controller/test_leader_link.py",)
_MASTERY_TESTS = ("tests/controller/test_mastery.py",)

ELECTION: Final = (
    Fault(
        "a term lasts from the answer to a renewal",
        _ELECTION,
        "Term(lease.transitions, asked + LONGEST_TERM, asked)",
        "Term(lease.transitions, now + LONGEST_TERM, asked)",
        _ELECTION_TESTS,
    ),
    Fault(
        "a holder is taken for dead again and again",
        _ELECTION,
        "            self._dead.append(before)\n",
        "            pass\n",
        _ELECTION_TESTS,
    ),
    Fault(
        "a Lease that was restored from a backup is renewed with its old generation",
        _ELECTION,
        "return lease if is_newest else replace(lease, transitions=newer)",
        "return lease",
        _ELECTION_TESTS,
    ),
    Fault(
        "a term goes on although the Lease is another one's",
        _ELECTION,
        "        if self.term is not None and not self._is_ours(self.term.generation):\n",
        "        if False:\n",
        _ELECTION_TESTS,
    ),
    Fault(
        "a renewal that was under way confirms",
        _LEADERSHIP,
        "self._renewed <= since",
        "self._renewed < since",
        _LEADERSHIP_TESTS,
    ),
    Fault(
        "nobody is told of the end of a term when its timer fires early",
        _LEADERSHIP,
        "call_later(left, self._expire)",
        "call_later(1e6, self._expire)",
        _LEADERSHIP_TESTS,
    ),
    Fault(
        "a change of a label ends the term",
        _LOOP,
        "                    if error.code not in {404, 409}:\n",
        "                    if True:\n",
        _LOOP_TESTS,
    ),
    Fault(
        "a replica that stops takes the Lease again",
        _LOOP,
        "                    if not self._is_over:\n",
        "                    if True:\n",
        _LOOP_TESTS,
    ),
    Fault(
        "silence of the leader says that it is dead",
        _LINK,
        'return "unknown"\n        else:',
        'return "dead"\n        else:',
        _LINK_TESTS,
    ),
    Fault(
        "a leader at the address of this controller is taken for dead",
        _LINK,
        "if found is not None and found.identity == self._election.identity:",
        "if False:",
        _LINK_TESTS,
    ),
    Fault(
        "a switch is written before the Lease was renewed",
        _MASTERY,
        "        if not await leadership.confirmed(leadership.now()):\n",
        "        if False:\n",
        _MASTERY_TESTS,
    ),
    Fault(
        "the master of an earlier term writes",
        _MASTERY,
        "        switch.may_write = self.may_write\n",
        "        switch.may_write = leadership.holds\n",
        _MASTERY_TESTS,
    ),
    Fault(
        "a bundle is committed after the term",
        "openflow/switch.py",
        "                may_write = self.may_write()\n",
        "                may_write = True\n",
        _MASTERY_TESTS,
    ),
    Fault(
        "any generation that a switch claims is believed",
        _SWITCHES,
        "known if known <= MOST_BELIEVED else 0",
        "known",
        _MASTERY_TESTS,
    ),
    Fault(
        "flushes that the last leader did not send are lost",
        _SWITCHES,
        "            session.lead()\n            session.flushes.add(recent)\n",
        "            session.lead()\n",
        _MASTERY_TESTS,
    ),
    Fault(
        "a standby is not told to a switch that knew a newer generation",
        _SWITCHES,
        "            session.stand_by_again()\n",
        "            pass\n",
        ("tests/controller/test_standby.py",),
    ),
)
