"""Questions of the controller to one node's agent, and the answers, as JSON.

An agent asks for its questions by a long poll (`paths.QUESTIONS`) and sends each answer by itself
(`paths.ANSWER`). So no agent has a port that listens. Each kind of question is one struct with a
tag; an agent that does not know a kind answers `Failure`.
"""

from ipaddress import IPv4Address
from typing import Annotated, Final, Literal, TypeAlias

import msgspec
from msgspec import Meta

from wire.documents import Sentence, from_json
from wire.findings import MAX_PEERS, NodeFindings, Peer

MAX_QUESTIONS: Final = 8
"""Questions that one agent has at a time."""
MAX_ANSWER: Final = 1 << 18
"""Bytes of an answer."""
MAX_STEPS: Final = 2_000
"""Flows that one answer names."""
MAX_PARTS: Final = 32
"""Parts of a trace, from one conntrack lookup to the next."""
MAX_LOOKUPS: Final = 64
"""Sentences about a node's own stack in one answer."""

MAX_CAPTURE: Final = 150_000
"""Bytes of a capture. In base64 it must fit into `MAX_ANSWER`."""
MAX_CAPTURE_PACKETS: Final = 1_000
MAX_CAPTURE_SECONDS: Final = 30
MAX_FILTER: Final = 200
"""Characters of a filter of packets."""

Port: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 16)]
Byte: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 8)]
Word: TypeAlias = Annotated[int, Meta(ge=0, lt=1 << 32)]
Cookie: TypeAlias = Annotated[str, Meta(pattern=r"\A0x[0-9a-f]{1,16}\Z")]
Mac: TypeAlias = Annotated[str, Meta(pattern=r"\A([0-9a-f]{2}:){5}[0-9a-f]{2}\Z")]


