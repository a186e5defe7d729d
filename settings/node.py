"""What the controller tells one node's agent: the answer of `GET /v1/nodes/NODE/config`."""

from ipaddress import IPv4Address, IPv4Network
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

MOST_PODS = 256
"""Pods of which an agent tells at a time, the latest ones."""


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
    mtu: int | None = None
    """Of pods, at most; None: what the uplink leaves."""


class SwitchDigest(msgspec.Struct, frozen=True, rename="camel"):
    """What an agent's dump of its own switch comes to: `POST /v1/nodes/NODE/digest`.

    Numbers have 64 bits (`openflow.digest`). Flows that are not ours are only counted.
    """

    seals: list[int]
    """The cookies of all seals."""
    sums: list[int]
    """Of all other flows of ours, one for each range of cookies."""
    meters: int
    foreign: int
    """How many flows and groups nobody of ours has made."""


Sentence = Annotated[str, Meta(max_length=1000, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NodeProblems(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All that an agent cannot do at the moment: `POST /v1/nodes/NODE/problems`.

    Told when it changes, and again and again while there is something: what is not told any more
    is forgotten after a while.
    """

    node: Sentence = ""
    """Why this node takes no pods; empty: it does."""
    pods: Annotated[dict[str, Sentence], Meta(max_length=MOST_PODS)] = {}
    """By `NAMESPACE/NAME`, why a pod of this node has no network."""


Verdict = Literal["right", "moved on", "drift"]
"""The answer. "moved on": the switch is just being changed; ask again."""


def encode(config: NodeConfig | SwitchDigest | NodeProblems) -> bytes:
    """As JSON."""
    return msgspec.json.encode(config, enc_hook=str)


def decode(data: bytes) -> NodeConfig:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=NodeConfig, dec_hook=_decode)


def decode_digest(data: bytes) -> SwitchDigest:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=SwitchDigest)


def decode_problems(data: bytes) -> NodeProblems:
    """From JSON. Raises `msgspec.ValidationError` (also for JSON that is none)."""
    return msgspec.json.decode(data, type=NodeProblems)


def _decode(kind: type, value: Any) -> Any:
    return kind(value)
