"""Pods on three nodes with policies of one kind: who may be reached, and by whom.

A state says for each pod and direction with whom the pod may have connections (None: with all).
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

from controller.compilation import Compilation
from controller.desired import Desired
from controller.inventory import Inventory
from flows.flow import Flow
from flows.pipeline import LAYOUT, Feature
from flows.policy import (
    Direction,
    Isolation,
    PeerMember,
    PeerSet,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    Walks,
    policy_digest,
    rule_id,
)
from flows.refs import ObjectRef
from flows.text import actions_text, match_text
from flows.view import CLUSTER_SCOPE, SOME_SCOPE, Attachment, ClusterView, Key
from tests.flows import worlds
from tests.policy.simulator import Tables, numbers, product

PODS = {1: ["default/a", "default/b"], 2: ["default/c", "default/d"], 3: ["default/e"]}
NEW_CONNECTION = 0x21
State = Mapping[tuple[str, Direction], frozenset[str] | None]


def judged(state: State, source: str, destination: str) -> tuple[bool, bool]:
    """What policy from the pod and policy to the pod say of a connection between these pods."""
    to, of = state[source, Direction.FROM_POD], state[destination, Direction.TO_POD]
    return to is None or destination in to, of is None or source in of


def allowed(state: State, source: str, destination: str) -> bool:
    """Whether a connection between these pods may be opened."""
    return all(judged(state, source, destination))


WAYS = ("label", "list", "each")
"""See `PolicyWorld.put`."""
Pairs = frozenset[tuple[str, str]]
"""Source and destination of connections."""


def line(flow: Flow) -> str:
    def number(found: re.Match[str]) -> str:
        return f"{found[1]}{LAYOUT.tables[found[2]].number}"

    actions = re.sub(r"(goto_table:|resubmit\(,)([A-Za-z]\w*)", number, actions_text(flow))
    return f"table={flow.table}, {match_text(flow)} actions={actions}"


def judgements(
    flows: Iterable[Flow], pods_: Mapping[str, tuple[str, Attachment]], node: str
) -> tuple[Pairs, Pairs]:
    """The new connections that a switch with these flows lets out of, and into, its pods."""
    tables = Tables(line(flow) for flow in flows if flow.feature == Feature.POLICY)
    pods = [(pod, each) for pod, (_, each) in sorted(pods_.items())]
    local = [(pod, each) for pod, (at, each) in sorted(pods_.items()) if at == node]
    fixed = [{"dl_type": 0x800, "ct_state": NEW_CONNECTION}]
    ends = [{"in_port": each.ofport, "nw_src": int(each.address)} for _, each in local]
    count, columns = product([fixed, ends, [{"nw_dst": int(each.address)} for _, each in pods]])
    run = tables.run((1 << count) - 1, columns, LAYOUT.tables["PolicyFromPod"].number)
    reached = run.reached.get(LAYOUT.tables["Forwarding"].number, 0)
    out = {(local[n // len(pods)][0], pods[n % len(pods)][0]) for n in numbers(reached)}
    ends = [{"reg1": each.ofport, "nw_dst": int(each.address)} for _, each in local]
    count, columns = product([fixed, ends, [{"nw_src": int(each.address)} for _, each in pods]])
    run = tables.run((1 << count) - 1, columns, LAYOUT.tables["PolicyToPod"].number)
    reached = run.reached.get(LAYOUT.tables["Hairpin"].number, 0)
    into = {(pods[n % len(pods)][0], local[n // len(pods)][0]) for n in numbers(reached)}
    return frozenset(out), frozenset(into)


@dataclass
class PolicyWorld:
    """A view that is changed in place, and its compilation."""

    view: ClusterView = field(
        default_factory=lambda: replace(
            worlds.view(PODS),
            isolations={},
            walks={},
            peer_sets={},
            peer_members={},
            needed_by={},
        )
    )
    sessions: dict[str, Any] = field(default_factory=dict)
    changed: list[str] = field(default_factory=list)
    """Nodes whose program has changed, in order."""

    def __post_init__(self) -> None:
        inventory: Any = Inventory(worlds.CLUSTER)
        inventory.view = self.view
        self.desired = Desired(self.view)
        self.desired.members_known = True
        self.desired.source_complete = True
        self.compilation = Compilation(
            inventory,
            self.desired,
            on_node=self._on_node,
            on_shared=lambda: None,
            on_published=lambda: None,
            sessions=self.sessions,
        )
        self.pods: dict[str, tuple[str, Attachment]] = {
            each.pod: (node, each)
            for node, attachments in self.view.attachments.items()
            for each in attachments.values()
        }
        self.compilation.touch(
            Key(node, "attachment", each.port) for node, each in self.pods.values()
        )
        self.compilation.touch(
            Key(node, key.kind, key.name)
            for key, nodes in self.view.needed_by.items()
            for node in nodes
        )
        # The state that nobody has put is that of no policies.
        self.state: State = {(pod, each): None for pod in self.pods for each in Direction}
        keys = [Key(CLUSTER_SCOPE, "cluster", "")]
        keys += [Key(CLUSTER_SCOPE, "peer", node) for node in self.view.nodes]
        self.desired.update_shared({k: self.desired.fragment(CLUSTER_SCOPE, k) for k in keys})

    def _on_node(self, node: str) -> None:
        self.changed.append(node)
        if (session := self.sessions.get(node)) is not None:
            session.changed()

    def judgements(self, node: str) -> tuple[Pairs, Pairs]:
        """What the program of the node allows."""
        programs = self.desired.shared, self.desired.program(node)
        return judgements((f for each in programs for f in each.flows()), self.pods, node)

    def random_state(self, random: Random, pods: Collection[str] = ()) -> State:
        """Change the policies of some pods, or those of both ends of a pair in opposite ways.

        The pair is one of `pods`, if any are given.
        """
        state = dict(self.state)
        if random.random() < 0.7:
            source, destination = random.sample(sorted(pods or self.pods), 2)
            is_out, _ = judged(state, source, destination)
            everybody = frozenset(self.pods)
            for pod, direction, peer, is_member in (
                (source, Direction.FROM_POD, destination, not is_out),
                (destination, Direction.TO_POD, source, is_out),
            ):
                peers = everybody if (given := state[pod, direction]) is None else given
                state[pod, direction] = peers | {peer} if is_member else peers - {peer}
            return state
        for pod in random.sample(sorted(self.pods), random.randint(1, 3)):
            for direction in random.choice([[Direction.FROM_POD], [Direction.TO_POD], Direction]):
                count = random.randint(0, len(self.pods))
                peers = frozenset(random.sample(sorted(self.pods), count))
                state[pod, direction] = random.choice([None, peers, peers, peers])
        return state

    def put(self, state: State, how: str = "label") -> None:
        """Change the view, and touch what differs.

        How the peers of a pod are given: "label": the set keeps its name and gets other members;
        "list": the walk gets another set; "each": each peer has a step of its own, or a walk.
        """
        touched = self._change(state, how)
        self.state = state
        self.compilation.touch(touched)

    def _change(self, state: State, how: str) -> set[Key]:  # noqa: C901
        isolations: dict[str, dict[str, Isolation]] = {}
        walks: dict[str, PolicyWalk] = {}
        sets: dict[str, PeerSet] = {}
        members: dict[str, dict[str, PeerMember]] = {}
        needed: dict[Key, frozenset[str]] = {}

        def need(node: str, kind: str, name: str) -> None:
            key = Key(SOME_SCOPE, kind, name)
            needed[key] = needed.get(key, frozenset()) | {node}

        def walk_for(node: str, title: str, direction: Direction, lists: Mapping[str, Any]) -> int:
            """Make a walk with one step for each list of peers, by name."""
            steps = []
            for name, peers in lists.items():
                number = policy_digest(f"set {direction} {name}")
                steps.append(PolicyStep(rule_id(f"{title} {name}"), PolicyAction.ACCEPT, number))
                hexadecimal = f"{number:016x}"
                sets[hexadecimal] = PeerSet(number, direction)
                members[hexadecimal] = {}
                need(node, "policy-peers", hexadecimal)
                for peer in peers:
                    address = self.pods[peer][1].address
                    members[hexadecimal][str(address)] = PeerMember(
                        number, direction, address, ObjectRef.namespaced("Pod", peer)
                    )
                    need(node, "policy-member", f"{hexadecimal} {address}")
            walk = PolicyWalk(
                policy_digest(f"walk {title}"),
                direction,
                ObjectRef("NetworkPolicy", "default", title),
                tuple(steps),
            )
            walks[f"{walk.id:016x}"] = walk
            need(node, "policy-walk", f"{walk.id:016x}")
            return walk.id

        for pod, (node, attachment) in self.pods.items():
            of_pod: dict[Direction, Walks] = {}
            for direction in Direction:
                peers = state[pod, direction]
                if peers is None:
                    continue
                title = f"{pod} {direction}"
                each = {f"only {peer}": [peer] for peer in sorted(peers)}
                made: list[int] = []
                if how == "label":
                    made.append(walk_for(node, title, direction, {f"label {pod}": peers}))
                elif how == "list":
                    made.append(walk_for(node, title, direction, {str(sorted(peers)): peers}))
                elif direction is Direction.FROM_POD:
                    made.append(walk_for(node, title, direction, each))
                else:
                    for name, only in each.items():
                        made.append(walk_for(node, f"{title} {name}", direction, {name: only}))
                of_pod[direction] = Walks(isolated=True, policies=tuple(made))
            if of_pod:
                isolations.setdefault(node, {})[attachment.port] = Isolation(
                    attachment,
                    of_pod.get(Direction.FROM_POD),
                    of_pod.get(Direction.TO_POD),
                )
        view: Any = self.view
        touched = {Key(SOME_SCOPE, "policy-walk", name) for name in _differ(view.walks, walks)}
        touched |= {Key(SOME_SCOPE, "policy-peers", name) for name in _differ(view.peer_sets, sets)}
        touched |= {
            Key(SOME_SCOPE, "policy-member", f"{of} {address}")
            for of in view.peer_members.keys() | members.keys()
            for address in _differ(view.peer_members.get(of, {}), members.get(of, {}))
        }
        touched |= {
            Key(node, "isolation", port)
            for node in view.isolations.keys() | isolations.keys()
            for port in _differ(view.isolations.get(node, {}), isolations.get(node, {}))
        }
        nobody: frozenset[str] = frozenset()
        touched |= {
            Key(node, key.kind, key.name)
            for key in view.needed_by.keys() | needed.keys()
            for node in view.needed_by.get(key, nobody) ^ needed.get(key, nobody)
        }
        for old, new in (
            (view.walks, walks),
            (view.peer_sets, sets),
            (view.peer_members, members),
            (view.isolations, isolations),
            (view.needed_by, needed),
        ):
            old.clear()
            old.update(new)
        return touched


def _differ(old: Mapping[Any, Any], new: Mapping[Any, Any]) -> set[Any]:
    return {name for name in old.keys() | new.keys() if old.get(name) != new.get(name)}
