"""view -> fragments -> programs: the only source of flows.

`fragment(view, key)` is pure: the flows that one object causes in one scope. A `Program` is all
fragments of a scope, and can take a changed fragment in at a cost that does not depend on the
others. Compiling anew (`compile_scope`) is the oracle that every update must equal.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from flows.diff import Delta, GroupChange
from flows.features import arp, classify, conntrack, direct, forwarding, output, services, state
from flows.flow import Flow, Group, Meter
from flows.pipeline import LAYOUT, PipelineError
from flows.view import CLUSTER_SCOPE, ClusterView, Key


@dataclass(frozen=True)
class Fragment:
    """What one object causes in one scope. `cause` names the object for people."""

    cause: str
    flows: tuple[Flow, ...]
    meters: tuple[Meter, ...] = ()
    groups: tuple[Group, ...] = ()
    """Each has a flow among `flows` that says what it holds (`flows.features.state.companion`)."""


def fragment(view: ClusterView, key: Key) -> Fragment | None:
    """The flows that the object behind `key` causes in its scope; None where it is no more."""
    return _FRAGMENTS[key.kind](view, key)


def _cluster(view: ClusterView, _: Key) -> Fragment:
    features = (classify, arp, conntrack, services, direct, forwarding, output)
    flows = (flow for feature in features for flow in feature.cluster(view.cluster))
    return Fragment("cluster", (*LAYOUT.misses(), *flows))


def _peer(view: ClusterView, key: Key) -> Fragment | None:
    node = view.nodes.get(key.name)
    if node is None:
        return None
    features = (classify, conntrack, forwarding)
    return Fragment(str(node), tuple(f for m in features for f in m.peer(view.cluster, node)))


def _service(view: ClusterView, key: Key) -> Fragment | None:
    service = view.services.get(key.name)
    if service is None:
        return None
    if key.scope == CLUSTER_SCOPE:
        flows, groups = services.service(service)
    elif key.scope in view.nodes and key.name in view.local_services.get(key.scope, ()):
        flows, groups = services.service_on(service, key.scope)
    else:
        return None
    return Fragment(str(service), (*flows, *map(state.companion, groups)), groups=tuple(groups))


def _target(view: ClusterView, key: Key) -> Fragment | None:
    target = view.targets.get(key.name)
    if target is None:
        return None
    return Fragment("Services' endpoints", tuple(direct.target(target)))


def _node(view: ClusterView, key: Key) -> Fragment | None:
    node = view.nodes.get(key.scope)
    if node is None:
        return None
    features = (classify, conntrack, services, direct, forwarding)
    flows = tuple(flow for feature in features for flow in feature.node(view.cluster, node))
    return Fragment(str(node), flows, (services.node_meter(view.cluster),))


def _attachment(view: ClusterView, key: Key) -> Fragment | None:
    attachment = view.attachments.get(key.scope, {}).get(key.name)
    if attachment is None or key.scope not in view.nodes:
        return None
    features = (classify, conntrack, direct, forwarding, output)
    flows = tuple(f for m in features for f in m.attachment(view.cluster, attachment))
    meters = (conntrack.attachment_meter(view.cluster, attachment),)
    return Fragment(str(attachment), flows, meters)


_FRAGMENTS: Final[Mapping[str, Callable[[ClusterView, Key], Fragment | None]]] = {
    "cluster": _cluster,
    "peer": _peer,
    "service": _service,
    "target": _target,
    "node": _node,
    "attachment": _attachment,
}


class Program:
    """What one scope should hold, by cookie, and what each flow stands for.

    `version` counts the updates that changed something, from 0.
    """

    def __init__(self, scope: str) -> None:
        self.version = 0
        self.scope = scope
        self.meters: dict[int, Meter] = {}
        self.groups: dict[int, Group] = {}
        """By id."""
        self.companions: dict[int, int] = {}
        """By a group's id, the cookie of the flow that says what it holds."""
        self._fragments: dict[Key, Fragment] = {}
        self._flows: dict[int, tuple[Flow, Fragment]] = {}
        self._taken: dict[object, int] = {}
        self._total = 0
        self._seal: Flow | None = None

    @property
    def cookies(self) -> Mapping[int, tuple[Flow, Fragment]]:
        """Every flow by its cookie, with the fragment that wants it."""
        return self._flows

    def groups_with_causes(self) -> dict[int, tuple[Group, str]]:
        """Every group by its id, with the object it is there for."""
        return {
            group.id: (group, fragment.cause)
            for fragment in self._fragments.values()
            for group in fragment.groups
        }

    def flows(self) -> Iterator[Flow]:
        """Every flow."""
        return (flow for flow, _ in self._flows.values())

    @property
    def seal(self) -> Flow:
        """The flow that says of a switch that it holds all this (`flows.features.state`)."""
        if self._seal is None:
            self._seal = state.seal(self.scope, len(self._flows), self._total)
        return self._seal

    def update(self, changes: Mapping[Key, Fragment | None]) -> Delta:
        """Take changed fragments in (None: gone); what that changes.

        Raises `PipelineError` where two flows would have one table, priority and match, and
        leaves the program as it was.
        """
        old = [f for key in changes if (f := self._fragments.get(key)) is not None]
        new = [f for f in changes.values() if f is not None]
        removed = {flow.cookie for fragment in old for flow in fragment.flows}
        wanted: dict[object, tuple[Flow, Fragment]] = {}
        for made in new:
            for flow in made.flows:
                holder = self._taken.get(flow.key)
                clash = holder is not None and holder not in removed
                if clash or flow.key in wanted:
                    raise PipelineError(
                        f"{made.cause}: {LAYOUT.by_number[flow.table].name} has a flow of priority"
                        f" {flow.priority} with the match {flow.match} already"
                    )
                wanted[flow.key] = flow, made
        added = {flow.cookie: (flow, made) for flow, made in wanted.values()}
        groups = {group.id: group for f in new for group in f.groups}
        old_groups = {group.id for f in old for group in f.groups}
        delta = Delta(
            adds=tuple(flow for cookie, (flow, _) in added.items() if cookie not in removed),
            deletes=tuple(sorted(cookie for cookie in removed if cookie not in added)),
            meters_set=tuple(
                meter for f in new for meter in f.meters if self.meters.get(meter.id) != meter
            ),
            meters_delete=tuple(
                sorted(
                    {m.id for f in old for m in f.meters} - {m.id for f in new for m in f.meters}
                )
            ),
            groups_set=tuple(
                GroupChange(group, self.groups.get(number))
                for number, group in groups.items()
                if self.groups.get(number) != group
            ),
            groups_delete=tuple(sorted(old_groups - groups.keys())),
        )
        for cookie in removed:
            del self._taken[self._flows.pop(cookie)[0].key]
        for cookie, (flow, made) in added.items():
            self._flows[cookie] = flow, made
            self._taken[flow.key] = cookie
        for key, change in changes.items():
            if change is None:
                self._fragments.pop(key, None)
            else:
                self._fragments[key] = change
        gone = [self.meters.pop(number) for number in delta.meters_delete]
        gone += [self.meters[m.id] for m in delta.meters_set if m.id in self.meters]
        self.meters.update((meter.id, meter) for meter in delta.meters_set)
        for number in delta.groups_delete:
            del self.groups[number], self.companions[number]
        self.groups.update(groups)
        self.companions.update(
            (change.new.id, state.companion(change.new).cookie) for change in delta.groups_set
        )
        # Incrementally, or a change would cost what did not change.
        self._total += sum(added) + sum(meter.digest for meter in delta.meters_set)
        self._total -= sum(removed) + sum(meter.digest for meter in gone)
        self._total &= 0xFFFF_FFFF_FFFF_FFFF
        if delta:
            self.version += 1
            self._seal = None
        return delta


def compile_scope(view: ClusterView, scope: str) -> Program:
    """The whole program of a node, or of `CLUSTER_SCOPE`, from nothing."""
    keys = view.shared_keys() if scope == CLUSTER_SCOPE else view.node_keys(scope)
    program = Program(scope)
    program.update(fragments(view, sorted(keys)))
    return program


def fragments(view: ClusterView, keys: Iterable[Key]) -> dict[Key, Fragment | None]:
    """The fragments of these keys as they are now."""
    return {key: fragment(view, key) for key in keys}
