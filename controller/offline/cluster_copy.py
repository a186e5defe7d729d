"""A copy of what a controller knows of the cluster, as lines of JSON.

`sluice what-if` computes with such a copy, so that a question costs the controller no more than
writing it down; a support bundle holds one. It has only what flows depend on: no Secret, no
environment of a container, no annotation that nobody reads. The copy is of one moment, though it is
written in slices.
"""

from collections.abc import AsyncIterator, Iterable
from functools import cache
from ipaddress import IPv4Address, ip_network
from typing import Any, Final

import msgspec

from controller.inventory import Inventory
from controller.offline.gateways import adopt, gateways_of
from controller.sources.feed import in_slices
from controller.sources.objects import KINDS, Object, ObjectError, check_names
from flows.view import Attachment, Cluster
from flows.ways import Mode

VERSION: Final = 1
"""Of the form. A command refuses a copy of another version."""
AT_ONCE: Final = 200
"""Objects in one line."""
LONGEST_LINE: Final = 64 << 20
"""Bytes. The API server takes no object of more than some 1.5 MB, and most have a few hundred."""
_KINDS: Final = (
    *("Node", "Namespace", "Pod", "NetworkPolicy", "ClusterNetworkPolicy"),
    *("Service", "EndpointSlice", "EgressAddress"),
)


class CopyError(ValueError):
    """The copy cannot be read."""


class _Header(msgspec.Struct, frozen=True, rename="camel"):
    version: int
    pod_range: str
    service_range: str
    tunnel_port: int
    new_connections_per_second: int
    excluded_nodes: tuple[str, ...]
    mirror_pods_as_members: bool
    node_local_dns: bool = False
    cut_established: bool = False
    log_denials: bool = False
    mode: Mode = Mode.ENCAP
    gateways: dict[str, str] = {}
    """By egress address, the node that is its gateway."""


class _Attached(msgspec.Struct, frozen=True, array_like=True):
    port: str
    ofport: int
    address: str
    pod: str


class _Line(msgspec.Struct, frozen=True, omit_defaults=True):
    """Objects of one kind, or the attachments of a node."""

    kind: str = ""
    objects: msgspec.Raw = msgspec.Raw(b"[]")
    node: str = ""
    attachments: list[_Attached] = []


class _Objects(msgspec.Struct, frozen=True):
    kind: str
    objects: list[Any]


async def copy_of(inventory: Inventory, *, services: bool = False) -> AsyncIterator[bytes]:
    """The lines of a copy. The event loop has its turn between them.

    With `services` also of what no policy depends on: Services, EndpointSlices, EgressAddresses.
    """
    cluster = inventory.view.cluster
    policies = inventory.policies
    by_kind: dict[str, list[Any]] = {
        "Node": list(inventory.node_objects.values()),
        "Namespace": list(policies.namespaces.values()),
        "Pod": list(inventory.pods.objects.values()),
        "NetworkPolicy": [],
        "ClusterNetworkPolicy": [],
        "Service": [],
        "EndpointSlice": [],
        "EgressAddress": list(inventory.egress_addresses.objects.values()) if services else [],
    }
    for policy in policies.objects.values():
        by_kind[policy.kind].append(policy)
    for each in inventory.services.objects() if services else ():
        by_kind[each.kind].append(each)
    attachments = {node: list(some.values()) for node, some in inventory.view.attachments.items()}
    yield _line(
        _Header(
            VERSION,
            str(cluster.pod_range),
            str(cluster.service_range),
            cluster.tunnel_port,
            cluster.new_connections_per_second,
            inventory.nodes.excluded,
            policies.mirror_pods_as_members,
            cluster.node_local_dns,
            cluster.cut_established,
            cluster.log_denials,
            cluster.mode,
            gateways_of(inventory) if services else {},
        )
    )
    for kind in _KINDS:
        async for some in in_slices(by_kind[kind], AT_ONCE):
            yield _line(_Objects(kind, some))
    async for some_nodes in in_slices(attachments.items(), 1):
        for node, of_node in some_nodes:
            ours = [_Attached(a.port, a.ofport, str(a.address), a.pod) for a in of_node]
            yield _line(_Line(node=node, attachments=ours))


def _line(content: Any) -> bytes:
    return msgspec.json.encode(content) + b"\n"


def load(lines: Iterable[bytes]) -> Inventory:
    """An inventory with the content of a copy. Raises `CopyError`."""
    given = iter(lines)
    late: list[Object] = []
    attachments: dict[str, list[Attachment]] = {}
    try:
        header = msgspec.json.decode(next(given, b""), type=_Header)
        made = _empty(header)
        for line in given:
            _check_length(line)
            read = msgspec.json.decode(line, type=_Line)
            if read.node:
                attachments[read.node] = [
                    Attachment(each.port, each.ofport, IPv4Address(each.address), each.pod)
                    for each in read.attachments
                ]
            else:
                late += _take(made, read)
    except CopyError:
        raise
    except (KeyError, ValueError, RecursionError, ObjectError) as error:
        raise CopyError(f"the controller's copy cannot be read: {error}") from error
    # In this order nothing is computed twice.
    made.settle()
    for node, some in attachments.items():
        made.ports.adopt(node, some)
    for policy in late:
        made.set_object(policy)
    made.settle()
    try:
        adopt(made, header.gateways)
    except ValueError as error:
        raise CopyError(f"the controller's copy cannot be read: {error}") from error
    return made


def _check_length(line: bytes) -> None:
    if len(line) > LONGEST_LINE:
        raise CopyError(f"the copy has a line of more than {LONGEST_LINE >> 20} MiB")


def _empty(header: _Header) -> Inventory:
    """Raises `CopyError` and `ValueError`."""
    if header.version != VERSION:
        raise CopyError(
            f"the controller's copy has version {header.version}, and this command knows"
            f" {VERSION}: take the command of the controller's version"
        )
    return Inventory(
        Cluster(
            ip_network(header.pod_range),
            ip_network(header.service_range),
            header.tunnel_port,
            header.new_connections_per_second,
            node_local_dns=header.node_local_dns,
            cut_established=header.cut_established,
            log_denials=header.log_denials,
            mode=header.mode,
        ),
        excluded=header.excluded_nodes,
        mirror_pods_as_members=header.mirror_pods_as_members,
    )


def _take(made: Inventory, read: _Line) -> list[Object]:
    """Put the objects of a line into the inventory; policies are returned, for later."""
    objects = _decoder(read.kind).decode(read.objects)
    for each in objects:
        check_names(each)
    if read.kind.endswith("Policy"):
        return objects
    for each in objects:
        made.set_object(each)
    return []


@cache
def _decoder(kind: str) -> msgspec.json.Decoder[list[Any]]:
    wanted: Any = KINDS[kind]
    return msgspec.json.Decoder(list[wanted])
