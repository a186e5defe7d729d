"""The simulator against `ofproto/trace` of a real switch, on flows that mean nothing."""

import re
from collections.abc import Iterator
from ipaddress import IPv4Address
from random import Random

import pytest

from tests.ovs import Ovs, running
from tests.policy.simulator import AmbiguityError, Tables, numbers, parse, product
from tests.policy.switches import Control

ROUNDS, FLOWS, TABLES = 40, 40, 5
TCP = 6
ADDRESSES = ["10.0.0.1", "10.0.0.2", "10.0.0.130", "10.1.0.1", "192.0.2.7"]
PORTS = [0, 1, 80, 81, 1024, 65535]


@pytest.fixture(scope="module")
def switch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ovs]:
    with running(tmp_path_factory.mktemp("ovs")) as made:
        for ofport in range(1, 5):
            made.port_up(f"port{ofport}", ofport)
        yield made


@pytest.fixture
def control(switch: Ovs) -> Iterator[Control]:
    pid = (switch.directory / "ovs-vswitchd.pid").read_text().strip()
    made = Control(switch.directory / f"ovs-vswitchd.{pid}.ctl")
    yield made
    made.close()


def random_flow(random: Random, number: int) -> str:
    """A flow of its own priority, so that no two tie."""
    table = random.randrange(TABLES)
    terms = [f"table={table},priority={number + 1}"]
    kind = random.choice(("", "ports", "sources", "destinations"))
    match kind:
        case "ports":
            terms.append(f"tcp,tp_dst={random.choice(('80', '0x50/0xfffe', '0x400/0xfc00'))}")
        case "sources":
            source = random.choice(("10.0.0.0/8", "10.0.0.1", "0.0.0.1/0.0.0.1"))
            terms.append(f"ip,nw_src={source}")
        case "destinations":
            destination = random.choice(("10.0.0.0/25", "10.0.0.130", "192.0.2.0/24"))
            terms.append(f"ip,nw_dst={destination}")
    if random.random() < 0.6:
        terms.append(f"reg{random.randrange(3)}={random.choice(('0', '0x1', '0x1/0x3', '0/0x2'))}")
    if random.random() < 0.2:
        terms.append(f"xreg2={random.choice(('0x500000007', '0x7/0xff', '0'))}")
    if random.random() < 0.3:
        terms.append(f"in_port={random.randint(1, 2)}")
    actions = [random_action(random, table, is_ip=bool(kind)) for _ in range(random.randrange(4))]
    if table < TABLES - 1 and random.random() < 0.5:
        actions.append(f"goto_table:{random.randint(table + 1, TABLES - 1)}")
    return ",".join(terms) + " actions=" + (",".join(actions) or "drop")


def random_action(random: Random, table: int, *, is_ip: bool) -> str:
    low = random.choice(("0x1", "0x2", "0x1/0x3", "0x2/0x2"))
    wide = random.choice(("0x500000007", "0x300000000/0xf00000000"))
    some, other = random.randrange(3), random.randrange(6)
    actions = [
        f"set_field:{low}->reg{some}",
        f"set_field:{wide}->xreg2",
        f"load:{random.randrange(4)}->NXM_NX_REG{some}[0..1]",
        f"move:NXM_NX_REG{some}[0..1]->NXM_NX_REG{other}[1..2]",
        f"output:{random.randint(1, 4)}",
        "output:NXM_NX_REG0[]",
    ]
    if is_ip:
        actions += ["move:NXM_OF_IP_SRC[]->NXM_NX_REG1[]", "set_field:10.0.0.1->ip_dst"]
    if table < TABLES - 1:
        actions += [f"resubmit(,{random.randint(table + 1, TABLES - 1)})"] * 3
    return random.choice(actions)


@pytest.mark.parametrize("seed", range(ROUNDS))
def test_simulator_and_trace_agree_on_random_flows(
    switch: Ovs, control: Control, seed: int
) -> None:
    random = Random(seed)  # noqa: S311 - no secret
    lines = [random_flow(random, number) for number in range(FLOWS)]
    flows = switch.directory / "flows"
    flows.write_text("\n".join(lines))
    switch.ofctl("--bundle", "replace-flows", "br0", str(flows))
    tables = Tables(control.call("bridge/dump-flows", "br0").splitlines())
    count, columns = product(
        [
            [{"in_port": port} for port in (1, 2)],
            [{"nw_src": int(IPv4Address(a))} for a in ADDRESSES],
            [{"nw_dst": int(IPv4Address(a))} for a in ADDRESSES],
            [{"tp_dst": port} for port in PORTS],
            [{"dl_type": 0x0800, "nw_proto": TCP}],
        ]
    )
    run = tables.run((1 << count) - 1, columns)
    sent: dict[int, set[int]] = {}
    for port, packets in run.sent.items():
        for number in numbers(packets):
            sent.setdefault(number, set()).add(port)
    for number in random.sample(range(count), 40):
        rest, port = divmod(number, len(PORTS))
        rest, destination = divmod(rest, len(ADDRESSES))
        in_port, source = divmod(rest, len(ADDRESSES))
        packet = (
            f"tcp,in_port={in_port + 1},nw_src={ADDRESSES[source]},"
            f"nw_dst={ADDRESSES[destination]},tcp_dst={PORTS[port]},nw_ttl=64"
        )
        trace = control.call("ofproto/trace", "br0", packet)
        traced = re.findall(r"(?:output:| -> output port is )(\d+)$", trace, re.MULTILINE)
        assert sent.get(number, set()) == set(map(int, traced)), (packet, trace)


def test_dump_by_ovs_ofctl_reads_the_same(switch: Ovs, control: Control) -> None:
    random = Random(99)  # noqa: S311 - no secret
    flows = switch.directory / "flows"
    flows.write_text("\n".join(random_flow(random, number) for number in range(FLOWS)))
    switch.ofctl("--bundle", "replace-flows", "br0", str(flows))
    texts = (
        control.call("bridge/dump-flows", "br0"),
        switch.ofctl("dump-flows", "br0"),
    )
    one, two = (
        sorted(
            str((e.table, e.priority, e.terms, e.actions))
            for line in text.splitlines()
            if (e := parse(line)) and e.table < TABLES
        )
        for text in texts
    )
    assert one == two
    assert len(one) > FLOWS / 2


def test_product_has_every_combination_once() -> None:
    count, columns = product([[{"a": 1}, {"a": 2}], [{"b": 5}, {"b": 6, "c": 1}, {"b": 7}]])
    assert count == 6
    found = [
        tuple(next(v for v, p in columns[name].items() if p >> n & 1) for name in "abc")
        for n in range(count)
    ]
    assert found == [(1, 5, 0), (1, 6, 1), (1, 7, 0), (2, 5, 0), (2, 6, 1), (2, 7, 0)]


def test_flows_of_equal_priority_that_match_one_packet_are_an_error() -> None:
    lines = (
        " table=0, priority=5,reg0=0x1/0x1 actions=output:1",
        " table=0, priority=5,reg0=0x2/0x2 actions=output:2",
    )
    count, columns = product([[{"reg0": value} for value in range(3)]])
    assert Tables(lines).run((1 << count) - 1, columns).sent == {1: 0b010, 2: 0b100}
    count, columns = product([[{"reg0": value} for value in range(4)]])
    with pytest.raises(AmbiguityError):
        Tables(lines).run((1 << count) - 1, columns)


def test_action_that_is_unknown_is_an_error() -> None:
    with pytest.raises(ValueError, match="clone"):
        parse(" table=0, priority=5 actions=clone(output:1)")
