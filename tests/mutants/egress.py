"""Faults in egress addresses: who sends from them, and what comes back."""

from typing import Final

from tests.mutants.fault import Fault

_FLOWS: Final = "flows/features/egress.py"
_TRACE: Final = ("tests/flows/test_egress_trace.py",)

EGRESS: Final[tuple[Fault, ...]] = (
    Fault(
        "a gateway sends packets of any node out",
        _FLOWS,
        '        {"dl_type": ether_type, "Source": Source.PEER}, [],\n'
        '        "from another node to the outside,',
        '        {"dl_type": ether_type, "Source": Source.PEER}, [LAYOUT.goto("PolicyToPod")],\n'
        '        "from another node to the outside,',
        ("tests/flows/test_golden.py",),
    ),
    Fault(
        "every gateway may send replies of each egress address",
        _FLOWS,
        "                outer.tunnel_source: ip(egress.tunnel_address),\n",
        "",
        ("tests/flows/test_golden.py",),
    ),
    Fault(
        "a connection follows the selectors, not the address that it was opened with",
        _FLOWS,
        '        "Egress", Priority.LOCAL,\n',
        '        "Egress", Priority.DEFAULT,\n',
        _TRACE,
    ),
    Fault(
        "a connection of a deleted egress address leaves from the node's",
        _FLOWS,
        '        "Egress", Priority.OWN_RANGE, of_pod, [],\n',
        '        "Egress", Priority.OWN_RANGE, of_pod, [LAYOUT.goto("PolicyToPod")],\n',
        _TRACE,
    ),
    Fault(
        "without a gateway packets leave from the node's address",
        _FLOWS,
        '            "EgressRoute", Priority.SHARED, of_address, [],\n',
        '            "EgressRoute", Priority.SHARED, of_address, [LAYOUT.goto("PolicyToPod")],\n',
        ("tests/flows/test_golden.py",),
    ),
    Fault(
        "a pod is connected before it has its egress address",
        "controller/compilation.py",
        "            changes[egress] = self._desired.fragment(node, egress)\n",
        "            pass\n",
        ("tests/controller/test_egress.py::"
         "test_pod_is_not_connected_before_it_has_its_egress_address",),
    ),
    Fault(
        "any node is believed about the ports of an egress address",
        "controller/egress/ledger.py",
        "            if known is None or known.gateway != node:\n",
        "            if known is None:\n",
        ("tests/controller/test_egress_ledger.py",),
    ),
    Fault(
        "of two EgressAddresses that select a pod the younger has it",
        "controller/egress/addresses.py",
        "            key=lambda rule: rule.draft.age,\n        )\n",
        "            key=lambda rule: rule.draft.age, reverse=True,\n        )\n",
        ("tests/controller/test_egress.py",),
    ),
)  # fmt: skip
