"""The whole pipeline as data: tables, register fields, connection marks and zones, priorities.

A packet enters at `Classifier`, and is sent out at `Output` or dropped before. Numbers never
change: an installed flow must mean the same to every version of Sluice. The gaps are for later
tables. `docs/pipeline.md` is made from this file.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

from flows.family import FIELD_OF_IPV4
from flows.fields import FIELDS, PORT_FIELDS, WIDTHS
from flows.flow import (
    Action,
    Bucket,
    Ct,
    Flow,
    Goto,
    Learn,
    MatchValue,
    Move,
    MoveBits,
    Pop,
    Resubmit,
    SetField,
    match,
)


class PipelineError(ValueError):
    """The layout, or a flow, breaks the rules that this module declares."""


class Feature(IntEnum):
    """The writer of a flow: the first byte of its cookie. Numbers are never reused.

    No feature has the number 0, because `ovs-ofctl add-flow` uses the cookie 0 by default.
    """

    MISS = 1
    CLASSIFY = 2
    ARP = 3
    CONNTRACK = 4
    FORWARDING = 5
    OUTPUT = 6
    SERVICES = 7
    POLICY = 8
    STATE = 9
    LEARNED = 10
    DIRECT = 11


class Priority(IntEnum):
    """Bands of priority, the same in all tables. Equal matches within one band are an error."""

    MISS = 0
    DEFAULT = 100
    """A whole class of traffic, or the outside."""
    RANGE = 150
    """A whole range of the cluster: addresses in it that no node or Service has."""
    SHARED = 200
    """One for each peer node, Service or other object; the same flows on all nodes."""
    OWN_RANGE = 250
    """The node's own pod range. It goes before the shared flow that forwards to it as to a peer."""
    OVERRIDE = 300
    """Exceptions to all bands above."""
    LOCAL = 400
    """One for each attachment, or for an address of the node."""
    GUARD = 500
    """Drops that no other flow overrides."""
    PREFIX = 1_000
    """Plus the length of a prefix of addresses: the longest prefix decides."""
    POD_RANGE = 1_200
    """The whole pod range as members of a set."""
    OUTSIDERS = 1_210
    """Addresses of the pod range that no pod has."""
    MEMBER = 1_220
    """An address that is a member of a set by name."""


@dataclass(frozen=True)
class RegisterField:
    """A named field of a packet register.

    `bits` is (first, last), inclusive, of the 32-bit register; a field of 64 bits has a pair of
    registers (`xreg4` is `reg8` and `reg9`) as a whole. A field is live from the first table that
    writes it to the last table that reads it; two live fields must not share a bit.
    """

    name: str
    register: str
    bits: tuple[int, int]
    writers: tuple[str, ...]
    readers: tuple[str, ...]
    doc: str

    @property
    def mask(self) -> int:
        """The field's bits in place."""
        first, last = self.bits
        return (1 << (last + 1)) - (1 << first)

    def value(self, number: int) -> tuple[int, int]:
        """`number` in this field as (value, mask) of the whole register."""
        placed = number << self.bits[0]
        if placed & ~self.mask:
            raise PipelineError(f"{number:#x} does not fit {self.name} (bits {self.bits})")
        return placed, self.mask

    @property
    def words(self) -> tuple[tuple[str, int], ...]:
        """Its registers of 32 bits, the high one first, and how far each is shifted."""
        if not self.register.startswith("x"):
            return ((self.register, 0),)
        first = 2 * int(self.register.removeprefix("xreg"))
        return (f"reg{first}", 32), (f"reg{first + 1}", 0)

    def placed(self, given: MatchValue) -> Iterable[tuple[str, int, int]]:
        """A value of this field, or (value, mask), as (register, value, mask) of 32 bits each."""
        value, bits = given if isinstance(given, tuple) else (given, self.mask >> self.bits[0])
        value, mask = self.value(value)[0], self.value(bits)[0]
        for register, shift in self.words:
            if part := mask >> shift & 0xFFFF_FFFF:
                yield register, value >> shift & 0xFFFF_FFFF, part


@dataclass(frozen=True)
class Table:
    """One table. `match`, `reads` and `writes` name fields, `next` the tables that may come next.

    `reads` has the register fields that actions copy.

    `miss` is the next table of a packet that no flow matches, or "drop". The miss is a flow
    (priority 0), so it has a counter and a reason.
    """

    number: int
    name: str
    doc: str
    writers: tuple[Feature, ...]
    match: tuple[str, ...]
    writes: tuple[str, ...] = ()
    next: tuple[str, ...] = ()
    miss: str = "drop"
    miss_doc: str = ""
    max_flows: int | None = None
    """The most flows that the table holds. One more evicts a flow with a timeout, from the largest
    set of flows that have one value of `evict_by`."""
    evict_by: str = ""
    """The register field that divides the flows into sets for eviction."""
    reads: tuple[str, ...] = ()
    is_subroutine: bool = False
    """Packets come here only by resubmit, from any table that names it as next, and return."""


@dataclass(frozen=True)
class Bits:
    """Some bits of ct_mark or ct_label, by name."""

    name: str
    bits: tuple[int, int]
    doc: str

    @property
    def mask(self) -> int:
        """The bits in place."""
        first, last = self.bits
        return (1 << (last + 1)) - (1 << first)

    def value(self, number: int) -> tuple[int, int]:
        """The low bits of `number`, as many as fit, as (value, mask) of the whole field."""
        return (number << self.bits[0]) & self.mask, self.mask


