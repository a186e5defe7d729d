"""How long a route takes from the API server to the kernel table of a router, by BGP.

bgp_route_ms: a Node is added; until FRR and BIRD both have a route to its pods in the kernel table
of their namespaces. bgp_1000_routes_s: the nodeSelector of a BGPPeer is changed in a cluster of
1,000 Nodes, from none of them to all; until the router has all 1,000 routes there. The rounds take
both routers in turn.
"""

import os
import re
import subprocess
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Network
from typing import Final

from bench.api_connection import ApiConnection
from bench.controller import Manifest
from bench.figures import Figure
from bench.nodes import unique
from lab import Lab, LabError, leaves
from lab.layout import POD_RANGE, UNDERLAY

ROUNDS: Final = int(os.environ.get("SLUICE_BGP_ROUNDS") or 9)
MANY: Final = 1_000
LONGEST: Final = 60.0
"""Seconds for one round."""
_NODES: Final = "/api/v1/nodes"
_PEERS: Final = "/apis/sluice.dev/v1alpha1/bgppeers"
_RANGES: Final = [
    each
    for each in POD_RANGE.subnets(new_prefix=26)
    # The nodes of the lab have the first ones.
    if int(each[0]) - int(POD_RANGE[0]) >= 5 << 8
]


def measure(*, rounds: int = ROUNDS, many: int = MANY) -> list[Figure]:
    """Add that many Nodes one by one, and then each BGPPeer as often."""
    with Lab(unique("bgp")).running(fabric="bgp", nodes=2, source="kube") as lab:
        api = ApiConnection(lab.layout)
        both = leaves.leaves(lab.layout)
        try:
            single = []
            for number in range(rounds):
                with watched(*both) as (one, two):
                    began = time.monotonic()
                    _add_node(api, number)
                    network = str(_RANGES[number])
                    ends = [each.wait_for(network) for each in (one, two)]
                single.append(1000 * (max(ends) - began))
            for number in range(rounds, many - 2):
                _add_node(api, number)
            all_of_them = [_all(api, both[n % 2], many) for n in range(rounds)]
        finally:
            api.close()
    return [
        Figure("bgp_route_ms", "ms", single, at_most=1000),
        Figure(f"bgp_{many}_routes_s", "s", all_of_them, at_most=3),
    ]


def _add_node(api: ApiConnection, number: int) -> None:
    cidr = str(_RANGES[number])
    spec = {"podCIDR": cidr, "podCIDRs": [cidr]}
    made: Manifest = {**_manifest("v1", "Node", f"far{number}"), "spec": spec}
    api.send("POST", _NODES, made)
    address = {"type": "InternalIP", "address": str(UNDERLAY[(100 << 8) + number])}
    path = f"{_NODES}/far{number}/status"
    known: Manifest = api.send("GET", path, made)
    api.send("PUT", path, {**known, "status": {"addresses": [address]}})


def _manifest(version: str, kind: str, name: str) -> Manifest:
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}}


def _all(api: ApiConnection, leaf: leaves.Leaf, many: int) -> float:
    """Seconds."""
    _select(api, leaf.name, {"matchLabels": {"no": "node"}})
    end = time.monotonic() + LONGEST
    while _routes(leaf):
        if time.monotonic() > end:
            raise LabError(f"{leaf.name} keeps routes that are not announced any more")
        time.sleep(0.1)
    with watched(leaf) as (watch,):
        began = time.monotonic()
        _select(api, leaf.name, {})
        return watch.wait_for(many) - began


def _select(api: ApiConnection, peer: str, selector: Mapping[str, object]) -> None:
    path = f"{_PEERS}/{peer}"
    known = api.send("GET", path, _manifest("sluice.dev/v1alpha1", "BGPPeer", peer))
    api.send("PUT", path, {**known, "spec": {**known["spec"], "nodeSelector": selector}})


def _routes(leaf: leaves.Leaf) -> list[str]:
    command = ["ip", "-n", leaf.netns, "route"]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    return [line for line in said.splitlines() if "proto bgp" in line or "proto bird" in line]


class Watch:
    """Follows the kernel table of a router."""

    def __init__(self, leaf: leaves.Leaf) -> None:
        self._name = leaf.name
        self._seen: dict[IPv4Network, float] = {}
        self._process = subprocess.Popen(
            ["ip", "-n", leaf.netns, "monitor", "route"], stdout=subprocess.PIPE, text=True
        )
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._process.stdout or ():
            # One that goes begins with "Deleted".
            if found := re.match(r"(10\.[\d.]+/\d+) ", line):
                self._seen.setdefault(IPv4Network(found[1]), time.monotonic())

    def wait_for(self, wanted: str | int) -> float:
        """When this route, or so many of them, were there. Raises `LabError`."""
        end = time.monotonic() + LONGEST
        while time.monotonic() < end:
            seen = dict(self._seen)
            if isinstance(wanted, int):
                if len(seen) >= wanted:
                    return sorted(seen.values())[wanted - 1]
            elif (at := seen.get(IPv4Network(wanted))) is not None:
                return at
            time.sleep(0.005)
        raise LabError(f"{self._name} has {len(self._seen)} new routes after {LONGEST:.0f} s")

    def stop(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(timeout=30)
        self._thread.join(timeout=30)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextmanager
def watched(*routers: leaves.Leaf) -> Iterator[tuple[Watch, ...]]:
    """Watch the tables of these."""
    watches = tuple(map(Watch, routers))
    # `ip monitor` says nothing when it has begun.
    time.sleep(0.2)
    try:
        yield watches
    finally:
        for each in watches:
            each.stop()