class Packet(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The IPv4 packet that a trace follows."""

    protocol: Byte
    """IANA's number."""
    source: IPv4Address
    destination: IPv4Address
    source_port: Port = 0
    """Of an ICMP packet its type."""
    destination_port: Port = 0
    """Of an ICMP packet its code."""
    is_reply: bool = False
    """Of TCP: it has SYN and ACK instead of SYN."""


class Connection(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """A connection of conntrack, or one that a trace would have made there."""

    zone: Port
    protocol: Byte
    source: IPv4Address
    source_port: Port
    destination: IPv4Address
    destination_port: Port
    reply_source: IPv4Address
    reply_source_port: Port
    reply_destination: IPv4Address
    reply_destination_port: Port
    mark: Word = 0
    label: Annotated[str, Meta(pattern=r"\A0x[0-9a-f]{1,32}\Z")] = "0x0"
    is_answered: bool = False
    """Whether there was a packet in the other direction."""


class Translation(msgspec.Struct, frozen=True):
    """What a node's own stack makes of a packet."""

    before: Packet
    after: Packet


class TraceSwitch(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag="traceSwitch"
):
    """Where a packet goes that enters the switch by a port. The answer is a `SwitchTrace`."""

    packet: Packet
    in_port: Word
    mac_source: Mac
    mac_destination: Mac
    tunnel: tuple[IPv4Address, IPv4Address, Word] | None = None
    """Source, destination and key of the tunnel that it comes from."""
    endpoint: tuple[IPv4Address, Port] | None = None
    """Where a Service chooses, this endpoint; None: any."""
    assumed: Annotated[tuple[Connection, ...], Meta(max_length=MAX_PARTS)] = ()
    """Connections that the packets traced before would have made."""


class TraceHost(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag="traceHost"):
    """What the node's own stack does with a packet. The answer is a `HostTrace`."""

    packet: Packet
    comes_from: Literal["process", "outside", "switch"]
    """A process of the node itself, the network around it, or the node's own switch."""
    assumed: Annotated[tuple[Translation, ...], Meta(max_length=MAX_PARTS)] = ()
    """What the stack has made of packets traced before; their replies are translated back."""


class CheckNode(msgspec.Struct, frozen=True, omit_defaults=True, tag="checkNode"):
    """What is wrong with the node. The answer is a `Checked`."""

    peers: Annotated[tuple[Peer, ...], Meta(max_length=MAX_PEERS)] = ()
    """Other nodes, to which it sends probes."""


class CapturePod(msgspec.Struct, frozen=True, omit_defaults=True, tag="capturePod"):
    """What passes the port of a pod. The answer is `Captured`."""

    port: Annotated[str, Meta(pattern=r"\Ap[a-z2-7]{14}\Z")]
    """The name of the pod's OVS port."""
    filter: Annotated[str, Meta(max_length=MAX_FILTER)] = ""
    """As in pcap-filter(7)."""
    packets: Annotated[int, Meta(ge=1, le=MAX_CAPTURE_PACKETS)] = 100
    seconds: Annotated[int, Meta(ge=1, le=MAX_CAPTURE_SECONDS)] = 10


Question: TypeAlias = TraceSwitch | TraceHost | CheckNode | CapturePod


class Asked(msgspec.Struct, frozen=True):
    """A question with the name of its answer."""

    id: Annotated[str, Meta(pattern=r"\A[0-9a-f]{16}\Z")]
    question: msgspec.Raw
    """A `Question`; perhaps of a kind that only newer versions know."""


class NodeQuestions(msgspec.Struct, frozen=True):
    """What the controller wants to know of a node now (`paths.QUESTIONS`)."""

    questions: Annotated[tuple[Asked, ...], Meta(max_length=MAX_QUESTIONS)]


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """A flow that the packet met."""

    table: Byte
    cookie: Cookie
    priority: Annotated[int, Meta(ge=0, lt=1 << 16)]
    depth: Annotated[int, Meta(ge=0, lt=1 << 8)] = 0
    """More than 0: in a resubmit, after which the flow before goes on."""


class Part(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel"):
    """The flows from one conntrack lookup to the next."""

    steps: Annotated[tuple[Step, ...], Meta(min_length=1, max_length=MAX_STEPS)]
    packet: Packet
    """As the part began."""
    connection: Annotated[str, Meta(max_length=100)] = ""
    """What the lookup before found, for example `new` or `est|rpl`; empty: there was none."""
    is_known: bool = False
    """Whether conntrack has such a connection at this moment."""
    rule_from_pod: Word = 0
    rule_to_pod: Word = 0
    """The rules of policy that decided (`flows.policy.rule_id`): in this part; of a connection that
    conntrack knows, when it was opened. 0: none."""
    group: Word = 0
    """The group that chose in this part; 0: none did."""
    meters: Annotated[tuple[Word, ...], Meta(max_length=16)] = ()


class SwitchTrace(
    msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag="switchTrace"
):
    """What the switch does with the packet."""

    parts: Annotated[tuple[Part, ...], Meta(min_length=1, max_length=MAX_PARTS)]
    packet: Packet
    """As it leaves."""
    mac_source: Mac
    mac_destination: Mac
    out_port: Word | None = None
    """The ofport that it leaves by; None: it is dropped."""
    tunnel: IPv4Address | None = None
    """The other end of the tunnel that it leaves by."""
    assumed: Annotated[tuple[Connection, ...], Meta(max_length=MAX_PARTS)] = ()
    """Connections that the packet would have made, and those that were assumed before."""

    def __post_init__(self) -> None:
        """Raises `ValueError`."""
        if sum(len(part.steps) for part in self.parts) > MAX_STEPS:
            raise ValueError(f"parts: more than {MAX_STEPS:,} steps")


class HostTrace(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag="hostTrace"):
    """What the node's own stack does with the packet."""

    sentences: Annotated[tuple[Sentence, ...], Meta(max_length=MAX_LOOKUPS)]
    packet: Packet
    """As it leaves."""
    goes_to: Literal["switch", "process", "nobody", "outside", "dropped"]
    """`nobody`: to this host, where no process listens on the port."""
    first: Packet
    """As it began, with the source address that the stack chose for a process."""
    device: Annotated[str, Meta(max_length=15)] = ""
    """That it leaves by."""
    next_hop: IPv4Address | None = None
    """To which it goes `outside`; None: to the destination itself."""
    is_listener_unknown: bool = False
    """It goes to a `process` if one listens; nobody knows whether one does."""


class Checked(msgspec.Struct, frozen=True, tag="checked"):
    """What was found on the node."""

    found: NodeFindings


class Captured(msgspec.Struct, frozen=True, omit_defaults=True, rename="camel", tag="captured"):
    """Packets of a pod."""

    pcap: Annotated[bytes, Meta(max_length=MAX_CAPTURE)]
    """A pcap file; its last packet may be cut off."""
    is_cut: bool = False
    """Whether there was more."""


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """Why there is no answer."""

    reason: Sentence


Answer: TypeAlias = SwitchTrace | HostTrace | Checked | Captured | Failure


def encode(content: Question | NodeQuestions | Answer) -> bytes:
    """As JSON."""
    return msgspec.json.encode(content, enc_hook=str)


def decode_questions(data: bytes) -> NodeQuestions:
    """From JSON. Raises `msgspec.MsgspecError`."""
    asked: NodeQuestions = from_json(data, NodeQuestions)
    return asked


def decode_question(data: bytes) -> Question:
    """From JSON. Raises `msgspec.MsgspecError`, `ValueError`."""
    question: Question = from_json(data, Question)
    return question


def decode_answer(data: bytes) -> Answer:
    """From JSON. Raises `msgspec.MsgspecError`, `ValueError`."""
    answer: Answer = from_json(data, Answer)
    return answer
