"""The whole pipeline as data: tables, register fields, connection marks and zones, priorities.

A packet enters at `Classifier`, and leaves at `Output` or by a drop. Numbers are fixed for ever,
with gaps for what is to come: an installed flow must mean the same to every version of Sluice.
The page made from this file is `docs/pipeline.md`.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from typing import Final

from flows.family import FIELD_OF_IPV4
from flows.fields import FIELDS, PORT_FIELDS
from flows.flow import (
    Action,
    Bucket,
    Ct,
    Flow,
    Goto,
    Learn,
    MatchValue,
    Move,
    Pop,
    Resubmit,
    SetField,
    match,
)


class PipelineError(ValueError):
    """The layout, or a flow, breaks the rules that this module declares."""


class Feature(IntEnum):
    """Who writes flows: the first byte of every cookie. Numbers are never reused.

    0 is what `ovs-ofctl add-flow` uses unless told otherwise, so it is nobody's here.
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
    """What holds for a whole class of traffic, or for the outside world."""
    RANGE = 150
    """One of the cluster's ranges as a whole: what no node or Service has taken."""
    SHARED = 200
    """One per peer node, Service or other object; the same flows on all nodes."""
    OWN_RANGE = 250
    """The node's own range: shared flows name it as a peer's, which it is for all others."""
    OVERRIDE = 300
    """Exceptions: goes before all of the above."""
    LOCAL = 400
    """One per attachment, or the node's own address."""
    GUARD = 500
    """Refused whatever else matches."""


@dataclass(frozen=True)
class Register:
    """A named field of a packet register.

    `bits` is (first, last), inclusive, of the 32-bit register. It is live from the first table
    that writes it to the last one that reads it; no two live fields may share a bit.
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


@dataclass(frozen=True)
class Table:
    """One stage. `match` and `writes` name fields; `next` the tables a flow may go on to.

    `miss` is where a packet goes that no flow matches: a table's name, or "drop". The miss is a
    flow of its own (priority 0), so it is counted and can be explained.
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
    """At most so many flows. What would be one more takes the place of a flow that has a timeout,
    in the group of flows (by `evict_by`) that is the largest."""
    evict_by: str = ""
    """A register field: flows with one value of it are a group."""


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
        """The last bits of `number`, as many as there are, as (value, mask) of the whole field."""
        return (number << self.bits[0]) & self.mask, self.mask


class Source(IntEnum):
    """Values of the register field `Source`: who sent a packet, by the port it came in."""

    POD = 1
    TUNNEL = 2
    GATEWAY = 3
    """The outside world, through the node."""
    HOST = 4
    """The node itself."""


ZONE: Final = 100
"""The conntrack zone of everything a bridge forwards. One zone: a second costs 10 to 15 % CPU."""
SNAT_ZONE: Final = 101
"""For connections that need both DNAT and SNAT, which one zone cannot do."""

CT_MARK: Final = (
    Bits("FromService", (0, 0), "translated by a Service; its replies must be translated back"),
    Bits("Blocked", (1, 1), "refused by policy after it was established, in both directions"),
    Bits("NeedsSnat", (2, 2), "passes the SNAT zone in both directions"),
    Bits("Known", (3, 3), "counted and committed once, though it may still be +new: no answer yet"),
    Bits("PolicyEpoch", (8, 15), "the policy generation that let the connection in"),
    Bits("Endpoint", (16, 31), "the last bits of the address that a Service translated it to"),
)
ENDPOINT: Final = next(bits for bits in CT_MARK if bits.name == "Endpoint")
FROM_SERVICE, NEEDS_SNAT, KNOWN = (
    next(bits.mask for bits in CT_MARK if bits.name == name)
    for name in ("FromService", "NeedsSnat", "Known")
)
CT_LABEL: Final = (
    Bits("RuleFromPod", (0, 31), "the rule of the policy from the pod that let it in"),
    Bits("RuleToPod", (32, 63), "the rule of the policy to the pod that let it in"),
)

