"""Flows that between them use every field and every action, and hypothesis strategies for more."""

from ipaddress import IPv4Address, IPv4Network

from hypothesis import strategies as st

from flows import names
from flows.compile import compile_scope
from flows.fields import FIELDS
from flows.flow import (
    ANY_FRAGMENT,
    IN_PORT,
    MOST_BUCKETS,
    ApplyMeter,
    Bucket,
    Ct,
    CtClear,
    Flow,
    Goto,
    Group,
    Learn,
    Meter,
    Move,
    MoveBits,
    Nat,
    Note,
    Output,
    OutputReg,
    Pop,
    Push,
    Resubmit,
    SetField,
    ToController,
    ToGroup,
    ct_state,
    match,
)
from flows.view import CLUSTER_SCOPE, Attachment, Cluster, ClusterView, Node

TCP, UDP, SCTP, ICMP = 6, 17, 132, 1


def flow(number: int, table: int = 60) -> Flow:
    """One of many of the same shape."""
    return Flow(
        5, table, 400, match({"dl_type": 0x0800, "nw_dst": 0x0A00_0000 | number}),
        (
            SetField("dl_src", 0x0A58_A9FE_0101),
            SetField("dl_dst", 0x0A58_0A00_0000 | number),
            SetField("reg1", number & 0xFFFF),
            Goto(80),
        ),
        f"sample {number}",
    )  # fmt: skip


def compiled() -> tuple[list[Flow], list[Meter]]:
    """What the features make of a small cluster: for the cluster, and for one of its nodes."""
    one, two = (
        Node(f"node{n}", f"uid-{n}", IPv4Address(f"192.0.2.{n}"), IPv4Network(f"10.244.{n}.0/24"))
        for n in (1, 2)
    )
    port = names.port_name("default", "web", "uid", "eth0", "container")
    view = ClusterView(
        Cluster(IPv4Network("10.244.0.0/16"), IPv4Network("10.96.0.0/12"), 6081, 100),
        {"node1": one, "node2": two},
        {"node1": {port: Attachment(port, 16, IPv4Address("10.244.1.2"), "default/web")}},
    )
    programs = [compile_scope(view, scope) for scope in (CLUSTER_SCOPE, "node1")]
    return (
        [flow for program in programs for flow, _ in program.cookies.values()],
        [meter for program in programs for meter in program.meters.values()],
    )


