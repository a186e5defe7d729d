"""A change of policies: in between, a packet passes if the old and the new policies allow it."""

from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flows.compile import COMPILER, compile_scope
from flows.features import judgement, policy
from flows.flow import Flow, ct_state, ip
from flows.pipeline import LAYOUT, Feature, Pass, Source
from flows.policy import EVERY_PORT, Direction, Walks
from flows.transition import conditional, transition
from flows.view import CLUSTER_SCOPE, Key
from tests.flows import worlds
from tests.flows.judging import Judgement, Packet, Tables
from tests.flows.policies import ACCEPT, DENY, FROM_POD, PASS, TCP, TO_POD, UDP, Policies

VIEW = worlds.view({1: ["default/a", "default/b", "default/c", "default/d"], 2: ["default/x"]})
A, B, C, D = VIEW.attachments["node1"].values()
(X,) = VIEW.attachments["node2"].values()
EVERY_NODE = [f for f in compile_scope(VIEW, CLUSTER_SCOPE).flows() if f.feature == Feature.POLICY]
KINDS = ("isolation", "policy-walk", "policy-peers", "policy-member", "policy-ports")
NEW = ct_state("+trk+new")[0]


def flows_of(made: Policies) -> list[Flow]:
    """The flows of these policies alone."""
    view = made.on(VIEW)
    keys = [key for key in COMPILER.keys(view, "node1") if key.kind in KINDS]
    fragments = COMPILER.fragments(view, keys).values()
    return [flow for fragment in fragments if fragment for flow in fragment.flows]


def some_policies(random: Random, common: Policies) -> Policies:
    """Policies of `a` and `b`, some of them the same for every caller with the same `common`."""
    made = Policies(
        {**common.walks}, {**common.peer_sets}, {**common.members}, {**common.port_sets}
    )
    shared = list(common.walks)
    for attachment in (A, B):
        for direction in Direction:
            if random.random() < 0.15:
                continue

            def walks(name: str, actions: Sequence[policy.PolicyAction]) -> tuple[int, ...]:
                found = [
                    made.walk(f"{name} {n}", direction, *steps(made, random, direction, actions))  # noqa: B023
                    for n in range(random.randrange(3))
                ]
                found += [n for n in shared if random.random() < 0.3 and actions == (ACCEPT,)]
                return tuple(found)

            given = Walks(
                admin=walks("admin", (ACCEPT, DENY, PASS)),
                isolated=random.random() < 0.7,
                policies=walks("policy", (ACCEPT,)),
                baseline=walks("base", (ACCEPT, DENY)),
            )
            old = made.isolations.get(attachment.port)
            both = {"from_pod": old.from_pod} if old and direction is TO_POD else {}
            name = "from_pod" if direction is FROM_POD else "to_pod"
            made.select(attachment, **{**both, name: given})
    return made


def steps(
    made: Policies, random: Random, direction: Direction, actions: Sequence[policy.PolicyAction]
) -> list[tuple[int | None, int, policy.PolicyAction]]:
    found = []
    for _ in range(random.randrange(1, 4)):
        members = [each for each in (A, B, C, D, X) if random.random() < 0.4]
        peers = made.peers(direction, *members, blocks=["10.244.0.0/16"][: random.randrange(2)])
        ports = made.ports((random.choice((TCP, UDP)), random.choice((80, 81))))
        found.append(
            (
                random.choice((None, peers)),
                random.choice((EVERY_PORT, ports)),
                random.choice(actions),
            )
        )
    return found


def packets() -> list[tuple[Packet, str]]:
    """New connections among all pods, at both ends, and where each is judged."""
    found: list[tuple[Packet, str]] = []
    for protocol in (TCP, UDP, 1):
        for port in (80, 81):
            for one in (A, B, C, D, X):
                for two in (A, B, C, D, X):
                    packet = {
                        "ct_state": NEW, "dl_type": 0x0800, "nw_proto": protocol,
                        "nw_src": ip(one.address), "nw_dst": ip(two.address),
                        "tp_dst": port if protocol != 1 else 0, "reg0": Source.POD,
                    }  # fmt: skip
                    if one is not X:
                        found.append(({**packet, "in_port": one.ofport}, "PolicyFromPod"))
                    if two is not X:
                        found.append(({**packet, "reg1": two.ofport}, "PolicyToPod"))
    return found


PACKETS = packets()


