"""Nodes: which take part, with which tunnel address and podCIDR."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Interface
from typing import Final

from controller.inventory.node_claims import AddressClaims, RangeClaims
from controller.inventory.node_drafts import NodeDraft, NodeRefusedError, Range, age_of, draft_of
from controller.known_addresses import NodeAddress
from controller.problems import Note
from controller.sources.objects import NodeObject
from flows import names
from flows.family import IPAddress
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Cluster, Key, Node
from flows.ways import Mode

Follower = Callable[[Collection[str]], set[Key]]
"""Called with the names of Nodes whose part in the view changed; returns the keys it changed."""


class Nodes:
    """The kind Node. What follows from `put`, `remove` and `connected` is returned by `settle`.

    A Node whose object cannot be used as it is now (a cloud controller removes its addresses for
    some seconds) keeps the last state that could be used, as long as it is the same Node: its pods
    keep running, so their connections stay, and the problem is reported. This state is lost when
    the controller restarts.
    """

    def __init__(
        self,
        cluster: Cluster,
        reserved: Iterable[Range],
        excluded: Iterable[str],
        note: Note,
    ) -> None:
        """`reserved` are ranges that no podCIDR may overlap, besides the Service range.

        `excluded` are the labels of Nodes that Sluice leaves alone, each `KEY` or `KEY=VALUE`.
        """
        self.accepted: Final[dict[str, Node]] = {}
        """See `ClusterView.nodes`."""
        self.objects: Final[dict[str, NodeObject]] = {}
        """Every Node of the source by its name, accepted or refused."""
        self.addresses: Final[dict[IPAddress, NodeAddress]] = {}
        """All addresses of accepted Nodes."""
        self.version = 0
        """Counts the changes of `accepted`."""
        self.uplinks: Final[dict[str, IPv4Interface]] = {}
        """By Node, the address and subnet that its agent has found on its host."""
        self.session_addresses: Final[dict[str, IPAddress]] = {}
        """By Node, the address that its switch connected from last."""
        self.followers: Final[list[Follower]] = []
        self.modes: Final[Counter[Mode]] = Counter()
        """The number of accepted Nodes in each mode."""
        self.object_changes = 0
        """Grows whenever something of a Node object changes, also if the view stays as it is."""
        self._cluster = cluster
        self._reserved = (("the Service range", cluster.service_range), *reserved)
        self.excluded: Final = tuple(excluded)
        """The labels of Nodes that are left alone."""
        self._note = note
        self._drafts: dict[str, NodeDraft] = {}
        """Nodes that could take part; the last draft that could, where it cannot be used now."""
        self._refusals: dict[str, str] = {}
        """Why a Node cannot be used as it is now."""
        self._ranges = RangeClaims()
        self._claims = AddressClaims()
        self._dirty: set[str] = set()
        self._names_by_dpid: dict[int, str] = {}

    # --- objects and sessions in ---

    def get(self, namespace: str, name: str) -> NodeObject | None:
        """As `ObjectKind.get`."""
        return None if namespace else self.objects.get(name)

    def put(self, new: NodeObject) -> set[Key]:
        """As `ObjectKind.put`."""
        name = new.metadata.name
        old = self.objects.get(name)
        self.objects[name] = new
        self.object_changes += old != new
        if old is None:
            self._names_by_dpid[names.datapath_id(name)] = name
        elif _relevant(old) == _relevant(new):
            return set()
        elif old.metadata.uid != new.metadata.uid:
            self._drafts.pop(name, None)
        self._refusals.pop(name, None)
        if self.exclusion(name):
            self._drafts.pop(name, None)
        else:
            self._draft(new)
        self._dirty.add(name)
        return set()

    def remove(self, namespace: str, name: str) -> set[Key]:
        """As `ObjectKind.remove`."""
        if not namespace and self.objects.pop(name, None) is not None:
            self.object_changes += 1
            del self._names_by_dpid[names.datapath_id(name)]
            self._drafts.pop(name, None)
            self._refusals.pop(name, None)
            self.session_addresses.pop(name, None)
            self.uplinks.pop(name, None)
            self._dirty.add(name)
        return set()

    def report_uplink(self, name: str, uplink: IPv4Interface | None) -> None:
        """What a node's agent has found. It counts when it is an annotation of the Node."""
        if name not in self.objects or uplink is None:
            self.uplinks.pop(name, None)
        else:
            self.uplinks[name] = uplink

    def connected(self, name: str, address: IPAddress) -> None:
        """A Node's switch connected from this address. It counts until it connects from another.

        A session that ends must not change who is believed.
        """
        if name in self.objects and self.session_addresses.get(name) != address:
            self.session_addresses[name] = address
            self._dirty.add(name)

    def _draft(self, new: NodeObject) -> None:
        name = new.metadata.name
        try:
            self._drafts[name] = draft_of(new, self._cluster, self._reserved)
        except NodeRefusedError as refused:
            self._refusals[name] = str(refused)
            if last := self._drafts.get(name):
                self._drafts[name] = replace(
                    last, age=age_of(new), zone=new.zone, problem="", outdated=True
                )

    # --- judging ---

    def settle(self) -> set[Key]:
        """Judge the Nodes that changed, and those that share something with them."""
        if not self._dirty:
            return set()
        dirty, self._dirty = self._dirty, set()
        for name in dirty:
            if draft := self._drafts.get(name):
                self._ranges.put(name, draft.age, draft.pod_cidr)
            else:
                self._ranges.remove(name)
        changed = dirty | self._ranges.resolve_conflicts()
        for name in changed:
            draft = self._drafts.get(name)
            if draft and self._ranges.holds(name):
                self._claims.put(draft, self.session_addresses.get(name))
            else:
                self._claims.remove(name)
        changed |= self._claims.resolve_conflicts()
        for name in sorted(changed):
            self._note(ObjectRef.node(name), self._problem(name))
        return self._accept({name: self._node(name) for name in changed})

    def _node(self, name: str) -> Node | None:
        draft, address = self._drafts.get(name), self._claims.tunnel_addresses.get(name)
        if draft is None or address is None:
            return None
        further = self._claims.further(name)
        return Node(
            name,
            draft.uid,
            address,
            draft.pod_cidr,
            further,
            draft.zone,
            draft.mode,
            draft.subnet_of(address),
        )

    def _problem(self, name: str) -> str:
        """What is wrong with a Node, whether it takes part or not; empty: nothing."""
        draft, address = self._drafts.get(name), self._claims.tunnel_addresses.get(name)
        if draft is None:
            return self._refusals.get(name, "")
        if conflict := self._ranges.conflicts.get(name):
            return f"spec.podCIDR {draft.pod_cidr} overlaps {conflict}"
        problems = [self._refusals[name]] if draft.outdated else []
        problems += [draft.problem] if draft.problem else []
        problems += [
            f"status.addresses: InternalIP {lost} is Node {holder}'s already"
            for lost, holder in self._claims.lost(name)
        ]
        if problems and address is not None:
            problems.append(f"it takes part with address {address} and podCIDR {draft.pod_cidr}")
        return "; ".join(problems)

    def _accept(self, new: Mapping[str, Node | None]) -> set[Key]:
        """Put Nodes into the view."""
        changed = {name: node for name, node in new.items() if self.accepted.get(name) != node}
        if not changed:
            return set()
        self.version += 1
        touched: set[Key] = set()
        for name in changed:
            if old := self.accepted.pop(name, None):
                self.modes[old.mode] -= 1
                for address in (old.address, *old.further_addresses):
                    del self.addresses[address]
        for name, node in changed.items():
            touched |= {Key(CLUSTER_SCOPE, "peer", name), Key(name, "node", name)}
            if node is not None:
                self.accepted[name] = node
                self.modes[node.mode] += 1
                for number, address in enumerate((node.address, *node.further_addresses)):
                    self.addresses[address] = NodeAddress(name, number)
        for follower in self.followers:
            touched |= follower(changed.keys())
        return touched

    # --- what others ask ---

    @property
    def use_tunnel(self) -> bool:
        """Whether any two nodes may send packets of pods through the tunnel."""
        return self.modes.total() > self.modes[Mode.NO_ENCAP]

    def name_of(self, dpid: int) -> str | None:
        """The name of the Node, accepted or refused, whose bridge has this datapath id."""
        return self._names_by_dpid.get(dpid)

    def reason(self, name: str) -> str:
        """Why a Node does not take part."""
        if name not in self.objects:
            return "it is unknown"
        if label := self.exclusion(name):
            return f"it is excluded by its label {label}"
        return self._problem(name) or "it is not judged yet"

    def exclusion(self, name: str) -> str:
        """The label by which a Node is excluded; empty: it is not, or is unknown."""
        given = self.objects.get(name)
        labels = (given.metadata.labels if given else None) or {}
        for label in self.excluded:
            key, equals, value = label.partition("=")
            if key in labels and (not equals or labels[key] == value):
                return f"{key}={labels[key]}"
        return ""


def _relevant(given: NodeObject) -> tuple[object, ...]:
    """What of a Node anything here depends on. Its conditions change for many other reasons."""
    return given.metadata, given.spec, given.status.addresses
