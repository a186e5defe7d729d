"""What Services cost, and which of them are refused because that is too much.

Each namespace has a limit, so that one tenant cannot use all of the capacity. All namespaces
together have a limit, so that no switch gets more than it can hold. The oldest Services are served
first.
"""

from bisect import insort
from typing import Final

MAX_SERVICE_ENDPOINTS: Final = 131_072
"""Endpoints of all ports of one Service together."""
MAX_NAMESPACE_COST: Final = 400_000
MAX_COST: Final = 1_600_000
"""Of all Services: with 10,000 Services some 150 endpoints each."""
MAX_NAMESPACE_EXTERNAL_PORTS: Final = 16_384
"""Pairs of an external address and a port that the Services of a namespace have."""

Age = tuple[str, str]
"""When a Service was created, and `NAMESPACE/NAME`: sorts the older of two first."""


class _Account:
    """Services that share one limit, oldest first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.refused: set[str] = set()
        self._total = 0
        self._ages: list[Age] = []
        self._costs: dict[Age, int] = {}

    def set(self, age: Age, cost: int) -> set[str]:
        """Set the cost of a Service (0: it is gone). Returns the Services whose verdict changes."""
        old = self._costs.pop(age, 0)
        self._total += cost - old
        if cost:
            self._costs[age] = cost
            if not old:
                insort(self._ages, age)
        elif old:
            self._ages.remove(age)
        if self._total <= self.limit and not self.refused:
            return set()
        before, self.refused = self.refused, set()
        used = 0
        for each in self._ages:
            used += self._costs[each]
            if used > self.limit:
                used -= self._costs[each]
                self.refused.add(each[1])
        return before ^ self.refused

    def __bool__(self) -> bool:
        return bool(self._costs)


class ServiceCosts:
    """Keeps account of the costs, and says which Services are refused."""

    def __init__(self, unit: str, limit: int, namespace_limit: int) -> None:
        """`unit`: what is counted, in words; the limits of all Services and of a namespace's."""
        self._unit = unit
        self._all = _Account(limit)
        self._namespace_limit = namespace_limit
        self._namespaces: dict[str, _Account] = {}
        self._ages: dict[str, Age] = {}

    def set(self, name: str, age: Age, cost: int) -> set[str]:
        """Set the cost of a Service (0: it is gone). Returns the Services whose verdict changes."""
        changed: set[str] = set()
        namespace = name.partition("/")[0]
        account = self._namespaces.setdefault(namespace, _Account(self._namespace_limit))
        known = self._ages.pop(name, age)
        if known != age:
            changed |= account.set(known, 0) | self._all.set(known, 0)
        if cost:
            self._ages[name] = age
        changed |= account.set(age, cost) | self._all.set(age, cost)
        if not account:
            del self._namespaces[namespace]
        return changed

    def refusal(self, name: str) -> str:
        """Why a Service is refused; empty: it is not."""
        namespace = name.partition("/")[0]
        account = self._namespaces.get(namespace)
        if account and name in account.refused:
            return (
                f"it is not served: with it the Services of namespace {namespace} would need more"
                f" than {account.limit} {self._unit}"
            )
        if name in self._all.refused:
            return (
                "it is not served: with it all Services would need more than"
                f" {self._all.limit} {self._unit}"
            )
        return ""
