"""An EgressAddress by itself: what it says, and what is wrong with it."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from controller.outside_addresses import NEVER, WAYS
from controller.policies.selectors import Selection, Selector, read_selector
from controller.sources.routed_objects import EgressAddressObject
from flows.family import IPNetwork
from flows.view import egress_number
from settings.plain_yaml import shown

Range = tuple[str, IPNetwork]
"""What a range is, in words, and the range."""


@dataclass(frozen=True, slots=True)
class Draft:
    """An EgressAddress that could be used, if no other one has its address."""

    name: str
    age: tuple[str, str]
    """Sorts the older one first."""
    address: IPv4Address | None
    """None: it cannot be used, for one of the `problems`."""
    selection: Selection
    gateways: Selector
    announce: frozenset[str]
    """Of `controller.outside_addresses.WAYS`."""
    problems: tuple[str, ...] = ()


def age_of(given: EgressAddressObject) -> tuple[str, str]:
    """Without a time it is the youngest: a manifest made by hand displaces nobody."""
    return given.metadata.creation_timestamp or "never", given.metadata.name


def read(given: EgressAddressObject, ranges: Iterable[Range]) -> Draft:
    """What an EgressAddress says. It must not have an address of these `ranges`.

    It is not used if a selector is invalid: it would select more pods, or nodes, than meant.
    """
    spec = given.spec
    problems: list[str] = []
    address = _address(spec.address, ranges, problems)
    if spec.namespace_selector is None:
        problems.append("spec.namespaceSelector is missing; {} selects all Namespaces")
    if spec.gateways is None:
        problems.append("spec.gateways is missing; {} selects all Nodes")
    namespaces, _ = read_selector(spec.namespace_selector, "spec.namespaceSelector", problems)
    pods, _ = read_selector(spec.pod_selector, "spec.podSelector", problems)
    gateways, _ = read_selector(spec.gateways, "spec.gateways", problems)
    is_usable = not problems
    announce = frozenset(WAYS if spec.announce is None else spec.announce)
    if unknown := announce - frozenset(WAYS):
        problems.append(f"spec.announce: {shown(min(unknown))} is neither {' nor '.join(WAYS)}")
    return Draft(
        given.metadata.name,
        age_of(given),
        address if is_usable else None,
        Selection(namespaces, pods),
        gateways,
        announce & frozenset(WAYS),
        tuple(problems),
    )


def _address(given: str, ranges: Iterable[Range], problems: list[str]) -> IPv4Address | None:
    try:
        address = IPv4Address(given)
    except ValueError:
        problems.append(f"spec.address: {shown(given)} is not an IPv4 address")
        return None
    for what, network in (*NEVER, *ranges):
        if address in network:
            problems.append(f"spec.address: {address} is in {what}, {network}")
            return None
    if not egress_number(address):
        problems.append(f"spec.address: {address} is the first address of a network")
        return None
    return address
