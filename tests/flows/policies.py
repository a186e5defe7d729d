"""Policies as the view holds them, and views with policies."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from typing import Any

from flows.family import IPNetwork
from flows.policy import (
    EVERY_PORT,
    Direction,
    Isolation,
    PeerBlock,
    PeerMember,
    PeerSet,
    PolicyAction,
    PolicyStep,
    PolicyWalk,
    PortRange,
    PortSet,
    Walks,
    policy_digest,
    rule_id,
)
from flows.refs import ObjectRef
from flows.view import SOME_SCOPE, Attachment, ClusterView, Key

FROM_POD, TO_POD = Direction.FROM_POD, Direction.TO_POD
ACCEPT, DENY, PASS = PolicyAction
TCP, UDP, SCTP = 6, 17, 132


@dataclass
class Policies:
    """Policies under construction: each method adds something, and returns its id."""

    walks: dict[int, PolicyWalk] = field(default_factory=dict)
    peer_sets: dict[int, PeerSet] = field(default_factory=dict)
    members: dict[int, dict[str, PeerMember]] = field(default_factory=dict)
    port_sets: dict[int, PortSet] = field(default_factory=dict)
    isolations: dict[str, Isolation] = field(default_factory=dict)
    """By the name of the attachment's port."""

    def peers(
        self,
        direction: Direction,
        *members: Attachment | str,
        blocks: Iterable[str] = (),
        excepts: Iterable[str] = (),
        **more: Any,
    ) -> int:
        """A set of these attachments or addresses, and blocks."""
        name = f"{direction} {members} {blocks} {excepts} {more}"
        number = policy_digest(name)
        made = [PeerBlock(ip_network(each), True) for each in blocks]
        made += [PeerBlock(ip_network(each), False) for each in excepts]
        self.peer_sets[number] = PeerSet(number, direction, tuple(made), **more)
        by_address = self.members.setdefault(number, {})
        for each in members:
            if isinstance(each, Attachment):
                address, owner = each.address, each.ref
            else:
                address, owner = ip_address(each), ObjectRef.node(each)
            by_address[str(address)] = PeerMember(number, direction, address, owner)
        return number

    def ports(self, *ranges: tuple[int, ...]) -> int:
        """A set of (protocol, first, last), (protocol, port) or (protocol,)."""
        number = policy_digest(f"ports {ranges}")
        made = tuple(PortRange(*each) for each in ranges)
        self.port_sets[number] = PortSet(number, made)
        return number

    def walk(
        self,
        name: str,
        direction: Direction,
        *steps: tuple[int | None, int] | tuple[int | None, int, PolicyAction],
    ) -> int:
        """The rules of a policy: (peers, ports) or (peers, ports, action)."""
        made = [
            PolicyStep(
                rule_id(f"{name} {direction} {index}"),
                step[2] if len(step) == 3 else ACCEPT,
                step[0],
                step[1],
            )
            for index, step in enumerate(steps)
        ]
        ref = ObjectRef("NetworkPolicy", "default", name)
        number = policy_digest(f"{ref} {direction}")
        self.walks[number] = PolicyWalk(number, direction, ref, tuple(made))
        return number

    def rule(self, walk: int, index: int = 0) -> int:
        """The id of a rule."""
        return self.walks[walk].steps[index].rule

    def select(self, attachment: Attachment, **directions: Walks) -> None:
        """What an attachment's policies are: `from_pod`, `to_pod` or both."""
        self.isolations[attachment.port] = Isolation(attachment, **directions)

    def isolate(self, attachment: Attachment, direction: Direction, *walks: int) -> None:
        """Let NetworkPolicies select an attachment in one direction."""
        old = self.isolations.get(attachment.port, Isolation(attachment))
        made = Walks(isolated=True, policies=walks)
        self.isolations[attachment.port] = (
            old._replace(from_pod=made) if direction is FROM_POD else old._replace(to_pod=made)
        )

    def on(self, view: ClusterView, node: str = "node1") -> ClusterView:
        """The view with these policies, which the node needs."""
        text = "{:016x}".format
        needed: dict[Key, set[str]] = {}

        def some(kind: str, names: Iterable[str]) -> None:
            needed.update((Key(SOME_SCOPE, kind, name), {node}) for name in names)

        some("policy-walk", map(text, self.walks))
        some("policy-peers", map(text, self.peer_sets))
        some("policy-ports", map(text, self.port_sets))
        some(
            "policy-member",
            [f"{text(n)} {address}" for n, of in self.members.items() for address in of],
        )
        return replace(
            view,
            isolations={node: self.isolations},
            walks=_by_text(self.walks),
            peer_sets=_by_text(self.peer_sets),
            peer_members=_by_text(self.members),
            port_sets=_by_text(self.port_sets),
            needed_by={**view.needed_by, **needed},
        )


def _by_text(values: Mapping[int, Any]) -> dict[str, Any]:
    return {f"{number:016x}": value for number, value in values.items()}


def some(a: Attachment, b: Attachment, c: Attachment, pod_range: IPNetwork) -> Policies:
    """One of each form: two directions, tiers, blocks, the pod range, ports; `a` is isolated."""
    made = Policies()
    web = made.ports((TCP, 80), (TCP, 1024, 65535), (UDP,))
    dns = made.ports((UDP, 53), (TCP, 53))
    blocks = {"blocks": ["10.0.0.0/8", "192.0.2.1/32"], "excepts": ["10.9.0.0/16"]}
    gateways = {
        "outsiders": (ip_network(f"{pod_range.network_address + 1}/32"),),
        "outsiders_mask": 0xFF,
    }
    mixed = made.peers(TO_POD, b, **blocks)
    pods = made.peers(FROM_POD, **gateways)
    anybody = made.peers(TO_POD, "10.244.2.1", **blocks, **gateways)
    ingress = made.walk("web", TO_POD, (mixed, web), (anybody, EVERY_PORT))
    egress = made.walk("out", FROM_POD, (pods, dns), (None, web))
    admin = made.walk(
        "admin", FROM_POD, (made.peers(FROM_POD, c), EVERY_PORT, DENY), (pods, dns, PASS)
    )
    base = made.walk("base", TO_POD, (None, EVERY_PORT, DENY))
    made.select(
        a,
        from_pod=Walks(admin=(admin,), isolated=True, policies=(egress,)),
        to_pod=Walks(isolated=True, policies=(ingress,)),
    )
    made.select(b, to_pod=Walks(baseline=(base,)))
    return made