class Verdict(IntEnum):
    """Values of the register fields `Verdict` and `StepAction`: what policy decided so far."""

    UNDECIDED = 0
    ACCEPT = 1
    DENY = 2
    PASS = 3
    """The rest of this tier is skipped."""


class Pass(IntEnum):
    """Values of the register field `Pass`: which state of the policies a packet is judged by."""

    OLD = 0
    NEW = 1


class Source(IntEnum):
    """Values of the register field `Source`: the sender of a packet, by its ingress port."""

    POD = 1
    TUNNEL = 2
    GATEWAY = 3
    """The outside, through the node."""
    HOST = 4
    """The node itself."""


CT_ZONE: Final = 100
"""The conntrack zone of all connections. One zone: a second costs 10 to 15 % CPU."""
SNAT_ZONE: Final = 101
"""For the SNAT of connections that need DNAT and SNAT, which one zone cannot do."""

CT_MARK: Final = (
    Bits("FromService", (0, 0), "translated by a Service; its replies must be translated back"),
    Bits("Blocked", (1, 1), "cut by policy after it was established, in both directions"),
    Bits("NeedsSnat", (2, 2), "passes the SNAT zone in both directions"),
    Bits("Known", (3, 3), "metered and committed; it may still be +new while there is no reply"),
    Bits(
        "Endpoint",
        (16, 31),
        "the last bits of the endpoint address that a Service translated it to",
    ),
)
ENDPOINT: Final = next(bits for bits in CT_MARK if bits.name == "Endpoint")
FROM_SERVICE, BLOCKED, NEEDS_SNAT, KNOWN = (
    next(bits.mask for bits in CT_MARK if bits.name == name)
    for name in ("FromService", "Blocked", "NeedsSnat", "Known")
)
CT_LABEL: Final = (
    Bits("RuleFromPod", (0, 31), "the rule of the policy from the pod that allowed the connection"),
    Bits("RuleToPod", (32, 63), "the rule of the policy to the pod that allowed the connection"),
)
RULE_FROM_POD, RULE_TO_POD = CT_LABEL

_VERDICT_TABLES: Final = (
    "PolicyFromPod", "PolicyFromPodAgain", "PolicyFromPodVerdict",
    "PolicyToPod", "PolicyToPodAgain", "PolicyToPodVerdict",
)  # fmt: skip
"""The tables that begin and end a judgement, and reset its register fields."""
_PASS_TABLES: Final = (
    "IsolationFromPod", "IsolationToPod",
    "PolicyWalk", "PolicyPeers", "PolicyPorts", "PolicyDenials",
)  # fmt: skip
"""The tables whose flows may belong to the old or the new state of a change (`transition`)."""

