"""Faults in what guards against Services, and in what follows from them."""

from typing import Final

from tests.mutants.fault import Fault

_DRAFTS = "controller/service_drafts.py"
_KNOWN = "controller/known_addresses.py"
_HOSTS = "controller/host_services.py"
_UDP = "controller/stale_udp.py"
_CLAIMS = "controller/service_claims.py"
_COSTS = "controller/service_costs.py"
_ADDRESS_TESTS = ("tests/controller/test_known_addresses.py",)
_HOSTILE_TESTS = ("tests/controller/test_hostile_services.py",)
_SERVICE_TESTS = ("tests/controller/test_service_effects.py",)

SERVICES: Final = (
    Fault(
        "an API server's address is a Service's",
        _KNOWN,
        "        if address in self._api_servers:\n",
        "        if False:\n",
        _ADDRESS_TESTS,
    ),
    Fault(
        "a controller's address is a Service's",
        _KNOWN,
        '        return self._protected.get(address, "")\n',
        '        return ""\n',
        _ADDRESS_TESTS,
    ),
    Fault(
        "a protected address is a ClusterIP",
        _DRAFTS,
        "    elif why := known.protected(found):\n",
        '    elif why := "":\n',
        _ADDRESS_TESTS,
    ),
    Fault(
        "a node's reserved port is a Service's",
        _DRAFTS,
        "        if holder and frontend.host_dnat:\n",
        "        if False:\n",
        _ADDRESS_TESTS,
    ),
    Fault(
        "hosts take external addresses as a whole",
        _HOSTS,
        "        if frontend.external and frontend.address:\n",
        "        if False:\n",
        _ADDRESS_TESTS,
    ),
    Fault(
        "the host translates past the source ranges",
        _HOSTS,
        "        if frontend.external and frontend.sources is None:\n",
        "        if frontend.external:\n",
        _ADDRESS_TESTS,
    ),
    Fault(
        "a Service has any number of external addresses",
        _DRAFTS,
        "    return texts[:most]\n",
        "    return texts\n",
        _HOSTILE_TESTS,
    ),
    Fault(
        "a namespace has no limit",
        _COSTS,
        "        if account and name in account.refused:\n",
        "        if False:\n",
        _HOSTILE_TESTS,
    ),
    Fault(
        "the youngest Services are served first",
        _COSTS,
        "        for each in self._ages:\n",
        "        for each in reversed(self._ages):\n",
        _HOSTILE_TESTS,
    ),
    Fault(
        "an address is in one Service's set while another has ports of it",
        _CLAIMS,
        "        return len(self._claimants.get(address, ())) > 1\n",
        "        return False\n",
        _HOSTILE_TESTS,
    ),
    Fault(
        "each endpoint of a Service is made anew with every change",
        "flows/features/endpoints.py",
        "        _buckets[key] = found\n",
        "        pass\n",
        _HOSTILE_TESTS,
    ),
    Fault(
        "UDP to a node's own address is not forgotten",
        _UDP,
        "    places += [(own.address, each.port) for each in port.frontends"
        " for own in each.host_dnat]\n",
        "",
        _SERVICE_TESTS,
    ),
    Fault(
        "UDP of another Service with the same endpoints is forgotten",
        _UDP,
        "        unused = sorted(place for place in left if place not in self._uses)\n",
        "        unused = sorted(left)\n",
        _SERVICE_TESTS,
    ),
    Fault(
        "the digest of a changed group stays old",
        "controller/drift.py",
        "            if self._known.get(number) is not group:\n",
        "            if number not in self._known:\n",
        ("tests/controller/test_digests.py",),
    ),
    Fault(
        "the companion of a changed group stays old",
        "flows/compile.py",
        "            (change.new.id, state.companion(change.new).cookie) for change in"
        " delta.groups_set\n",
        "            (change.new.id, state.companion(change.new).cookie)\n"
        "            for change in delta.groups_set\n"
        "            if change.new.id not in self.companions\n",
        ("tests/controller/test_digests.py",),
    ),
    Fault(
        "the audit dumps what the switch has learned",
        "node_agent/audit.py",
        "        earlier.flows[part] = count\n",
        "        earlier.flows[part] = count\n"
        "    yield await switch.dump_flows(None, 10 << 56, 0xFF << 56)\n",
        ("tests/node_agent/test_audit.py",),
    ),
)
