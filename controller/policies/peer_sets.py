"""The sets of peers that policies use, and who is in them."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Final

from controller.policies.blocks import Lookup
from controller.policies.drafts import Peers, name_of_peers
from controller.policies.gateways import Gateways, addresses_of
from controller.policies.ids import Ids
from controller.policies.needs import Changes, Needed, Users
from controller.policies.pod_groups import PodGroup, PodGroups, SelectionState
from controller.policies.port_sets import NamedPort
from controller.policies.selectors import EVERYTHING, Selection
from controller.policies.slices import SLICE, Slices
from flows.family import IPNetwork
from flows.kinds import PEER_MEMBER, PEER_SET
from flows.policy import Direction, PeerBlock, PeerMember, PeerSet, blocks_id
from flows.refs import ObjectRef
from flows.view import SOME_SCOPE, Attachment, Node

MANY_NODES: Final = 64
"""If more nodes change at once, a set looks which nodes are in its blocks, not the opposite."""
PAGE: Final = 256
"""Blocks of one key of the view."""
NumberedPort = tuple[NamedPort, int]
"""A named port, and one number that it has in some pods. Its protocol is known."""
_ALL_PODS: Final = Selection(EVERYTHING, EVERYTHING)


class PeerSetState(Needed):
    """A set of peers that policies use."""

    __slots__ = (
        "direction",
        "gateways",
        "has_outsiders",
        "lookup",
        "members",
        "pages",
        "peers",
        "port",
        "selections",
        "users",
    )

    def __init__(
        self,
        name: str,
        number: int,
        direction: Direction,
        peers: Peers,
        port: NumberedPort | None,
    ) -> None:
        super().__init__(name, number)
        self.direction = direction
        self.peers = peers
        self.port = port
        """Only pods whose port has this number."""
        self.has_outsiders = port is None and peers.has_all_pods
        """Whether all pods are in the set: then it needs no members."""
        self.selections: tuple[SelectionState, ...] = ()
        """What selects its members; empty where all pods are in the set."""
        self.members: dict[str, PeerMember] = {}
        """By address."""
        self.gateways: dict[str, str] = {}
        """By node, the address of its gateway if that is a member."""
        self.lookup: Lookup | None = None
        """Of the blocks, if there are any."""
        self.users = Users()
        self.pages = max(1, -(-len(peers.blocks) // PAGE))

    @property
    def wanted(self) -> tuple[Selection, ...]:
        """The selections that select its members."""
        return () if self.has_outsiders else self.peers.selections

    def accepts(self, group: PodGroup) -> bool:
        """Whether the attachments of this group are members."""
        if not group.key.is_peer or group.selected.isdisjoint(self.selections):
            return False
        return self.port is None or self.port in group.key.named_ports

    def page_keys(self) -> Iterator[str]:
        """The keys of its blocks in the view."""
        yield self.key
        for page in range(1, self.pages):
            yield f"{self.key} {page}"

    def fragments(self) -> Iterator[tuple[str, str]]:
        if self.peers.blocks or self.has_outsiders:
            for name in self.page_keys():
                yield PEER_SET.name, name
        for address in list(self.members):
            yield PEER_MEMBER.name, f"{self.key} {address}"


class PeerSets:
    """All sets of peers: their part of the view, and their members."""

    def __init__(self, groups: PodGroups, changes: Changes, pod_range: IPNetwork) -> None:
        self.view: Final[dict[str, PeerSet]] = {}
        self.members: Final[dict[str, Mapping[str, PeerMember]]] = {}
        """See `ClusterView.peer_sets` and `ClusterView.peer_members`."""
        self.states: Final[dict[str, PeerSetState]] = {}
        """By id, those that are not refused."""
        self.refusal_changed: Callable[[Iterable[ObjectRef]], None] = lambda _: None
        """Called with the policies that use a set of which `is_refused` has changed."""
        self.gateways: Final = Gateways(pod_range)
        self._groups = groups
        self._changes = changes
        self._ids: Ids[PeerSetState] = Ids()
        self._by_name: dict[str, PeerSetState] = {}
        self._with_blocks: dict[PeerSetState, None] = {}
        self._with_outsiders: dict[PeerSetState, None] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    # --- which sets there are ---

    def use(
        self,
        peers: Peers | None,
        direction: Direction,
        port: NumberedPort | None,
        user: ObjectRef,
    ) -> Slices[PeerSetState]:
        """The set of these peers, for one more policy; it then has all its members.

        `peers` may be None, everybody, with a `port` only.
        """
        name = yield from name_of_peers(peers, direction, port)
        found = self._by_name.get(name)
        if found is None:
            number = self._ids.number(name)
            found = PeerSetState(name, number, direction, peers or Peers((_ALL_PODS,)), port)
            if found.peers.blocks:
                found.lookup = yield from Lookup.of(found.peers.blocks)
            # Before the members, so that whoever comes meanwhile is one.
            states = []
            for selection in found.wanted:
                state = yield from self._groups.use(selection, found)
                states.append(state)
            found.selections = tuple(states)
            yield from self._fill(found)
            self._add(found)
        if found.users.add(user):
            self._show(found)
        return found

    def release(self, used: PeerSetState, user: ObjectRef) -> None:
        """A policy does not use a set any more. No node may need it for this policy."""
        if used.users.remove(user):
            self._show(used)
        if used.users.refs:
            return
        del self._by_name[used.name]
        self._withdraw(used)
        for selection in used.wanted:
            self._groups.release(selection, used)
        self._with_blocks.pop(used, None)
        self._with_outsiders.pop(used, None)
        self._judged(self._ids.release(used))

    def _add(self, new: PeerSetState) -> None:
        self._by_name[new.name] = new
        if new.lookup is not None:
            self._with_blocks[new] = None
        if new.has_outsiders:
            self._with_outsiders[new] = None
        self._judged(self._ids.claim(new))
        if not new.is_refused:
            self._publish(new)

    def _judged(self, changed: Iterable[PeerSetState]) -> None:
        """Of these, `is_refused` has changed."""
        for each in sorted(changed, key=lambda each: not each.is_refused):
            if each.is_refused:
                self._withdraw(each, refused=True)
            else:
                self._publish(each)
            self.refusal_changed(each.users.refs)

    def _publish(self, new: PeerSetState) -> None:
        """Put a set into the view."""
        self.states[new.key] = new
        self.members[new.key] = new.members
        self._show(new)
        for node in new.nodes:
            self._changes.whole(new, node)

    def _withdraw(self, gone: PeerSetState, *, refused: bool = False) -> None:
        """Remove a set from the view, if it is there."""
        if gone.is_refused and not refused:
            return
        if gone.nodes or gone in self._changes.ceased:
            self._changes.whole(gone, SOME_SCOPE)
        for node in gone.nodes:
            self._changes.whole(gone, node)
        del self.states[gone.key], self.members[gone.key]
        for name in gone.page_keys():
            del self.view[name]

    def _show(self, changed: PeerSetState) -> None:
        """What the view says about a set itself has changed."""
        if self.states.get(changed.key) is not changed:
            return
        users = changed.users.named
        outsiders, mask = self.gateways.outsiders if changed.has_outsiders else (None, None)
        blocks: tuple[PeerBlock, ...] = changed.peers.blocks
        for page, name in enumerate(changed.page_keys()):
            self.view[name] = PeerSet(
                changed.number if page == 0 or outsiders is None else blocks_id(changed.number),
                changed.direction,
                blocks[page * PAGE : (page + 1) * PAGE],
                None if page else outsiders,
                None if page else mask,
                users,
            )
        if blocks or changed.has_outsiders:
            names = ((PEER_SET.name, name) for name in changed.page_keys())
            changed.touch(self._changes, names)

    # --- members ---

    def sets_of(self, group: PodGroup) -> dict[PeerSetState, None]:
        """The sets whose members are the attachments of a group."""
        if not group.key.is_peer:
            return {}
        return {
            user: None
            for state in group.selected
            for user in state.users
            if isinstance(user, PeerSetState)
            and (user.port is None or user.port in group.key.named_ports)
        }

    def add_member(self, to: PeerSetState, attachment: Attachment) -> None:
        """An attachment is a member of a set."""
        address = str(attachment.address)
        member = PeerMember(to.number, to.direction, attachment.address, attachment.ref)
        if to.members.get(address) != member:
            to.members[address] = member
            self._member_changed(to, address)

    def remove_member(self, of: PeerSetState, attachment: Attachment) -> None:
        """An attachment is not a member any more."""
        address = str(attachment.address)
        member = of.members.get(address)
        if member is not None and member.owner == attachment.ref:
            del of.members[address]
            self._member_changed(of, address)

    def _fill(self, new: PeerSetState) -> Slices[None]:
        done = 0
        for state in new.selections:
            for group in list(state.groups):
                done += 1
                if done % SLICE == 0:
                    yield
                if not new.accepts(group):
                    continue
                for attachment in list(group.attachments.values()):
                    done += 1
                    if done % SLICE == 0:
                        yield
                    if new.accepts(group):
                        self.add_member(new, attachment)
        if new.lookup is not None:
            yield from self._find_gateways(new)

    # --- nodes ---

    def set_nodes(self, changed: Collection[str], nodes: Mapping[str, Node]) -> Slices[None]:
        """Some nodes were added, changed or removed."""
        if self.gateways.set(changed, nodes):
            for each in list(self._with_outsiders):
                yield
                self._show(each)
        for each in list(self._with_blocks):
            yield
            if each not in self._with_blocks:
                continue
            if len(changed) > MANY_NODES:
                yield from self._find_gateways(each)
                continue
            for name in changed:
                self._set_gateway(each, name)

    def _find_gateways(self, of: PeerSetState) -> Slices[None]:
        """A set that contains an address of a node has the node's gateway as a member, too."""
        names = dict.fromkeys(of.gateways)
        for number, block in enumerate(of.peers.blocks):
            if number % SLICE == SLICE - 1:
                yield
            if not block.is_member:
                continue
            for done, (_, node) in enumerate(self.gateways.nodes_in(block)):
                if done % SLICE == SLICE - 1:
                    yield
                names[node.name] = None
        for done, name in enumerate(names):
            if done % SLICE == SLICE - 1:
                yield
            self._set_gateway(of, name)

    def _set_gateway(self, of: PeerSetState, name: str) -> None:
        """Make the gateway of a node a member, or not."""
        node, lookup = self.gateways.nodes.get(name), of.lookup or ()
        member = None
        if (
            node is not None
            and int(node.gateway) not in lookup
            and any(address in lookup for address in addresses_of(node))
        ):
            member = PeerMember(of.number, of.direction, node.gateway, node.ref)
        old = of.gateways.pop(name, None)
        if old is not None and (member is None or old != str(member.address)):
            self._remove_gateway(of, old, ObjectRef.node(name))
        if member is not None:
            address = of.gateways[name] = str(member.address)
            if of.members.get(address) != member:
                of.members[address] = member
                self._member_changed(of, address)

    def _remove_gateway(self, of: PeerSetState, address: str, owner: ObjectRef) -> None:
        # Another node may have the podCIDR already.
        if (known := of.members.get(address)) is not None and known.owner == owner:
            del of.members[address]
            self._member_changed(of, address)

    def _member_changed(self, of: PeerSetState, address: str) -> None:
        if of.is_refused:
            return
        name = f"{of.key} {address}"
        of.touch(self._changes, [(PEER_MEMBER.name, name)])
        if address not in of.members and (of.nodes or of in self._changes.ceased):
            self._changes.removed.setdefault(of, {})[PEER_MEMBER.name, name] = None
