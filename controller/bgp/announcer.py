"""Keeps the speakers told: of the controller, and of nodes that have one.

A loop beside the reconciler: it looks whenever something has changed that routes depend on. Every
controller speaks, whichever of them leads, so the network keeps the routes when one ends.
"""

import asyncio
import contextlib
import hashlib
from collections.abc import Collection, Generator, Iterable
from functools import cache, partial
from ipaddress import IPv4Address, IPv4Network
from typing import Final, cast

import structlog

from bgp.speaker import Speaker
from controller import metrics
from controller.bgp.passwords import Passwords
from controller.bgp.peers import Judgement, PeerDraft, beyond_limit, judge
from controller.bgp.routes import Announced, Candidate, candidates, for_speaker, routes
from controller.bgp.session_problems import problem_of
from controller.bgp.world import selected_nodes, world_of
from controller.inventory import Inventory
from controller.problems import Reporter, ReporterKind, Subject
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from flows.family import IPAddress
from flows.refs import ObjectRef
from flows.view import Key
from wire.bgp import MAX_PEERS, NodeBGP, NodeSessions, Peer, PeerAnnouncements, Route, Session
from wire.documents import encode

log = structlog.get_logger()

PAUSE: Final = 0.05
"""Seconds between two looks at least: many changes often come together."""
LOOK_SECONDS: Final = 5.0
"""Between two looks at sessions that say nothing new."""
MOST_NODES: Final = 5_000
"""Nodes whose sessions are kept."""
REPORTER: Final = Reporter(ReporterKind.BGP)