REGISTERS: Final = (
    RegisterField(
        "Source", "reg0", (0, 3),
        writers=("Classifier", "GatewayGuard"),
        readers=(
            "UnSnat", "ConntrackState", "IcmpError", "NewConnection", "NodeAddress",
            "ServiceChoice", "Direct", "DestinationGuard", "Forwarding", "PolicyToPod",
        ),
        doc="the sender: 1 a pod, 2 the tunnel, 3 the outside through the node, 4 the node itself",
    ),
    RegisterField(
        "NodeAddress", "reg0", (4, 4),
        writers=("NodeAddress",),
        readers=("ServiceChoice",),
        doc="the destination is an address of this node, where NodePorts are",
    ),
    RegisterField(
        "Hairpin", "reg0", (5, 5),
        writers=("Hairpin",),
        readers=("Commit", "Snat", "Output"),
        doc="the packet leaves by the port it came in by",
    ),
    RegisterField(
        "Refused", "reg0", (6, 6),
        writers=("Refuse",),
        readers=("Commit", "Snat"),
        doc="no endpoint: the node's own stack must refuse the packet",
    ),
    RegisterField(
        "SourcePortConflict", "reg0", (7, 7),
        writers=("ReplyTuple",),
        readers=("Commit",),
        doc="the source port must change: a Service connection has the same reply tuple",
    ),
    RegisterField(
        "ToItself", "reg0", (8, 8),
        writers=("PolicyFromPod",),
        readers=("PolicyToPod",),
        doc="a pod sends to itself, through a Service: always allowed",
    ),
    RegisterField(
        "Rejudged", "reg0", (9, 9),
        writers=("DestinationGuard",),
        readers=(
            "PolicyFromPod", "PolicyFromPodVerdict", "PolicyToPod", "PolicyToPodVerdict", "Commit",
        ),
        doc="a packet of an established connection that policy may cut",
    ),
    RegisterField(
        "AttachmentTag", "reg0", (12, 31),
        writers=("Classifier",),
        readers=(),
        doc="the sandbox that sent the packet; gives its classifier flow a cookie of its own",
    ),
    RegisterField(
        "OutputPort", "reg1", (0, 31),
        writers=("Refuse", "Forwarding"),
        readers=("IsolationToPod", "DeniedToPod", "Hairpin", "Commit", "Snat", "Output"),
        doc="the ofport to leave by",
    ),
    RegisterField(
        "Service", "reg2", (0, 31),
        writers=("ServiceChoice",),
        readers=("Affinity", "AffinityCheck", "EndpointChoice", "ServiceNat", "Groups"),
        doc="the Service port that the packet is for: the id of its group",
    ),
    RegisterField(
        "AddressSet", "reg6", (0, 31),
        writers=("ServiceAddress", "ServiceSource"),
        readers=("ServiceSource", "ServiceChoice"),
        doc="the set of addresses of a Service, and whether the set serves the client",
    ),
    RegisterField(
        "EndpointAddress", "reg3", (0, 31),
        writers=("Affinity", "EndpointChoice"),
        readers=("AffinityCheck", "ServiceNat"),
        doc="the endpoint that the client had before, or that the group chose",
    ),
    RegisterField(
        "EndpointPort", "reg4", (0, 15),
        writers=("Affinity", "EndpointChoice"),
        readers=("AffinityCheck", "ServiceNat"),
        doc="that endpoint's port",
    ),
    RegisterField(
        "TopologyZone", "reg5", (0, 31),
        writers=("Topology",),
        readers=("EndpointChoice",),
        doc="the node's topology zone, as a hash of its name",
    ),
    RegisterField(
        "Walk", "xreg4", (0, 63),
        writers=("IsolationFromPod", "IsolationToPod", "PolicyWalk"),
        readers=("PolicyWalk", "PolicyDenials"),
        doc="the rules to go through: those of a policy in one direction, or a page of many",
    ),
    RegisterField(
        "PeerSet", "xreg5", (0, 63),
        writers=("PolicyWalk", "PolicyPeers"),
        readers=("PolicyPeers",),
        doc="the peers of the step of the walk",
    ),
    RegisterField(
        "PortSet", "xreg6", (0, 63),
        writers=("PolicyWalk",),
        readers=("PolicyPorts",),
        doc="the ports of the step of the walk; 0: all ports of all protocols",
    ),
    RegisterField(
        "PolicyRule", "reg14", (0, 31),
        writers=("PolicyWalk",),
        readers=("PolicyPorts",),
        doc="the rule that the step of the walk belongs to",
    ),
    RegisterField(
        "Verdict", "reg15", (0, 1),
        writers=(*_VERDICT_TABLES, "PolicyWalk", "PolicyPorts", "PolicyTier"),
        readers=(
            "PolicyFromPodAgain", "PolicyFromPodVerdict", "PolicyToPodAgain", "PolicyToPodVerdict",
            "PolicyWalk", "PolicyPeers", "PolicyPorts", "PolicyTier", "PolicyDenials",
        ),
        doc="what the first rule that matches decides: 0 undecided, 1 accept, 2 deny, 3 pass",
    ),
    RegisterField(
        "StepAction", "reg15", (2, 3),
        writers=("PolicyWalk",),
        readers=("PolicyPorts",),
        doc="the verdict if the step of the walk matches",
    ),
    RegisterField(
        "Selected", "reg15", (4, 4),
        writers=(*_VERDICT_TABLES, "IsolationFromPod", "IsolationToPod"),
        readers=("PolicyFromPodVerdict", "PolicyToPodVerdict"),
        doc="any policy selects the pod",
    ),
    RegisterField(
        "Isolated", "reg15", (5, 5),
        writers=(*_VERDICT_TABLES, "IsolationFromPod", "IsolationToPod"),
        readers=(
            "PolicyFromPodAgain", "PolicyFromPodVerdict", "PolicyToPodAgain", "PolicyToPodVerdict",
        ),
        doc="a NetworkPolicy selects the pod: what is undecided is denied",
    ),
    RegisterField(
        "Pass", "reg15", (6, 6),
        writers=_VERDICT_TABLES,
        readers=_PASS_TABLES,
        doc="during a change of policies: 0 judges by the old ones, 1 by the new ones",
    ),
    RegisterField(
        "DecidedRule", "reg6", (0, 31),
        writers=(*_VERDICT_TABLES, "PolicyPorts", "PolicyTier"),
        readers=("PolicyDenials", "PolicyFromPodVerdict", "Commit"),
        doc="the rule that decided",
    ),
    RegisterField(
        "RuleFromPod", "reg7", (0, 31),
        writers=("PolicyFromPodVerdict",),
        readers=("Commit",),
        doc="the rule of the policy from the pod that allowed the connection",
    ),
)  # fmt: skip

_JUDGED: Final = ("Verdict", "Selected", "Isolated", "Pass", "DecidedRule")
"""The register fields that begin and end each judgement as 0."""
_TUPLE_FIELDS: Final = ("nw_src", "nw_dst", *PORT_FIELDS)
"""The fields that are exchanged to reverse the tuple of a packet."""