REGISTERS: Final = (
    Register(
        "Source", "reg0", (0, 3),
        writers=("Classifier", "GatewayGuard"),
        readers=(
            "UnSnat", "ConntrackState", "IcmpError", "NewConnection", "NodeAddress",
            "ServiceChoice", "Direct", "DestinationGuard", "Forwarding",
        ),
        doc="who sent it: 1 a pod, 2 the tunnel, 3 the world through the node, 4 the node itself",
    ),
    Register(
        "NodeAddress", "reg0", (4, 4),
        writers=("NodeAddress",),
        readers=("ServiceChoice",),
        doc="it is for this node's own address, where NodePorts are",
    ),
    Register(
        "Hairpin", "reg0", (5, 5),
        writers=("Hairpin",),
        readers=("Commit", "Snat", "Output"),
        doc="it leaves by the port it came in by",
    ),
    Register(
        "Refused", "reg0", (6, 6),
        writers=("Refuse",),
        readers=("Commit", "Snat"),
        doc="no endpoint: the node's own stack is to refuse it",
    ),
    Register(
        "PortTaken", "reg0", (7, 7),
        writers=("ReplyTuple",),
        readers=("Commit",),
        doc="its source port is to be moved: a connection to a Service gets the same answers",
    ),
    Register(
        "AttachmentTag", "reg0", (12, 31),
        writers=("Classifier",),
        readers=(),
        doc="which sandbox of the pod sent it; makes the classifier flow's cookie this sandbox's",
    ),
    Register(
        "OutputPort", "reg1", (0, 31),
        writers=("Refuse", "Forwarding"),
        readers=("Hairpin", "Commit", "Snat", "Output"),
        doc="the OpenFlow port to leave by",
    ),
    Register(
        "Service", "reg2", (0, 31),
        writers=("ServiceChoice",),
        readers=("Affinity", "AffinityCheck", "EndpointChoice", "ServiceNat", "Groups"),
        doc="the Service port it is for: the id of its group",
    ),
    Register(
        "AddressSet", "reg6", (0, 31),
        writers=("ServiceAddress", "ServiceSource"),
        readers=("ServiceSource", "ServiceChoice"),
        doc="the set of a Service's addresses that it is for, and whether it serves the client",
    ),
    Register(
        "EndpointAddress", "reg3", (0, 31),
        writers=("Affinity", "EndpointChoice"),
        readers=("AffinityCheck", "ServiceNat"),
        doc="the endpoint that its client has had before, or that the group chose",
    ),
    Register(
        "EndpointPort", "reg4", (0, 15),
        writers=("Affinity", "EndpointChoice"),
        readers=("AffinityCheck", "ServiceNat"),
        doc="that endpoint's port",
    ),
    Register(
        "Zone", "reg5", (0, 31),
        writers=("Topology",),
        readers=("EndpointChoice",),
        doc="the node's zone, as a hash of its name",
    ),
)  # fmt: skip

_TURNED: Final = ("nw_src", "nw_dst", *PORT_FIELDS)
"""What is exchanged to make of a packet its own answer."""