class Announcer:
    """What every peer is told; `run` keeps it up to date."""

    def __init__(self, reconciler: Reconciler, passwords: Passwords) -> None:
        self.judgement = Judgement((), {})
        """As of the last look."""
        self.announced: dict[str, list[Announced]] = {}
        """By BGPPeer, what all of its speakers together tell it."""
        self.left_out: dict[str, int] = {}
        """By BGPPeer, routes that are too many."""
        self.changed_for_nodes = asyncio.Event()
        """Set, and replaced, when what nodes' speakers tell may have changed."""
        self.speaker = Speaker()
        self._reconciler = reconciler
        self._passwords = passwords
        self._inventory: Inventory = reconciler.inventory
        self._due = asyncio.Event()
        self._seen: tuple[object, ...] = ()
        self._peers: dict[str, Peer] = {}
        """By BGPPeer that can be used: with its password."""
        self._beyond: dict[str, str] = {}
        """By BGPPeer that some speaker has no room for: a sentence."""
        self._by_node: dict[str, dict[str, list[Announced]]] = {}
        """By BGPPeer from nodes, and by selected node: the routes of which it is a next hop."""
        self._of_nodes: dict[str, dict[str, Session]] = {}
        """By node, the sessions of its own speaker, by BGPPeer."""
        passwords.changed = self._due.set
        reconciler.settled.append(self._settled)
        self._inventory.bgp_peers.followers.append(lambda _: self._due.set())
        self._inventory.egress_addresses.followers.append(lambda _: self._due.set())
        self._inventory.load_balancers.followers.append(self._due.set)
        self._inventory.address_owners.followers.append(self._owners_changed)

    async def run(self) -> None:
        """Until cancelled."""
        await self._reconciler.listed.wait()
        self._due.set()
        reading = asyncio.create_task(self._passwords.run())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_SECONDS):
                        await self._due.wait()
                if self._due.is_set():
                    self._due.clear()
                    await self._look()
                self._report()
                await asyncio.sleep(PAUSE)
        finally:
            reading.cancel()
            await self.speaker.close()

    # --- what changes ---

    def _settled(self) -> None:
        """The reconciler has taken something in."""
        if not self._inventory.bgp_peers.objects and not self.judgement.peers:
            return
        seen = self._inventory.nodes.object_changes, *self._service_changes()
        if seen != self._seen:
            self._seen = seen
            self._due.set()

    def _service_changes(self) -> tuple[int, int]:
        services = self._inventory.services
        return services.service_changes, services.endpoint_changes

    def _owners_changed(self, _: Collection[IPv4Address]) -> set[Key]:
        self._due.set()
        return set()

    # --- what follows ---

    async def _look(self) -> None:
        inventory = self._inventory
        # Many peers may have one selector, and every look compares those with one address.
        selected = cache(partial(selected_nodes, inventory))
        self.judgement = await in_turns(
            judge(
                list(inventory.bgp_peers.objects.values()),
                inventory.view.cluster,
                self._node_of,
                selected,
            )
        )
        self._with_passwords()
        usable = [each for each in self.judgement.peers if each.name in self._peers]
        unused, self._beyond = await in_turns(
            beyond_limit(usable, lambda peer: selected(peer.nodes) if peer.from_nodes else ("",))
        )
        for name in unused:
            del self._peers[name]
        world = world_of(inventory)
        kinds = frozenset(kind for peer in self.judgement.peers for kind in peer.kinds)
        found: list[Candidate] = await in_turns(candidates(world, kinds))
        announced: dict[str, list[Announced]] = {}
        left_out: dict[str, int] = {}
        for peer in self.judgement.peers:
            announced[peer.name], left_out[peer.name] = await in_turns(routes(peer, world, found))
        by_node: dict[str, dict[str, list[Announced]]] = {}
        for peer in self.judgement.peers:
            if peer.from_nodes:
                nodes = selected(peer.nodes)
                by_node[peer.name] = await in_turns(_by_node(announced[peer.name], nodes))
        self.announced, self.left_out, self._by_node = announced, left_out, by_node
        own = [each for each in self.judgement.peers if not each.from_nodes]
        self.speaker.want(
            [
                PeerAnnouncements(self._peers[each.name], self._for_speaker(announced[each.name]))
                for each in own
                if each.name in self._peers
            ],
            self.own_ranges,
        )
        self.changed_for_nodes.set()
        self.changed_for_nodes = asyncio.Event()

    def _for_speaker(self, announced: Iterable[Announced]) -> tuple[Route, ...]:
        return for_speaker(announced, self._inventory.view.nodes)

    def _node_of(self, address: IPAddress) -> str:
        found = self._inventory.nodes.addresses.get(address)
        return found.node if found else ""

    def _with_passwords(self) -> None:
        drafts = self.judgement.peers
        self._passwords.want(each.password for each in drafts if each.password is not None)
        self._peers = {}
        for draft in drafts:
            password = self._passwords.values.get(draft.password, "") if draft.password else ""
            # Never without the password that it is to have.
            if password or draft.password is None:
                self._peers[draft.name] = _peer(draft, password)

    def is_used(self, name: str) -> bool:
        """Whether a BGPPeer is told anything by anybody."""
        return name in self._peers

    @property
    def own_ranges(self) -> tuple[IPv4Network, ...]:
        """What no peer should announce as its own."""
        cluster = self._inventory.view.cluster
        return cast("tuple[IPv4Network, ...]", (cluster.pod_range, cluster.service_range))

    # --- nodes with a speaker ---

    def document(self, node: str) -> NodeBGP | None:
        """What this node's own speaker tells; None for a node that is not accepted."""
        view = self._inventory.view
        if node not in view.nodes:
            return None
        mine = []
        for draft in self.judgement.peers:
            peer = self._peers.get(draft.name)
            found = self._by_node.get(draft.name, {}).get(node)
            if peer is None or found is None:
                continue
            announced = [
                Announced(each.prefix, each.kind, (node,), each.reasons, each.note)
                for each in found
            ]
            mine.append(PeerAnnouncements(peer, self._for_speaker(announced)))
        document = NodeBGP(node, tuple(mine[:MAX_PEERS]), self.own_ranges, "")
        revision = hashlib.sha256(encode(document)).hexdigest()[:16]
        return NodeBGP(node, document.peers, document.own_ranges, revision)

    def take_sessions(self, node: str, given: NodeSessions) -> None:
        """What a node's own speaker says of its sessions, in place of what it said before."""
        known = {name for name, nodes in self._by_node.items() if node in nodes}
        sessions = {each.peer: each for each in given.sessions if each.peer in known}
        if sessions and (node in self._of_nodes or len(self._of_nodes) < MOST_NODES):
            self._of_nodes[node] = sessions
        else:
            self._of_nodes.pop(node, None)

    def sessions(self) -> list[tuple[str, Session]]:
        """Every session that is known: the node (empty: this controller), and its state."""
        nodes = self._inventory.view.nodes
        found = [("", session) for session in self.speaker.sessions()]
        for node, sessions in sorted(self._of_nodes.items()):
            if node in nodes:
                found += [(node, session) for session in sessions.values()]
        return found

    # --- what is wrong ---

    def _report(self) -> None:
        by_peer: dict[str, list[tuple[str, Session]]] = {}
        sessions_now = self.sessions()
        _count(sessions_now)
        for node, session in sessions_now:
            by_peer.setdefault(session.peer, []).append((node, session))
        wrong = dict(self.judgement.problems)
        for draft in self.judgement.peers:
            found = [wrong.get(draft.name, ""), self._password_problem(draft)]
            found.append(self._beyond.get(draft.name, ""))
            sessions = by_peer.get(draft.name, ())
            found.append(problem_of(draft, sessions, self.left_out.get(draft.name, 0)))
            wrong[draft.name] = "; ".join(filter(None, found))
        told: dict[Subject, str] = {
            ObjectRef("BGPPeer", "", name): text for name, text in wrong.items() if text
        }
        self._inventory.problems.replace_all(REPORTER, told)

    def _password_problem(self, draft: PeerDraft) -> str:
        why = self._passwords.problems.get(draft.password) if draft.password else None
        return f"spec.passwordSecret: {why}" if why else ""


def _by_node(
    announced: Iterable[Announced], nodes: Iterable[str]
) -> Generator[None, None, dict[str, list[Announced]]]:
    """The routes of which a node is a next hop."""
    found: dict[str, list[Announced]] = {node: [] for node in nodes}
    for each in announced:
        yield
        for node in each.nodes:
            if node in found:
                found[node].append(each)
    return found


def _count(sessions: Iterable[tuple[str, Session]]) -> None:
    by_speaker: dict[str, list[Session]] = {"controller": [], "nodes": []}
    for node, session in sessions:
        by_speaker["nodes" if node else "controller"].append(session)
    for speaker, found in by_speaker.items():
        metrics.BGP_SESSIONS.labels(speaker).set(len(found))
        metrics.BGP_ESTABLISHED.labels(speaker).set(sum(each.is_established for each in found))
        metrics.BGP_PATHS.labels(speaker).set(sum(each.told for each in found))
        metrics.BGP_RECEIVED.labels(speaker).set(sum(each.received for each in found))


def _peer(draft: PeerDraft, password: str) -> Peer:
    return Peer(
        name=draft.name,
        address=draft.address,
        port=draft.port,
        asn=draft.asn,
        local_asn=draft.local_asn,
        hold_time=draft.hold_time,
        graceful_restart=draft.graceful_restart,
        multihop=draft.multihop,
        password=password,
        communities=draft.communities,
        local_preference=draft.local_preference,
    )
