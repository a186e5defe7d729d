"""A copy of what a controller knows and policies depend on, as lines of JSON.

`sluice what-if` computes with such a copy, so that a question costs the controller no more than
writing it down. The copy is of one moment, though it is written in slices.
"""

from collections.abc import AsyncIterator, Iterable
from functools import cache
from ipaddress import IPv4Address, ip_network
from typing import Any, Final

import msgspec

from controller.inventory import Inventory
from controller.sources.feed import in_slices
from controller.sources.objects import KINDS, Object
from flows.view import Attachment, Cluster

VERSION: Final = 1
"""Of the form. A command refuses a copy of another version."""
AT_ONCE: Final = 200
"""Objects in one line."""
_KINDS: Final = ("Node", "Namespace", "Pod", "NetworkPolicy", "ClusterNetworkPolicy")


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


async def copy_of(inventory: Inventory) -> AsyncIterator[bytes]:
    """The lines of a copy. The event loop has its turn between them."""
    cluster = inventory.view.cluster
    policies = inventory.policies
    by_kind: dict[str, list[Any]] = {
        "Node": list(inventory.node_objects.values()),
        "Namespace": list(policies.namespaces.values()),
        "Pod": list(inventory.pods.objects.values()),
        "NetworkPolicy": [],
        "ClusterNetworkPolicy": [],
    }
    for policy in policies.objects.values():
        by_kind[policy.kind].append(policy)
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
    try:
        header = msgspec.json.decode(next(given, b""), type=_Header)
        if header.version != VERSION:
            raise CopyError(
                f"the controller's copy has version {header.version}, and this command knows"
                f" {VERSION}: take the command of the controller's version"
            )
        made = Inventory(
            Cluster(
                ip_network(header.pod_range),
                ip_network(header.service_range),
                header.tunnel_port,
                header.new_connections_per_second,
            ),
            excluded=header.excluded_nodes,
            mirror_pods_as_members=header.mirror_pods_as_members,
        )
        late: list[Object] = []
        attachments: dict[str, list[Attachment]] = {}
        for line in given:
            read = msgspec.json.decode(line, type=_Line)
            if read.node:
                attachments[read.node] = [
                    Attachment(each.port, each.ofport, IPv4Address(each.address), each.pod)
                    for each in read.attachments
                ]
                continue
            objects = _decoder(read.kind).decode(read.objects)
            if read.kind.endswith("Policy"):
                late += objects
            else:
                for each in objects:
                    made.set_object(each)
    except (KeyError, ValueError) as error:
        if isinstance(error, CopyError):
            raise
        raise CopyError(f"the controller's copy cannot be read: {error}") from error
    # In this order nothing is computed twice.
    made.settle()
    for node, some in attachments.items():
        made.ports.adopt(node, some)
    for policy in late:
        made.set_object(policy)
    made.settle()
    return made


@cache
def _decoder(kind: str) -> msgspec.json.Decoder[list[Any]]:
    wanted: Any = KINDS[kind]
    return msgspec.json.Decoder(list[wanted])