TABLES: Final = (
    Table(
        0, "Classifier",
        "Tells by which kind of port a packet came in. A port without a flow here sends nothing.",
        writers=(Feature.CLASSIFY,),
        match=("in_port",), writes=("Source", "AttachmentTag"),
        next=("SpoofGuard", "TunnelGuard", "GatewayGuard"),
        miss_doc="a port that no pod of this node stands behind",
    ),
    Table(
        10, "SpoofGuard",
        "A pod sends as itself only: its own MAC and address.",
        writers=(Feature.CLASSIFY,),
        match=("in_port", "dl_src", "dl_type", "nw_src", "nw_proto",
               "arp_sha", "arp_spa", "icmpv6_type"),
        next=("RouterGuard",),
        miss_doc="a pod that pretends to be somebody else, or speaks another protocol",
    ),
    Table(
        12, "TunnelGuard",
        "From the tunnel come known peers only, and from each only its own pods.",
        writers=(Feature.CLASSIFY,),
        match=("dl_type", "tun_src", "nw_src"),
        next=("UnSnat",),
        miss_doc="an unknown peer, or an inner source that is not that peer's",
    ),
    Table(
        14, "GatewayGuard",
        "The host sends to pods as itself or for the outside world, never as a pod.",
        writers=(Feature.CLASSIFY,),
        match=("dl_type", "dl_src", "nw_src"), writes=("Source",),
        next=("Arp", "UnSnat"),
        miss_doc="what the host's stack sends by itself: IPv6, multicast",
    ),
    Table(
        16, "RouterGuard",
        "What a pod sends is for the router's MAC: nothing is switched, and only ARP is broadcast.",
        writers=(Feature.CLASSIFY,),
        match=("dl_dst", "dl_type"),
        next=("BroadcastGuard", "Arp", "UnSnat"),
        miss="UnSnat", miss_doc="no bit of the destination MAC is wrong",
    ),
    Table(
        18, "BroadcastGuard",
        "ARP to a group of receivers is to all of them.",
        writers=(Feature.CLASSIFY,),
        match=("dl_dst",),
        next=("Arp",),
        miss="Arp", miss_doc="no bit of the destination MAC is wrong",
    ),
    Table(
        20, "Arp",
        "The switch answers for the router's address. Nothing else is asked or carried.",
        writers=(Feature.ARP,),
        match=("dl_type", "arp_op", "arp_tpa"),
        writes=("dl_src", "dl_dst", "arp_op", "arp_sha", "arp_tha", "arp_spa", "arp_tpa"),
        miss_doc="ARP for anything but the router",
    ),
    Table(
        25, "UnSnat",
        "Gives replies to a translated source their true destination back.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_dst", "Source"), next=("Conntrack",),
        miss="Conntrack", miss_doc="not to an address that sources are translated to",
    ),
    Table(
        30, "Conntrack",
        "Looks the connection up, and undoes or redoes its translation.",
        writers=(Feature.CONNTRACK,),
        match=("in_port", "dl_type", "nw_frag"), next=("ConntrackState",),
        miss_doc="not IPv4",
    ),
    Table(
        32, "ConntrackState",
        "Established connections pass the guard and are forwarded; new ones meet layer 4 flows.",
        writers=(Feature.CONNTRACK,),
        match=("ct_state", "ct_mark", "dl_type", "nw_proto", "icmp_type", "Source"),
        next=("IcmpError", "NewConnection", "DestinationGuard"),
        miss_doc="a packet that conntrack did not see",
    ),
    Table(
        34, "IcmpError",
        "Who may send an ICMP error about a connection? A pod only if it is one of its ends.",
        writers=(Feature.CONNTRACK,),
        match=("ct_state", "ct_mark", "ct_nw_src", "ct_nw_dst", "in_port", "dl_type", "Source"),
        next=("DestinationGuard",),
        miss="DestinationGuard", miss_doc="a node, a router, or a pod that its own node lets do it",
    ),
    Table(
        40, "NewConnection",
        "What no pod may open, and how many connections a pod may open.",
        writers=(Feature.CONNTRACK,),
        match=("in_port", "dl_type", "nw_proto", "tp_src", "Source"),
        next=("NodeAddress",),
        miss="NodeAddress", miss_doc="from the tunnel or the gateway: not metered",
    ),
    Table(
        50, "NodeAddress",
        "Is it for an address of this node, where NodePorts are?",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_dst", "Source"), writes=("NodeAddress",),
        next=("ServiceAddress", "DestinationGuard"),
        miss="ServiceAddress", miss_doc="not for an address of this node",
    ),
    Table(
        55, "ServiceAddress",
        "Which set of addresses is it for? For Services with many addresses and ports.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_dst"), writes=("AddressSet",),
        next=("ServiceSource", "ServiceChoice"),
        miss="ServiceChoice", miss_doc="an address that is in no set",
    ),
    Table(
        57, "ServiceSource",
        "Does the set serve this client? Only with `loadBalancerSourceRanges`.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_src", "AddressSet"), writes=("AddressSet",),
        next=("ServiceChoice",),
        miss="ServiceChoice", miss_doc="a client in none of the ranges",
    ),
    Table(
        60, "ServiceChoice",
        "Which Service port is it for? By address, or set of addresses, and port.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_proto", "nw_src", "nw_dst", "tp_dst", "AddressSet", "NodeAddress",
               "Source"),
        writes=("Service",),
        next=("Affinity", "AffinityCheck", "Topology", "Refuse"),
        miss="Direct", miss_doc="not for a Service",
    ),
    Table(
        62, "Affinity",
        "Which endpoint has this client had before? Learned from its last connection.",
        writers=(Feature.LEARNED,),
        match=("Service", "dl_type", "nw_src"), writes=("EndpointAddress", "EndpointPort"),
        miss_doc="a client without a connection in the time that counts: goes on without",
        max_flows=8_192, evict_by="Service",
    ),
    Table(
        63, "AffinityCheck",
        "Is it still an endpoint?",
        writers=(Feature.SERVICES,),
        match=("Service", "EndpointAddress", "EndpointPort"), next=("ServiceNat",),
        miss="Topology", miss_doc="none, or none any more: choose anew",
    ),
    Table(
        64, "Topology",
        "In which zone is this node?",
        writers=(Feature.SERVICES,),
        match=(), writes=("Zone",), next=("EndpointChoice",),
        miss="EndpointChoice", miss_doc="its Node names none",
    ),
    Table(
        66, "EndpointChoice",
        "The group that chooses an endpoint, which then goes to ServiceNat or is translated to.",
        writers=(Feature.SERVICES,),
        match=("Service", "Zone"),
        writes=("EndpointAddress", "EndpointPort", "ct_mark"),
        next=("ServiceNat", "DestinationGuard", "Refuse"),
        miss_doc="a Service port that is just being removed",
    ),
    Table(
        70, "ServiceNat",
        "With affinity: remembers the endpoint for its client, and translates to it.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "nw_proto", "Service", "EndpointAddress", "EndpointPort"),
        writes=("ct_mark",), next=("DestinationGuard",),
        miss_doc="a choice that is no endpoint",
    ),
    Table(
        71, "Direct",
        "Not by a Service, but to where one may send as well? Then its answers may be mistaken.",
        writers=(Feature.DIRECT,),
        match=("dl_type", "nw_proto", "nw_dst", "tp_dst", "Source"), writes=_TURNED,
        next=("ReplyTuple", "DestinationGuard"),
        miss="DestinationGuard", miss_doc="to nothing that is behind a Service",
    ),
    Table(
        72, "ReplyTuple",
        "Turned round it is an answer: to a connection that is known? Turned back, it goes on.",
        writers=(Feature.DIRECT,),
        match=("dl_type", "nw_proto", "ct_state", "ct_mark"),
        writes=("PortTaken", *_TURNED),
        next=("DestinationGuard",),
        miss_doc="neither TCP, UDP nor SCTP",
    ),
    Table(
        74, "DestinationGuard",
        "What no pod may reach, by a Service or without one. Every packet comes here, so that a new"
        " guard holds for old connections too.",
        writers=(Feature.CONNTRACK,),
        match=("ct_state", "dl_type", "nw_proto", "nw_dst", "nw_frag", "tp_dst", "Source"),
        next=("Forwarding",),
        miss="PolicyFromPod", miss_doc="a new connection to nothing that is forbidden",
    ),
    Table(
        78, "Refuse",
        "No endpoint: to the node's own stack, which refuses what the switch cannot.",
        writers=(Feature.SERVICES,),
        match=("in_port", "dl_type"), writes=("dl_src", "dl_dst", "Refused", "OutputPort"),
        next=("Hairpin",),
        miss_doc="not IPv4",
    ),
    Table(
        80, "PolicyFromPod",
        "What a pod may reach.",
        writers=(Feature.POLICY,),
        match=(), next=("Forwarding",),
        miss="Forwarding", miss_doc="no policy selects the pod",
    ),
    Table(
        100, "Forwarding",
        "By destination: a pod here, a peer node's range, the host, the outside world.",
        writers=(Feature.FORWARDING,),
        match=("dl_type", "nw_dst", "ct_state", "ct_mark", "Source"),
        writes=("dl_src", "dl_dst", "tun_dst", "OutputPort"),
        next=("PolicyToPod",),
        miss_doc="no way to go there",
    ),
    Table(
        110, "PolicyToPod",
        "Who may reach a pod.",
        writers=(Feature.POLICY,),
        match=(), next=("Hairpin",),
        miss="Hairpin", miss_doc="no policy selects the pod",
    ),
    Table(
        115, "Hairpin",
        "Does it leave by the port it came in by?",
        writers=(Feature.OUTPUT,),
        match=("in_port", "OutputPort"), writes=("Hairpin",), next=("Commit",),
        miss="Commit", miss_doc="by another port",
    ),
    Table(
        120, "Commit",
        "Remembers a new connection that everybody agreed to.",
        writers=(Feature.CONNTRACK, Feature.DIRECT),
        match=("in_port", "dl_type", "nw_proto", "nw_src", "ct_state", "ct_mark", "Refused",
               "Hairpin", "PortTaken", "OutputPort"),
        writes=("ct_mark",), next=("Snat",),
        miss="Snat", miss_doc="a packet of a connection already known",
    ),
    Table(
        130, "Snat",
        "Translates the source where replies would not come back otherwise.",
        writers=(Feature.SERVICES,),
        match=("dl_type", "ct_state", "ct_mark", "Refused", "Hairpin", "OutputPort"),
        next=("Output",),
        miss="Output", miss_doc="no translation needed",
    ),
    Table(
        140, "Output",
        "Out of the port chosen: one flow per port, so that its counter is the port's.",
        writers=(Feature.OUTPUT,),
        match=("OutputPort", "Hairpin"),
        miss_doc="no port was chosen",
    ),
    Table(
        250, "State",
        "No packet comes here: digests of what each scope should hold.",
        writers=(Feature.STATE,),
        match=(),
    ),
    Table(
        252, "Groups",
        "No packet comes here: digests of what each group should hold, which itself has no cookie.",
        writers=(Feature.STATE,),
        match=("Service",),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Tables and register fields by name, checked against each other when made.

    Raises `PipelineError` for a number or name used twice, a table that goes backward or to no
    table, a register field that table and field do not both declare, and two live register
    fields that share a bit.
    """

    tables: Mapping[str, Table]
    registers: Mapping[str, Register]

    @classmethod
    def of(cls, tables: Iterable[Table], registers: Iterable[Register]) -> "Layout":
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

    def live(self, register: Register) -> tuple[int, int]:
        """First and last number of the tables between which the field's bits are taken."""
        numbers = [self.tables[name].number for name in (*register.writers, *register.readers)]
        return min(numbers), max(numbers)

    def _check_table(self, table: Table) -> None:
        for name in (*table.next, *(() if table.miss == "drop" else (table.miss,))):
            if name not in self.tables:
                raise PipelineError(f"{table.name} goes on to {name}, which is no table")
            if self.tables[name].number <= table.number:
                raise PipelineError(f"{table.name} goes backward to {name}")
        for names, role in ((table.match, "readers"), (table.writes, "writers")):
            for name in names:
                if name in FIELDS or name in PORT_FIELDS:
                    continue
                if name not in self.registers:
                    raise PipelineError(f"{table.name} names {name}, which is no field")
                if table.name not in getattr(self.registers[name], role):
                    raise PipelineError(f"{name} does not have {table.name} among its {role}")

    def _check_register(self, register: Register) -> None:
        for names, side in ((register.writers, "writes"), (register.readers, "match")):
            for name in names:
                if name not in self.tables:
                    raise PipelineError(f"{register.name} is used by {name}, which is no table")
                if register.name not in getattr(self.tables[name], side):
                    raise PipelineError(f"{name} does not have {register.name} in its {side}")

    def _check_apart(self, one: Register, two: Register) -> None:
        (first, last), (other_first, other_last) = self.live(one), self.live(two)
        if one.register != two.register or not one.mask & two.mask:
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
        """A flow, held against what its table declares. Raises `PipelineError`."""
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
        """A choice of a group that flows of `table` send packets to. Raises `PipelineError`."""
        actions = tuple(actions)
        for action in actions:
            self._check_action(self.tables[table], action)
        return Bucket(number, weight, actions)

    def learn(
        self, table: str, priority: int, cookie: int, idle_timeout: int,
        match: Iterable[str], load: Iterable[str],
    ) -> Learn:  # fmt: skip
        """The action that makes a flow of `table` out of a packet; see `flows.flow.Learn`.

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
        return SetField(register.register, placed, None if mask == 0xFFFF_FFFF else mask)

    def goto(self, name: str) -> Goto:
        """The action that goes on at a table."""
        return Goto(self.tables[name].number)

    def misses(self) -> Iterable[Flow]:
        """The explicit, counted end of every table."""
        for table in self.tables.values():
            actions = () if table.miss == "drop" else (self.goto(table.miss),)
            reason = table.miss_doc or "nothing belongs here"
            yield Flow(int(Feature.MISS), table.number, int(Priority.MISS), (), actions, reason)

    def _resolve(self, fields: Mapping[str, MatchValue]) -> dict[str, MatchValue]:
        resolved: dict[str, MatchValue] = {}
        for name, given in fields.items():
            if name in FIELDS:
                resolved[name] = given
                continue
            register = self.registers[name]
            if isinstance(given, tuple):
                raise PipelineError(f"{name}: a register field is matched whole")
            value, mask = register.value(given)
            other = resolved.get(register.register, (0, 0))
            if isinstance(other, tuple):
                resolved[register.register] = (value | other[0], mask | other[1])
        return resolved

    def _check_action(self, stage: Table, action: Action) -> None:
        match action:
            case Goto(table) | Resubmit(table) | Ct(table=int(table)) if not any(
                self.tables[name].number == table for name in stage.next
            ):
                raise PipelineError(f"{stage.name} does not declare table {table} as next")
            case SetField(name, _, mask) if name.startswith("reg"):
                written = 0
                for register in map(self.registers.get, stage.writes):
                    if register is not None and register.register == name:
                        written |= register.mask
                if (0xFFFF_FFFF if mask is None else mask) & ~written:
                    raise PipelineError(f"{stage.name} does not declare all it writes of {name}")
            case SetField(name) | Move(_, name) | Pop(name) if not _declared(name, stage.writes):
                raise PipelineError(f"{stage.name} does not declare that it writes {name}")
            case Ct(exec=fields):
                for field in fields:
                    self._check_action(stage, field)


def _declared(name: str, fields: Collection[str]) -> bool:
    """Whether a table declares a field. An IPv4 field stands for the same of all families."""
    return name in fields or FIELD_OF_IPV4.get(name) in fields


LAYOUT: Final = Layout.of(TABLES, REGISTERS)