def judgements(flows: list[Flow], control: judgement.Control = "single") -> list[Judgement]:
    tables = Tables([*EVERY_NODE, *flows, *judgement.control(control)])
    return [tables.judged(packet, entry) for packet, entry in PACKETS]


def passes(flows: list[Flow], control: judgement.Control = "single") -> list[bool]:
    return [bool(each.onward) for each in judgements(flows, control)]


@given(st.integers(0, 1 << 32))
@settings(max_examples=15, deadline=None)
def test_what_passes_in_between_is_what_both_states_allow(seed: int) -> None:
    old, new = map(flows_of, two_states(seed))
    between = transition(old, new)
    assert len({flow.key for flow in between}) == len(between)
    before, after = judgements(old), judgements(new)
    allowed = [bool(each.onward) for each in before], [bool(each.onward) for each in after]
    assert passes(between) == allowed[0]
    assert passes(between, "new") == allowed[1]
    both = judgements(between, "both")
    assert [bool(each.onward) for each in both] == [
        one and two for one, two in zip(*allowed, strict=True)
    ]
    for made, expected in zip(both, after, strict=True):
        if made.onward:
            # The rule that a commit stores is the one of the new state.
            for name in ("DecidedRule", "RuleFromPod"):
                assert made.register(name) == expected.register(name)
            if made.onward == "Forwarding":
                assert not any(made.register(name) for name in ("Verdict", "Selected", "Pass"))


def two_states(seed: int) -> tuple[Policies, Policies]:
    random = Random(seed)  # noqa: S311 - not for security
    common = Policies()
    for number in range(2):
        direction = random.choice(list(Direction))
        common.walk(f"common {number}", direction, *steps(common, random, direction, (ACCEPT,)))
    return some_policies(random, common), some_policies(random, common)


def test_transition_to_the_same_flows_changes_nothing() -> None:
    made = flows_of(two_states(7)[0])
    found = transition(made, list(reversed(made)))
    assert sorted(flow.cookie for flow in found) == sorted(flow.cookie for flow in made)


def test_transition_of_each_fragment_is_the_transition_of_all() -> None:
    old, new = two_states(1)
    by_key: list[dict[Key, list[Flow]]] = []
    for made in (old, new):
        view = made.on(VIEW)
        keys = [key for key in COMPILER.keys(view, "node1") if key.kind in KINDS]
        found = COMPILER.fragments(view, keys)
        by_key.append({key: list(each.flows) for key, each in found.items() if each})
    before, after = by_key
    alone = [
        flow
        for key in before.keys() | after.keys()
        for flow in transition(before.get(key, ()), after.get(key, ()))
    ]
    whole = transition(flows_of(old), flows_of(new))
    assert {flow.cookie for flow in alone} == {flow.cookie for flow in whole}


def test_only_new_connections_of_pods_with_policies_wait_while_closed() -> None:
    made = Policies()
    made.isolate(A, FROM_POD, made.walk("out", FROM_POD, (None, EVERY_PORT)))
    made.select(B, to_pod=Walks(admin=(made.walk("in", TO_POD, (None, EVERY_PORT)),)))
    flows = flows_of(made)
    assert all(passes(flows))
    for (packet, entry), passed in zip(PACKETS, passes(flows, "closed"), strict=True):
        of_a = packet.get("in_port") == A.ofport and packet["nw_dst"] != ip(A.address)
        to_b = packet.get("reg1") == B.ofport
        assert passed is not (of_a if entry == "PolicyFromPod" else to_b)


def test_flow_of_one_state_keeps_its_cookie_from_call_to_call() -> None:
    made = Policies()
    made.isolate(A, FROM_POD)
    (isolation,) = [
        flow for flow in flows_of(made) if flow.table == LAYOUT.tables["IsolationFromPod"].number
    ]
    old, new = (conditional(isolation, state) for state in Pass)
    assert conditional(isolation, Pass.OLD) is old
    assert len({isolation.key, old.key, new.key}) == 3


@pytest.mark.parametrize("control", ["single", "both", "new", "closed"])
def test_established_packets_are_not_judged(control: judgement.Control) -> None:
    tables = Tables([*EVERY_NODE, *judgement.control(control)])
    for state in ("+trk+est", "+trk+est+rpl", "+trk+rel"):
        for entry, onward in (("PolicyFromPod", "Forwarding"), ("PolicyToPod", "Hairpin")):
            found = tables.judged({"ct_state": ct_state(state)[0]}, entry)
            assert (found.path, found.onward) == ([entry], onward)
