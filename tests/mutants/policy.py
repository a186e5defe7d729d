"""Planted faults in policy: each lets packets pass that no policy allows, or drops allowed ones.

Random clusters find them all (`tests/policy/test_planted_faults.py`).
"""

from typing import Final

from tests.mutants.fault import Fault

_FLOWS = "flows/features/policy.py"
_JUDGEMENT = "flows/features/judgement.py"
_NETWORK_POLICIES = "controller/policies/network_policies.py"
_TESTS = ("tests/policy/test_clusters_first.py",)

POLICY: Final = (
    Fault(
        "policy concerns packets of established connections",
        _JUDGEMENT,
        '        direction, state, priority, {"ct_state": _NEW},\n',
        "        direction, state, priority, {},\n",
        _TESTS,
    ),
    Fault(
        "a pod that a NetworkPolicy selects is not isolated",
        _FLOWS,
        "    (selected,) = LAYOUT.loads(Selected=1, Isolated=isolated)\n",
        "    (selected,) = LAYOUT.loads(Selected=1, Isolated=walks.refused)\n",
        _TESTS,
    ),
    Fault(
        "the shortest prefix of a block decides, not the longest",
        _FLOWS,
        "Priority.PREFIX + length,\n",
        "Priority.PREFIX + 32 - length,\n",
        _TESTS,
    ),
    Fault(
        "a mask of a range of ports reaches beyond its end",
        _FLOWS,
        "1 << (last - at + 1).bit_length() - 1)",
        "1 << (last - at + 1).bit_length())",
        _TESTS,
    ),
    Fault(
        "what the Admin tier passes on is denied",
        _FLOWS,
        "            if walks.admin:\n",
        "            if walks.baseline:\n",
        _TESTS,
    ),
    Fault(
        "an `except` of a block takes pods from the members",
        _FLOWS,
        '{field: 0}, Priority.MEMBER, [_PORTS], "a member of the set")',
        '{field: 0}, Priority.PREFIX, [_PORTS], "a member of the set")',
        _TESTS,
    ),
    Fault(
        "the outside reaches every pod, as a node reaches its own",
        _JUDGEMENT,
        '        "PolicyToPod", Priority.LOCAL, {"Source": Source.HOST},',
        '        "PolicyToPod", Priority.LOCAL, {"Source": Source.GATEWAY},',
        _TESTS,
    ),
    Fault(
        "a denied port denies all ports of its protocol",
        _FLOWS,
        '            "nw_proto": protocol,\n            "nw_frag": ANY_FRAGMENT,\n',
        '            "nw_proto": protocol,\n',
        _TESTS,
    ),
    Fault(
        "the verdict at the source's node goes on to the destination's policies",
        _JUDGEMENT,
        "[] if last else [*LAYOUT.loads(**_RESET)]",
        "[]",
        _TESTS,
    ),
    Fault(
        "the gateway addresses of nodes count as pods",
        _FLOWS,
        "        for network in found.outsiders:\n",
        "        for network in ():\n",
        _TESTS,
    ),
    Fault(
        "a pod does not reach itself",
        _JUDGEMENT,
        '        "PolicyToPod", Priority.GUARD, {"ToItself": 1}, [LAYOUT.goto("Hairpin")],\n',
        '        "PolicyToPod", Priority.MISS + 1, {"ToItself": 1}, [LAYOUT.goto("Hairpin")],\n',
        _TESTS,
    ),
    Fault(
        "an `except` drops, also what another block allows",
        "controller/policies/blocks.py",
        "        is_member = effective > 0\n",
        "        is_member = effective > 0 and not any(outside.values())\n",
        _TESTS,
    ),
    Fault(
        "a peer without a namespaceSelector is of any Namespace",
        _NETWORK_POLICIES,
        "    namespaces, namespaces_valid = own, True\n",
        "    namespaces, namespaces_valid = (), True\n",
        _TESTS,
    ),
    Fault(
        "a policy selects pods of all Namespaces",
        _NETWORK_POLICIES,
        "        Selection(own, pods),\n",
        "        Selection((), pods),\n",
        _TESTS,
    ),
    Fault(
        "a policy without policyTypes also isolates what pods send",
        _NETWORK_POLICIES,
        "types = set(spec.policy_types or (TYPES if spec.egress else TYPES[:1]))",
        "types = set(spec.policy_types or TYPES)",
        _TESTS,
    ),
    Fault(
        "a named port from a pod is the union of its numbers, for all peers of the rule",
        "controller/policies/rules.py",
        "self._peers.use(peers, Direction.FROM_POD, of, policy.ref)",
        "self._peers.use(\n"
        "                    peers, Direction.FROM_POD, None if peers else of, policy.ref\n"
        "                )",
        _TESTS,
    ),
)
