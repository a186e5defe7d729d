"""Print the addresses and routes of this host that overlap the cluster's ranges.

Usage: host_ranges.py NAME=RANGE...

Exit code: 1 and a sentence for each overlap; 2 for an invalid range; else 0.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import IPv4Network
from itertools import combinations
from typing import Any

GATEWAY = "sluice-gw"
"""Sluice's own interface: its address and route are in the ranges on purpose."""


def main() -> int:
    ranges: dict[str, IPv4Network] = {}
    for argument in sys.argv[1:]:
        name, _, text = argument.partition("=")
        try:
            ranges[name] = IPv4Network(text)
        except ValueError as error:
            print(f"{name}: {error}")
            return 2
    found = list(overlaps(ranges, ip("address"), ip("route", "show", "table", "all")))
    print("\n".join(found))
    return 1 if found else 0


def ip(*command: str) -> Any:
    shown = subprocess.run(["ip", "-4", "-json", *command], check=True, stdout=subprocess.PIPE)
    return json.loads(shown.stdout or "[]")


def overlaps(
    ranges: dict[str, IPv4Network], addresses: list[dict[str, Any]], routes: list[dict[str, Any]]
) -> Iterator[str]:
    """Overlaps of the ranges with each other, then with the host's `ip -json` output."""
    for one, other in combinations(ranges, 2):
        if ranges[one].overlaps(ranges[other]):
            yield f"{one} {ranges[one]} overlaps {other} {ranges[other]}"
    for what, network in (*held_by_addresses(addresses), *held_by_routes(routes)):
        for name, cluster_range in ranges.items():
            if network.overlaps(cluster_range):
                yield f"{name} {cluster_range} overlaps the host's {what}"


def held_by_addresses(addresses: list[dict[str, Any]]) -> Iterator[tuple[str, IPv4Network]]:
    for link in addresses:
        for address in link["addr_info"]:
            text = f"{address['local']}/{address['prefixlen']}"
            if link["ifname"] != GATEWAY:
                yield f"address {text} on {link['ifname']}", IPv4Network(text, strict=False)


def held_by_routes(routes: list[dict[str, Any]]) -> Iterator[tuple[str, IPv4Network]]:
    for route in routes:
        # The default route contains every range, and is used only if no other route matches. The
        # kernel's routes of type local and broadcast follow from its addresses.
        if (
            route["dst"] != "default"
            and route.get("type", "unicast") == "unicast"
            and route.get("dev") != GATEWAY
        ):
            where = f" on {route['dev']}" if "dev" in route else ""
            yield f"route {route['dst']}{where}", IPv4Network(route["dst"])


if __name__ == "__main__":
    sys.exit(main())
