"""Faults in load balancer addresses: who gets one, and who refuses what is for none."""

from typing import Final

from tests.mutants.fault import Fault

_ALLOCATION: Final = "controller/load_balancers/allocation.py"
_ASSIGNMENTS: Final = "controller/load_balancers/assignments.py"
_POOLS: Final = ("tests/controller/test_address_pools.py",)
_HISTORIES: Final = ("tests/controller/test_assignments.py::test_no_address_is_given_twice",)

LOAD_BALANCERS: Final[tuple[Fault, ...]] = (
    Fault(
        "an address that a Service has to give back is given to another one before it has",
        _ALLOCATION,
        "            self._leaving[address] = request.name\n",
        "",
        _POOLS,
    ),
    Fault(
        "a Service takes an address of a pool that is not for its namespace",
        _ALLOCATION,
        "        return pool.is_open and matches(pool.namespaces, labels)\n",
        "        return pool.is_open\n",
        _POOLS,
    ),
    Fault(
        "Services share an address with one port twice",
        _ALLOCATION,
        "        common = request.ports & self.ports.keys()\n",
        "        common = set[tuple[str, int]]()\n",
        _POOLS,
    ),
    Fault(
        "an address that was written is forgotten before the source shows it",
        _ASSIGNMENTS,
        "            self._balancers.written[name] = (*others, change.address)\n",
        "",
        _HISTORIES,
    ),
    Fault(
        "what the first list of a term has is not looked at",
        _ASSIGNMENTS,
        "                self._balancers.newer[name] = given\n",
        "",
        _HISTORIES,
    ),
    Fault(
        "a Service with the policy Local is announced by nodes without an endpoint",
        "controller/load_balancers/serving.py",
        "        found |= nodes & (ready or {endpoint.node for endpoint in endpoints})\n",
        "        found |= nodes\n",
        _POOLS,
    ),
)