def handmade() -> list[Flow]:
    """What the features do not use yet, in forms that a switch prints back unchanged."""
    ip, arp = {"dl_type": 0x0800}, {"dl_type": 0x0806}
    matches = [
        ip | {"nw_proto": TCP, "tp_src": 1, "tp_dst": (0xFF00, 0xFF00)},
        ip | {"nw_proto": UDP, "tp_src": 1, "tp_dst": 2},
        ip | {"nw_proto": SCTP, "tp_src": 1, "tp_dst": 2},
        ip | {"nw_proto": ICMP, "icmp_type": 3, "icmp_code": 4},
        {"dl_type": 0x86DD, "nw_proto": 58, "icmpv6_type": 134},
        arp | {"arp_op": 1, "arp_spa": 5, "arp_tpa": (256, 0xFFFFFF00), "arp_sha": 7, "arp_tha": 8},
        ip | {"ct_state": ct_state("+trk+est-new"), "ct_zone": 100, "ct_mark": (2, 2)},
        {"ct_label": 1 << 100, "reg0": (1, 15), "reg15": 7, "tun_id": 5, "tun_src": 6},
        {"reg8": 1, "reg9": 2, "reg15": (3, 3)},
        {"reg10": 0, "reg11": 2, "reg12": (4, 0xFF), "reg15": (0, 3)},
        {"tun_dst": 9, "in_port": 3, "dl_src": 1 << 40, "dl_dst": (1 << 40, 1 << 40)},
        ip | {"nw_src": (0x0A000000, 0xFF000000), "nw_dst": 0x0A000001},
        ip | {"ct_state": ct_state("+trk+rel"), "ct_nw_src": 0x0A000001, "nw_frag": ANY_FRAGMENT},
        ip | {"ct_state": ct_state("+trk+rel"), "ct_nw_dst": (0x0A000000, 0xFF000000)},
        ip | {"ct_label": (0x0A000001 << 64, 0xFFFF_FFFF << 64)},
    ]
    actions = [
        (Output(7),),
        (Output(IN_PORT),),
        (OutputReg("reg1"),),
        (SetField("reg0", 1, 15), SetField("reg15", 7), SetField("tun_dst", 0xC0000201)),
        (SetField("tun_id", 5), SetField("ct_mark", 1, 1))[:1],
        (Move("dl_src", "dl_dst"), Goto(100)),
        (Push("nw_src"), Push("nw_dst"), Pop("nw_src"), Pop("nw_dst"), CtClear(), Goto(100)),
        (Ct(100, 70),),
        (Ct(100, 70, nat=Nat()),),
        (Ct(100, 70, commit=True, nat=Nat(0xC0000201)),),
        (Ct(100, 70, True, Nat(0xC0000201), (SetField("ct_mark", 2, 2),)),),
        (
            Ct(100, 70, True, Nat(), (SetField("ct_mark", 2, 2), SetField("ct_label", 1 << 100))),
            Output(3),
        ),
        (
            Ct(
                100,
                70,
                True,
                Nat(),
                (SetField("ct_label", 0x0A000001 << 64, 0xFFFF_FFFF << 64),),
            ),
        ),
        (Note(b"six by"), Goto(100)),
        (ToController(0x534C, 128),),
        (SetField("xreg4", 0x0102_0304_0506_0708), MoveBits("reg15", 2, "reg15", 0, 2)),
        (MoveBits("reg14", 0, "reg6", 0, 32), MoveBits("reg15", 4, "reg0", 8, 1), Resubmit(152)),
        (
            Ct(
                100,
                130,
                True,
                None,
                (
                    SetField("ct_mark", 8, 8),
                    MoveBits("reg7", 0, "ct_label", 0, 32),
                    MoveBits("reg6", 0, "ct_label", 32, 32),
                ),
            ),
        ),
    ]
    ipv4 = match({"dl_type": 0x0800})
    return [
        *(Flow(5, 60, 1000 + i, match(each), (), "match") for i, each in enumerate(matches)),
        *(Flow(5, 60, 2000 + i, ipv4, each, "actions") for i, each in enumerate(actions)),
    ]


FIVE_TUPLE = (
    "nw_src", "nw_dst", "nw_proto", "tcp_src", "tcp_dst", "udp_src", "udp_dst",
    "sctp_src", "sctp_dst",
)  # fmt: skip


def translating(number: int, weight: int = 100) -> Bucket:
    """A bucket that translates to an endpoint."""
    to = Nat(destination=(0x0A00_0000 | number, 8080))
    return Bucket(number, weight, (Ct(100, 74, True, to, (SetField("ct_mark", 1, 1),)),))


def choosing(number: int) -> Bucket:
    """A bucket that says which endpoint it is, and has another table translate."""
    endpoint = (SetField("reg3", 0x0A00_0000 | number), SetField("reg4", 8080), Resubmit(70))
    return Bucket(number, 1, endpoint)


def groups() -> list[Group]:
    """One of each kind, the largest among them."""
    first = names.GROUPS[0]
    return [
        Group(first, "dp_hash", (), tuple(map(translating, range(1, 11)))),
        Group(first + 1, "hash", ("nw_src",), tuple(map(choosing, range(1, 40)))),
        Group(first + 2, "hash", FIVE_TUPLE, tuple(map(translating, range(1, MOST_BUCKETS + 1)))),
        Group(first + 3, "hash", FIVE_TUPLE, (
            Bucket(1, 10, (ToGroup(first),)), Bucket(2, 65535, (ToGroup(first + 2),)),
        )),
        Group(names.GROUPS[-1], "hash", ("nw_src",), ()),
    ]  # fmt: skip


