"""What the controller tells one node's agent: the answer of `GET /v1/nodes/NODE/config`."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any, Literal

import msgspec


class NodeConfig(msgspec.Struct, frozen=True, rename="camel"):
    """Everything an agent must know of the cluster; the agent has no Kubernetes credentials."""

    node: str
    uid: str
    address: IPv4Address
    """The Node's InternalIP: source and destination of its tunnels."""
    pod_cidr: IPv4Network
    pod_range: IPv4Network
    service_range: IPv4Network
    host_ranges: tuple[IPv4Network, ...]
    tunnel: Literal["geneve", "vxlan"]
    tunnel_id: int
    tunnel_port: int
    revision: str
    """Opaque; handed back as `?after=REVISION&wait=SECONDS` to be told of the next change."""


def encode(config: NodeConfig) -> bytes:
    """As JSON."""
    return msgspec.json.encode(config, enc_hook=str)


def decode(data: bytes) -> NodeConfig:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=NodeConfig, dec_hook=_decode)


def _decode(kind: type, value: Any) -> Any:
    return kind(value)