TABLES: Final = (
    Table(
        0, "Classifier",
        "Tells the kind of port that a packet came in by. Packets from any other port are dropped.",
        writers=(Feature.CLASSIFY,),
        match=("in_port",), writes=("Source", "AttachmentTag"),
        next=("SpoofGuard", "TunnelGuard", "GatewayGuard"),
        miss_doc="the port is not an attachment of this node",
    ),
    Table(
        10, "SpoofGuard",
        "A pod sends only from its own MAC and IP address.",
        writers=(Feature.CLASSIFY,),
        match=("in_port", "dl_src", "dl_type", "nw_src", "nw_proto",
               "arp_sha", "arp_spa", "icmpv6_type"),
        next=("RouterGuard",),
        miss_doc="not the pod's own MAC and address, or not a protocol that is carried",
    ),
    Table(
        12, "TunnelGuard",
        "Accepts tunnel packets from known peers only, and from each peer only its own pod range.",
        writers=(Feature.CLASSIFY,),
        match=("dl_type", "tun_src", "nw_src"),
        next=("UnSnat",),
        miss_doc="an unknown peer, or an inner source outside that peer's pod range",
    ),
    Table(
        14, "GatewayGuard",
        "Accepts packets from the node, and from outside through it, but no pod address as source.",
        writers=(Feature.CLASSIFY,),
        match=("dl_type", "dl_src", "nw_src"), writes=("Source",),
        next=("Arp", "UnSnat"),
        miss_doc="other traffic of the node's stack: IPv6, multicast",
    ),
    Table(
        16, "RouterGuard",
        "Pods send to the router's MAC only: no layer 2 switching, and no broadcast except ARP.",
        writers=(Feature.CLASSIFY,),
        match=("dl_dst", "dl_type"),
        next=("BroadcastGuard", "Arp", "UnSnat"),
        miss="UnSnat", miss_doc="the destination MAC is right",
    ),
    Table(
        18, "BroadcastGuard",
        "Multicast ARP must be sent to the broadcast address.",
        writers=(Feature.CLASSIFY,),
        match=("dl_dst",),
        next=("Arp",),
        miss="Arp", miss_doc="the destination MAC is right",
    ),
    Table(
        20, "Arp",
        "The switch answers ARP requests for the router's address and drops all other ARP.",
        writers=(Feature.ARP,),
        match=("dl_type", "arp_op", "arp_tpa"),
        writes=("dl_src", "dl_dst", "arp_op", "arp_sha", "arp_tha", "arp_spa", "arp_tpa"),
        miss_doc="ARP for anything but the router",
    ),
    Table(
        25, "UnSnat",
        "Undoes SNAT for replies: restores their original destination.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_dst", "Source"), next=("Conntrack",),
        miss="Conntrack", miss_doc="the destination is not an SNAT address",
    ),
    Table(
        30, "Conntrack",
        "Looks the connection up in conntrack, which also applies its translation.",
        writers=(Feature.CONNTRACK,),
        match=("in_port", "dl_type", "nw_frag"), next=("ConntrackState",),
        miss_doc="not IPv4",
    ),
    Table(
        32, "ConntrackState",
        "Sends established connections to the guard, and new ones to the flows that match layer 4.",
        writers=(Feature.CONNTRACK,),
        match=("ct_state", "ct_mark", "dl_type", "nw_proto", "icmp_type", "Source"),
        next=("IcmpError", "NewConnection", "DestinationGuard"),
        miss_doc="a packet without a conntrack state",
    ),
    Table(
        34, "IcmpError",
        "Accepts an ICMP error from a pod only about a connection of that pod.",
        writers=(Feature.CONNTRACK,),
        match=("ct_state", "ct_mark", "ct_nw_src", "ct_nw_dst", "in_port", "dl_type", "Source"),
        next=("DestinationGuard",),
        miss="DestinationGuard",
        miss_doc="from a node, a router, or a pod that its own node checked",
    ),
    Table(
        40, "NewConnection",
        "Drops connections that pods must not open, and meters new connections of each pod.",
        writers=(Feature.CONNTRACK,),
        match=("in_port", "dl_type", "nw_proto", "tp_src", "Source"),
        next=("NodeAddress",),
        miss="NodeAddress", miss_doc="from the tunnel or the gateway: not metered",
    ),
    Table(
        50, "NodeAddress",
        "Marks packets to an address of this node, where NodePorts are.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_dst", "Source"), writes=("NodeAddress",),
        next=("ServiceAddress", "DestinationGuard"),
        miss="ServiceAddress", miss_doc="not to an address of this node",
    ),
    Table(
        55, "ServiceAddress",
        "Finds the set of addresses of a Service, for Services with many addresses and ports.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_dst"), writes=("AddressSet",),
        next=("ServiceSource", "ServiceChoice"),
        miss="ServiceChoice", miss_doc="the address is in no set",
    ),
    Table(
        57, "ServiceSource",
        "Checks the client against `loadBalancerSourceRanges` of the set.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_src", "AddressSet"), writes=("AddressSet",),
        next=("ServiceChoice",),
        miss="ServiceChoice", miss_doc="the client is in none of the ranges",
    ),
    Table(
        60, "ServiceChoice",
        "Finds the Service port by address, or set of addresses, protocol and port.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_proto", "nw_src", "nw_dst", "tp_dst", "AddressSet", "NodeAddress",
               "Source"),
        writes=("Service",),
        next=("Affinity", "AffinityCheck", "Topology", "Refuse"),
        miss="Direct", miss_doc="not to a Service",
    ),
    Table(
        62, "Affinity",
        "Session affinity: the endpoint of the client's last connection, as a learned flow.",
        writers=(Feature.LEARNED,),
        match=("Service", "dl_type", "nw_src"), writes=("EndpointAddress", "EndpointPort"),
        miss_doc="no learned endpoint; processing continues after the resubmit",
        max_flows=8_192, evict_by="Service",
    ),
    Table(
        63, "AffinityCheck",
        "Checks that the learned endpoint is still an endpoint.",
        writers=(Feature.SERVICES,),
        match=("Service", "EndpointAddress", "EndpointPort"), next=("ServiceNat",),
        miss="Topology", miss_doc="no learned endpoint, or it is gone: choose one",
    ),
    Table(
        64, "Topology",
        "Loads the topology zone of this node.",
        writers=(Feature.SERVICES,),
        match=(), writes=("TopologyZone",), next=("EndpointChoice",),
        miss="EndpointChoice", miss_doc="the Node has no zone label",
    ),
    Table(
        66, "EndpointChoice",
        "A group chooses an endpoint; the bucket translates, or with affinity resubmits to"
        " ServiceNat.",
        writers=(Feature.SERVICES,),
        match=("Service", "TopologyZone"),
        writes=("EndpointAddress", "EndpointPort", "ct_mark"),
        next=("ServiceNat", "DestinationGuard", "Refuse"),
        miss_doc="the Service port is being removed",
    ),
    Table(
        70, "ServiceNat",
        "With affinity: learns the endpoint for the client, and translates to it.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_proto", "Service", "EndpointAddress", "EndpointPort"),
        writes=("ct_mark",), next=("DestinationGuard",),
        miss_doc="the chosen endpoint is gone",
    ),
    Table(
        71, "Direct",
        "A direct connection to a port where Services have endpoints: its replies could match a"
        " translated connection.",
        writers=(Feature.DIRECT,),
        match=("dl_type", "nw_proto", "nw_dst", "tp_dst", "Source"), writes=_TUPLE_FIELDS,
        next=("ReplyTuple", "DestinationGuard"),
        miss="DestinationGuard", miss_doc="not to an endpoint of a Service",
    ),
    Table(
        72, "ReplyTuple",
        "Looks up the reversed tuple to detect a reply-tuple conflict, then restores the packet.",
        writers=(Feature.DIRECT,),
        match=("dl_type", "nw_proto", "ct_state", "ct_mark"),
        writes=("SourcePortConflict", *_TUPLE_FIELDS),
        next=("DestinationGuard",),
        miss_doc="neither TCP, UDP nor SCTP",
    ),
    Table(
        74, "DestinationGuard",
        "Drops traffic to destinations that pods must not reach, with or without a Service. Every"
        " packet passes, so that a new guard also applies to old connections.",
        writers=(Feature.CONNTRACK, Feature.POLICY),
        match=("ct_state", "ct_mark", "dl_type", "nw_proto", "nw_dst", "nw_frag", "tp_dst",
               "Source"),
        writes=("Rejudged",), next=("PolicyFromPod", "Forwarding"),
        miss="PolicyFromPod", miss_doc="a new connection to a permitted destination",
    ),
    Table(
        78, "Refuse",
        "No endpoint: sends the packet to the node's own stack, which refuses it.",
        writers=(Feature.SERVICES,),
        match=("in_port", "dl_type"), writes=("dl_src", "dl_dst", "Refused", "OutputPort"),
        next=("Hairpin",),
        miss_doc="not IPv4",
    ),
    Table(
        80, "PolicyFromPod",
        "Policy from the pod: has new connections judged.",
        writers=(Feature.POLICY,),
        match=("ct_state", "in_port", "dl_type", "nw_proto", "nw_dst", "tp_dst", "Rejudged"),
        writes=("ToItself", *_JUDGED),
        next=("PolicyFromPodAgain", "IsolationFromPod", "PolicyFromPodVerdict", "Forwarding"),
        miss="Forwarding", miss_doc="not a new connection",
    ),
    Table(
        84, "PolicyFromPodAgain",
        "During a change of policies: what the old ones accept is judged by the new ones, too.",
        writers=(Feature.POLICY,),
        match=("Verdict", "Isolated"), writes=_JUDGED,
        next=("IsolationFromPod",),
        miss_doc="denied by the old policies; processing continues after the resubmit",
    ),
    Table(
        86, "IsolationFromPod",
        "The policies from the pod that select it, in their order.",
        writers=(Feature.POLICY,),
        match=("in_port", "Pass"), writes=("Walk", "Selected", "Isolated"),
        next=("PolicyWalk", "PolicyTier"),
        miss_doc="no policy selects the pod; processing continues after the resubmit",
    ),
    Table(
        90, "PolicyFromPodVerdict",
        "Lets pass what policy from the pod allows, and remembers the rule.",
        writers=(Feature.POLICY,),
        match=("dl_type", "Verdict", "Selected", "Isolated", "Rejudged"), reads=("DecidedRule",),
        writes=("ct_mark", "RuleFromPod", *_JUDGED),
        next=("DeniedFromPod", "Forwarding"),
        miss="DeniedFromPod", miss_doc="denied",
    ),
    Table(
        92, "DeniedFromPod",
        "Drops and counts what policy from the pod denies, for each pod.",
        writers=(Feature.POLICY,),
        match=("in_port",),
        miss_doc="denied, but the pod has no policies any more",
    ),
    Table(
        100, "Forwarding",
        "Routes by destination: a local pod, the pod range of a peer, the node, or the outside.",
        writers=(Feature.FORWARDING,),
        match=("dl_type", "nw_dst", "ct_state", "ct_mark", "Source"),
        writes=("dl_src", "dl_dst", "tun_dst", "OutputPort"),
        next=("PolicyToPod",),
        miss_doc="no route",
    ),
    Table(
        110, "PolicyToPod",
        "Policy to the pod: has new connections judged.",
        writers=(Feature.POLICY,),
        match=("ct_state", "dl_type", "nw_src", "Source", "ToItself", "Rejudged"), writes=_JUDGED,
        next=("PolicyToPodAgain", "IsolationToPod", "PolicyToPodVerdict", "Hairpin"),
        miss="Hairpin", miss_doc="not a new connection",
    ),
    Table(
        111, "PolicyToPodAgain",
        "During a change of policies: what the old ones accept is judged by the new ones, too.",
        writers=(Feature.POLICY,),
        match=("Verdict", "Isolated"), writes=_JUDGED,
        next=("IsolationToPod",),
        miss_doc="denied by the old policies; processing continues after the resubmit",
    ),
    Table(
        112, "IsolationToPod",
        "The policies to the pod that select it, in their order.",
        writers=(Feature.POLICY,),
        match=("OutputPort", "Pass"), writes=("Walk", "Selected", "Isolated"),
        next=("PolicyWalk", "PolicyTier"),
        miss_doc="no policy selects the pod; processing continues after the resubmit",
    ),
    Table(
        114, "PolicyToPodVerdict",
        "Lets pass what policy to the pod allows.",
        writers=(Feature.POLICY,),
        match=("dl_type", "Verdict", "Selected", "Isolated", "Rejudged"),
        writes=("ct_mark", *_JUDGED),
        next=("Hairpin", "DeniedToPod"),
        miss="DeniedToPod", miss_doc="denied",
    ),
    Table(
        115, "Hairpin",
        "Detects packets that leave by the port they came in by.",
        writers=(Feature.OUTPUT,),
        match=("in_port", "OutputPort"), writes=("Hairpin",), next=("Commit",),
        miss="Commit", miss_doc="leaves by another port",
    ),
    Table(
        116, "DeniedToPod",
        "Drops and counts what policy to the pod denies, for each pod.",
        writers=(Feature.POLICY,),
        match=("OutputPort",),
        miss_doc="denied, but the pod has no policies any more",
    ),
    Table(
        120, "Commit",
        "Commits a new connection that was allowed.",
        writers=(Feature.CONNTRACK, Feature.DIRECT, Feature.POLICY),
        match=("in_port", "dl_type", "nw_proto", "nw_src", "ct_state", "ct_mark", "Refused",
               "Hairpin", "SourcePortConflict", "OutputPort", "Rejudged"),
        reads=("RuleFromPod", "DecidedRule"), writes=("ct_mark", "ct_label"), next=("Snat",),
        miss="Snat", miss_doc="the connection is already committed",
    ),
    Table(
        130, "Snat",
        "SNAT for connections whose replies would otherwise not return through this switch.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "ct_state", "ct_mark", "Refused", "Hairpin", "OutputPort"),
        next=("Output",),
        miss="Output", miss_doc="no SNAT needed",
    ),
    Table(
        140, "Output",
        "Sends the packet out. One flow per port, so that its counter counts the port.",
        writers=(Feature.OUTPUT,),
        match=("OutputPort", "Hairpin"),
        miss_doc="no output port was set",
    ),
    Table(
        150, "PolicyWalk",
        "Goes through the rules of a policy in one direction; the first that matches decides.",
        writers=(Feature.POLICY,),
        match=("Walk", "Verdict", "Pass"),
        writes=("Walk", "PeerSet", "PortSet", "PolicyRule", "StepAction", "Verdict"),
        next=("PolicyWalk", "PolicyPeers", "PolicyPorts", "PolicyDenials"),
        miss_doc="no packet comes here: a flow with a higher priority matches all",
        is_subroutine=True,
    ),
    Table(
        152, "PolicyPeers",
        "Whether the other end is among the peers of the step of the walk.",
        writers=(Feature.POLICY,),
        match=("dl_type", "nw_src", "nw_dst", "PeerSet", "Verdict", "Pass"), writes=("PeerSet",),
        next=("PolicyPeers", "PolicyPorts"),
        miss_doc="not one of these peers, or decided already; processing continues after the"
        " resubmit",
        is_subroutine=True,
    ),
    Table(
        154, "PolicyPorts",
        "Whether the port is among the ports of the step of the walk: then the step decides.",
        writers=(Feature.POLICY,),
        match=("dl_type", "nw_proto", "nw_frag", "tp_dst", "PortSet", "Verdict", "StepAction",
               "Pass"),
        reads=("StepAction", "PolicyRule"), writes=("Verdict", "DecidedRule"),
        miss_doc="not one of these ports, or decided already; processing continues after the"
        " resubmit",
        is_subroutine=True,
    ),
    Table(
        156, "PolicyDenials",
        "Counts the denials of each rule that denies.",
        writers=(Feature.POLICY,),
        match=("Walk", "DecidedRule", "Verdict", "Pass"),
        miss_doc="not denied here; processing continues after the resubmit",
        is_subroutine=True,
    ),
    Table(
        158, "PolicyTier",
        "Ends a tier: after a pass, the next tier decides.",
        writers=(Feature.POLICY,),
        match=("Verdict",), writes=("Verdict", "DecidedRule"),
        miss_doc="no rule passed; processing continues after the resubmit",
        is_subroutine=True,
    ),
    Table(
        250, "State",
        "No packet comes here: the flows carry digests of what each scope should hold.",
        writers=(Feature.STATE,),
        match=(),
    ),
    Table(
        252, "Groups",
        "No packet comes here: the flows carry digests of groups, because groups have no cookie.",
        writers=(Feature.STATE,),
        match=("Service",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Tables and register fields by name, checked against each other.

    Raises `PipelineError` for a number or name that is used twice, a table whose next table has a
    lower number or does not exist, a register field that table and field do not both declare, and
    two live register fields that share a bit.
    """

    tables: Mapping[str, Table]
    registers: Mapping[str, RegisterField]

    @classmethod
    def of(cls, tables: Iterable[Table], registers: Iterable[RegisterField]) -> "Layout":
        """Check and index."""
        tables, registers = tuple(tables), tuple(registers)
        layout = cls({t.name: t for t in tables}, {r.name: r for r in registers})
        for taken, kind in (
            (Counter(table.number for table in tables), "table number"),
            (Counter(table.name for table in tables), "table name"),
            (Counter(register.name for register in registers), "register field"),
        ):
            for value, times in taken.items():
                if times > 1:
                    raise PipelineError(f"{kind} {value} is used twice")
        for table in tables:
            layout._check_table(table)
        for index, register in enumerate(registers):
            layout._check_register(register)
            for other in registers[index + 1 :]:
                layout._check_apart(register, other)
        return layout

    @cached_property
    def by_number(self) -> Mapping[int, Table]:
        """The tables by number."""
        return {table.number: table for table in self.tables.values()}

    def live(self, register: RegisterField) -> tuple[int, int]:
        """The numbers of the first and the last table in which the field is live.

        A subroutine counts as the tables that packets come from.
        """
        numbers = [
            number
            for name in (*register.writers, *register.readers)
            for number in self._places[name]
        ]
        return min(numbers), max(numbers)

    def is_live(self, register: RegisterField, table: int) -> bool:
        """Whether the field is live in a table. A subroutine has the fields that it declares."""
        if table not in self.by_number:
            return False
        found = self.by_number[table]
        if found.is_subroutine:
            return register.name in (*found.match, *found.reads, *found.writes)
        first, last = self.live(register)
        return first <= table <= last

    @cached_property
    def _places(self) -> Mapping[str, frozenset[int]]:
        """By table, its number; for a subroutine, the numbers of the tables that come to it."""
        places = {
            name: frozenset() if table.is_subroutine else frozenset([table.number])
            for name, table in self.tables.items()
        }
        # A subroutine has a higher number than all that come to it, but for itself.
        for table in sorted(self.tables.values(), key=lambda table: table.number):
            for name in table.next:
                if self.tables[name].is_subroutine:
                    places[name] |= places[table.name]
        return places

    def _check_table(self, table: Table) -> None:
        for name in (*table.next, *(() if table.miss == "drop" else (table.miss,))):
            if name not in self.tables:
                raise PipelineError(f"{table.name} goes on to {name}, which is no table")
            itself = table.is_subroutine and name == table.name
            if self.tables[name].number <= table.number and not itself:
                raise PipelineError(f"{table.name} goes backward to {name}")
            if table.is_subroutine and not self.tables[name].is_subroutine:
                raise PipelineError(f"{table.name} is a subroutine, and does not return but {name}")
        reads = (*table.match, *table.reads)
        for names, role in ((reads, "readers"), (table.writes, "writers")):
            for name in names:
                if name in FIELDS or name in PORT_FIELDS:
                    continue
                if name not in self.registers:
                    raise PipelineError(f"{table.name} names {name}, which is no field")
                if table.name not in getattr(self.registers[name], role):
                    raise PipelineError(f"{name} does not have {table.name} among its {role}")

    def _check_register(self, register: RegisterField) -> None:
        for name in (*register.writers, *register.readers):
            if name not in self.tables:
                raise PipelineError(f"{register.name} is used by {name}, which is no table")
        for name in register.writers:
            if register.name not in self.tables[name].writes:
                raise PipelineError(f"{name} does not have {register.name} in its writes")
        for name in register.readers:
            if register.name not in (*self.tables[name].match, *self.tables[name].reads):
                raise PipelineError(f"{name} does not have {register.name} in its match")

    def _check_apart(self, one: RegisterField, two: RegisterField) -> None:
        (first, last), (other_first, other_last) = self.live(one), self.live(two)
        shared = {
            word
            for word, _, mask in one.placed(one.mask >> one.bits[0])
            for other, _, bits in two.placed(two.mask >> two.bits[0])
            if word == other and mask & bits
        }
        if not shared:
            return
        if first <= other_last and other_first <= last:
            raise PipelineError(f"{one.name} and {two.name} share live bits of {one.register}")

    def flow(
        self,
        feature: Feature,
        table: str,
        priority: int,
        fields: Mapping[str, MatchValue],
        actions: Iterable[Action],
        reason: str,
    ) -> Flow:
        """A flow, checked against the declaration of its table. Raises `PipelineError`."""
        stage = self.tables[table]
        if feature not in stage.writers:
            raise PipelineError(f"{feature.name} is no declared writer of {table}")
        for name in fields:
            if not _declared(name, stage.match):
                raise PipelineError(f"{table} does not declare a match on {name}")
        actions = tuple(actions)
        for action in actions:
            self._check_action(stage, action)
        return Flow(
            int(feature), stage.number, int(priority), match(self._resolve(fields)), actions, reason
        )

    def bucket(self, table: str, number: int, weight: int, actions: Iterable[Action]) -> Bucket:
        """A bucket of a group that flows of `table` use. Raises `PipelineError`."""
        actions = tuple(actions)
        for action in actions:
            self._check_action(self.tables[table], action)
        return Bucket(number, weight, actions)

    def learn(
        self, table: str, priority: int, cookie: int, idle_timeout: int,
        match: Iterable[str], load: Iterable[str],
    ) -> Learn:  # fmt: skip
        """The action that learns a flow of `table` from a packet; see `flows.flow.Learn`.

        Raises `PipelineError` for fields that the table does not declare.
        """
        stage = self.tables[table]
        match, load = tuple(match), tuple(load)
        for names, declared in ((match, stage.match), (load, stage.writes)):
            if not all(_declared(name, declared) for name in names):
                raise PipelineError(f"{table} does not declare all of {', '.join(names)}")
        registers = [
            tuple(self.registers[n].register if n in self.registers else n for n in names)
            for names in (match, load)
        ]
        return Learn(stage.number, int(priority), cookie, idle_timeout, *registers)

    def load(self, name: str, value: int) -> SetField:
        """The action that writes a register field."""
        register = self.registers[name]
        placed, mask = register.value(value)
        whole = mask == (1 << WIDTHS[register.register]) - 1
        return SetField(register.register, placed, None if whole else mask)

    def loads(self, **values: int) -> list[SetField]:
        """The actions that write register fields: one for each register of 32 bits."""
        registers: dict[str, tuple[int, int]] = {}
        for name, number in values.items():
            field = self.registers[name]
            value, mask = field.value(number)
            old, old_mask = registers.get(field.register, (0, 0))
            registers[field.register] = (old | value, old_mask | mask)
        return [
            SetField(name, value, None if mask == (1 << WIDTHS[name]) - 1 else mask)
            for name, (value, mask) in registers.items()
        ]

    def move(self, source: str, destination: str | Bits) -> MoveBits:
        """The action that copies a register field to another, or to bits of ct_label."""
        field = self.registers[source]
        first, last = field.bits
        if isinstance(destination, Bits):
            to, at = "ct_label", destination.bits[0]
        else:
            target = self.registers[destination]
            to, at = target.register, target.bits[0]
        return MoveBits(field.register, first, to, at, last + 1 - first)

    def resubmit(self, name: str) -> Resubmit:
        """The action that looks the packet up in a table and returns."""
        return Resubmit(self.tables[name].number)

    def goto(self, name: str) -> Goto:
        """The action that continues at a table."""
        return self._gotos[name]

    @cached_property
    def _gotos(self) -> Mapping[str, Goto]:
        # Many flows share one object.
        return {name: Goto(table.number) for name, table in self.tables.items()}

    def misses(self) -> Iterable[Flow]:
        """The miss of every table."""
        for table in self.tables.values():
            actions = () if table.miss == "drop" else (self.goto(table.miss),)
            reason = table.miss_doc or "no packet comes here"
            yield Flow(int(Feature.MISS), table.number, int(Priority.MISS), (), actions, reason)

    def _resolve(self, fields: Mapping[str, MatchValue]) -> dict[str, MatchValue]:
        resolved: dict[str, MatchValue] = {}
        for name, given in fields.items():
            if name in FIELDS:
                resolved[name] = given
                continue
            for register, value, mask in self.registers[name].placed(given):
                other = resolved.get(register, (0, 0))
                if isinstance(other, tuple):
                    resolved[register] = (value | other[0], mask | other[1])
        return resolved

    def check(self, table: str, action: Action) -> None:
        """Raises `PipelineError` if a table does not declare what this action needs."""
        self._check_action(self.tables[table], action)

    def _check_action(self, stage: Table, action: Action) -> None:
        match action:
            case Goto(table) | Resubmit(table) | Ct(table=int(table)) if not any(
                self.tables[name].number == table for name in stage.next
            ):
                raise PipelineError(f"{stage.name} does not declare table {table} as next")
            case SetField(name, _, mask) if name.startswith(("reg", "xreg")):
                self._check_written(stage, name, (1 << WIDTHS[name]) - 1 if mask is None else mask)
            case MoveBits(_, _, name, first, bits) if name.startswith("reg"):
                self._check_written(stage, name, (1 << bits) - 1 << first)
            case SetField(name) | Move(_, name) | MoveBits(destination=name) | Pop(name) if (
                not _declared(name, stage.writes)
            ):
                raise PipelineError(f"{stage.name} does not declare that it writes {name}")
            case Ct(exec=fields):
                for field in fields:
                    self._check_action(stage, field)

    def _check_written(self, stage: Table, name: str, mask: int) -> None:
        written = 0
        for register in map(self.registers.get, stage.writes):
            if register is not None and register.register == name:
                written |= register.mask
        if mask & ~written:
            raise PipelineError(f"{stage.name} does not declare all it writes of {name}")


def _declared(name: str, fields: Collection[str]) -> bool:
    """Whether a table declares a field. The IPv4 name of a field stands for all families."""
    return name in fields or FIELD_OF_IPV4.get(name) in fields


LAYOUT: Final = Layout.of(TABLES, REGISTERS)
