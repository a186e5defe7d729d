"""The register fields, connection marks and zones, with their values.

Bits never change: an installed flow must mean the same to every version of Sluice.
"""

from enum import IntEnum
from typing import Final

from flows.layout import Bits, RegisterField


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
    PEER = 2
    """Another node, by the tunnel or by the hosts' routes. It has chosen the endpoint already."""
    GATEWAY = 3
    """The outside, through the node."""
    HOST = 4
    """The node itself."""
    EGRESS = 5
    """The outside, through the tunnel from the gateway of an egress address."""


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
    Bits(
        "EgressAddress",
        (64, 87),
        "the last bits of the egress address that the connection was opened with; 0: none",
    ),
)
RULE_FROM_POD, RULE_TO_POD, EGRESS_ADDRESS = CT_LABEL

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
        writers=("Classifier", "TunnelGuard", "GatewayGuard", "PeerGuard"),
        readers=(
            "UnSnat", "Conntrack", "ConntrackState", "IcmpError", "NewConnection", "NodeAddress",
            "ServiceChoice", "Direct", "DestinationGuard", "Forwarding", "Egress",
            "EgressRoute", "PolicyToPod",
        ),
        doc="the sender: 1 a pod, 2 another node, 3 the outside through the node, 4 the node,"
        " 5 the outside through an egress gateway",
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
        "ToPeer", "reg0", (10, 10),
        writers=("PeerWay",),
        readers=("Snat",),
        doc="to another node through this node's own stack, which routes it",
    ),
    RegisterField(
        "AttachmentTag", "reg0", (12, 31),
        writers=("Classifier",),
        readers=(),
        doc="the sandbox that sent the packet; gives its classifier flow a cookie of its own",
    ),
    RegisterField(
        "GuardSubnet", "reg3", (0, 31),
        writers=("GatewayGuard",),
        readers=("PeerGuard",),
        doc="this node's subnet, for the check of a source; 0: none (`flows.ways.subnet_number`)",
    ),
    RegisterField(
        "GuardNoEncap", "reg4", (0, 0),
        writers=("GatewayGuard",),
        readers=("PeerGuard",),
        doc="this node is in mode noEncap, for the check of a source",
    ),
    RegisterField(
        "Subnet", "reg3", (0, 31),
        writers=("Forwarding",),
        readers=("PeerWay",),
        doc="this node's subnet, for the way to a peer; 0: none (`flows.ways.subnet_number`)",
    ),
    RegisterField(
        "NoEncap", "reg4", (0, 0),
        writers=("Forwarding",),
        readers=("PeerWay",),
        doc="this node is in mode noEncap, for the way to a peer",
    ),
    RegisterField(
        "OutputPort", "reg1", (0, 31),
        writers=("Refuse", "Forwarding", "PeerWay", "EgressRoute"),
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
        "EgressAddress", "reg15", (8, 31),
        writers=("Egress", "EgressRoute"),
        readers=("EgressRoute", "Commit", "Snat"),
        doc="the last bits of the egress address of the connection; 0: it has none",
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