def for_services() -> list[Flow]:
    """What Services need besides; their groups are those of `groups`."""
    first = names.GROUPS[0]
    learn = Learn(62, 9, 10 << 56 | 5, 10_800, ("reg2", "nw_src"), ("reg3", "reg4"))
    actions = [
        (ToGroup(first),),
        (ToGroup(first + 3),),
        (learn, Ct(100, 74, True, Nat(destination=(0x0A00_0001, 53)))),
        (Resubmit(62), Goto(100)),
        (Ct(101, 140, True, Nat(0x0A01_0203, ports=(1024, 65535))),),
        (Ct(101, 140, True, Nat(0x0A01_0203, ports=(1024, 1024))),),
        (Ct(101, 140, True, Nat(0x0A01_0203), (SetField("ct_mark", 1, 1),)),),
    ]
    ipv4 = match({"dl_type": 0x0800})
    return [Flow(7, 60, 3000 + i, ipv4, each, "service") for i, each in enumerate(actions)]


def _values(name: str) -> st.SearchStrategy[int]:
    return st.integers(0, (1 << FIELDS[name]) - 1)


@st.composite
def _matches(draw: st.DrawFn) -> tuple[tuple[str, int, int | None], ...]:
    fields = {}
    for name in draw(st.sets(st.sampled_from(sorted(FIELDS)), max_size=6)):
        value = draw(_values(name))
        mask = draw(st.none() | _values(name)) if name != "nw_proto" else None
        fields[name] = value if mask is None else (value & mask, mask)
    if fields.keys() & {"tp_src", "tp_dst"}:
        fields["nw_proto"] = draw(st.sampled_from((TCP, UDP, SCTP)))
    return match(fields)


@st.composite
def set_fields(draw: st.DrawFn) -> SetField:
    name = draw(st.sampled_from(sorted(FIELDS.keys() - {"tp_src", "tp_dst"})))
    return SetField(name, draw(_values(name)), draw(st.none() | _values(name)))


_numbers = st.integers(0, 0xFFFF_FFFF)
_ports = st.integers(0, 0xFFFF)
_learnable = st.lists(
    st.sampled_from(("nw_src", "nw_dst", "nw_proto", "reg2", "reg15", "dl_src")), max_size=4
).map(tuple)
_actions = st.one_of(
    st.builds(Output, _numbers),
    st.builds(OutputReg, st.sampled_from([f"reg{n}" for n in range(16)])),
    set_fields(),
    st.sampled_from([Push("nw_dst"), Pop("sctp_src"), Push("udp_dst"), Pop("reg7"), CtClear()]),
    st.sampled_from([MoveBits("reg15", 2, "reg15", 0, 2), MoveBits("reg7", 0, "ct_label", 32, 32)]),
    st.sampled_from([Move("dl_src", "dl_dst"), Move("arp_spa", "arp_tpa"), Move("reg0", "reg9")]),
    st.builds(
        Ct,
        st.integers(0, 0xFFFF),
        st.none() | st.integers(0, 0xFE),
        st.booleans(),
        st.none()
        | st.builds(Nat, st.none() | _numbers)
        | st.builds(Nat, st.integers(1, 0xFFFF_FFFF), ports=st.tuples(_ports, _ports))
        | st.builds(Nat, destination=st.tuples(_numbers, _ports)),
        st.lists(set_fields(), max_size=2).map(tuple),
    ),
    st.builds(ApplyMeter, _numbers),
    st.builds(Note, st.binary(max_size=20)),
    st.builds(ToGroup, _numbers),
    st.builds(Resubmit, st.integers(0, 0xFE)),
    st.builds(
        Learn,
        st.integers(0, 0xFE),
        _ports,
        st.integers(0, (1 << 64) - 1),
        _ports,
        _learnable,
        _learnable,
    ),
)
buckets = st.builds(Bucket, _numbers, _ports, st.lists(_actions, max_size=4).map(tuple))
"""Anything that can be written, whether a switch takes it or not."""


@st.composite
def flows(draw: st.DrawFn, least: int = 0, most: int = 5) -> Flow:
    """Anything that can be written, with so many actions, whether a switch takes it or not."""
    actions = draw(st.lists(_actions, min_size=least, max_size=most))
    if draw(st.booleans()):
        actions.append(Goto(draw(st.integers(0, 0xFE))))
    return Flow(
        draw(st.integers(1, 0xFF)), draw(st.integers(0, 0xFE)), draw(st.integers(0, 0xFFFF)),
        draw(_matches()), tuple(actions), "any",
    )  # fmt: skip
