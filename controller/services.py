"""Services, and the EndpointSlices behind them: what is served, and what of it is believed.

Two kinds of `controller.inventory`: objects in, view and problems out, in place and at a cost that
does not grow with other Services. What comes out depends on what is there, never on the order it
came in.
"""

from bisect import insort
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from ipaddress import IPv4Address
from typing import Final, TypeVar

from controller.group_ids import GroupIds, GroupKey
from controller.host_services import Hosts
from controller.service_drafts import (
    NOTHING,
    Claim,
    Draft,
    DraftPort,
    NodeAddress,
    Offer,
    Slice,
    first_address,
    is_tunnel_port,
    judge_service,
    judge_slice,
    service_of,
    united,
    why_none_of_ours,
)
from controller.sources.objects import ServiceObject, SliceObject
from controller.stale_udp import StaleUdp
from flows import topology
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE, Cluster, Endpoint, Frontend, Key, Service, ServicePort, Target

MOST_PROBLEMS: Final = 5
"""So many are told of one object."""
_K = TypeVar("_K")


class Services:
    """Services and slices in; the Services of the view, and problems, out.

    Each method that takes something in returns the keys it touched. What else follows from a
    change of a Service, `hosts` and `stale_udp` are asked.
    """

    def __init__(
        self,
        cluster: Cluster,
        note: Callable[[ObjectRef, str], None],
        groups: GroupIds | None = None,
    ) -> None:
        """`note` is told what is wrong with a subject; empty: nothing any more."""
        self.view: dict[str, Service] = {}
        self.local: dict[str, set[str]] = {}
        """By node, believed or not: see `ClusterView.local_services`."""
        self.targets: dict[str, Target] = {}
        """By their text; see `ClusterView.targets`."""
        self.none_of_ours: dict[str, str] = {}
        """Services for which there is nothing to do, and why."""
        self.service_changes = 0
        self.endpoint_changes = 0
        """Services and EndpointSlices that came, changed or went, so far."""
        self.hosts = Hosts(cluster.service_range)
        self.stale_udp = StaleUdp()
        self._cluster = cluster
        self._note = note
        self._groups = GroupIds() if groups is None else groups
        self._objects: dict[str, ServiceObject] = {}
        self._drafts: dict[str, Draft] = {}
        self._claims: dict[Claim, list[tuple[str, str]]] = {}
        """Ages of the Services that want it, the oldest, who has it, first."""
        self._slice_objects: dict[str, SliceObject] = {}
        self._slices: dict[str, dict[str, Slice]] = {}
        """By Service, then by the slice's name."""
        self._node_addresses: Mapping[IPv4Address, NodeAddress] = {}
        self._to_tunnel_port: set[str] = set()
        """Slices with an endpoint that would be a tunnel's end if a node had its address."""
        self._named: dict[IPv4Address, set[str]] = {}
        """Services that name this address (`Draft.addresses`), whether they get it or not."""
        self.target_services: dict[str, set[str]] = {}
        """See `ClusterView.target_services`."""
        self._triggers: dict[str, float] = {}

    def service(self, name: str) -> ServiceObject | None:
        """The object of this `NAMESPACE/NAME`, if it is one of ours."""
        return self._objects.get(name)

    @property
    def names(self) -> AbstractSet[str]:
        """`NAMESPACE/NAME` of every Service that is one of ours, believed or refused."""
        return self._objects.keys()

    def endpoint_slice(self, name: str) -> SliceObject | None:
        """The object of this `NAMESPACE/NAME`, if it is a Service's."""
        return self._slice_objects.get(name)

    # --- objects in ---

    def set_service(self, new: ServiceObject) -> set[Key]:
        """A Service was added or changed."""
        name = f"{new.metadata.namespace}/{new.metadata.name}"
        if self._objects.get(name) == new:
            return set()
        if why := why_none_of_ours(new):
            touched = self.remove_service(name)
            self.none_of_ours[name] = why
            return touched
        self.none_of_ours.pop(name, None)
        self.service_changes += 1
        self._objects[name] = new
        return self._redraft(name)

    def remove_service(self, name: str) -> set[Key]:
        """A Service is gone."""
        self.none_of_ours.pop(name, None)
        if self._objects.pop(name, None) is None:
            return set()
        self.service_changes += 1
        self._triggers.pop(name, None)
        return self._redraft(name)

    def set_slice(self, new: SliceObject) -> set[Key]:
        """An EndpointSlice was added or changed."""
        name = f"{new.metadata.namespace}/{new.metadata.name}"
        old = self._slice_objects.get(name)
        if old == new:
            return set()
        if not new.service:
            return self.remove_slice(name)
        self.endpoint_changes += 1
        service = service_of(new)
        touched: set[Key] = set()
        if old is not None and service_of(old) != service:
            touched |= self._drop_slice(name)
        self._slice_objects[name] = new
        self._judge_slice(name)
        before = self.view.get(service)
        touched |= self._make({service})
        annotations = new.metadata.annotations
        if self.view.get(service) is not before and annotations:
            triggered = _seconds(annotations.triggered)
            if triggered is not None:
                earlier = self._triggers.get(service, triggered)
                self._triggers[service] = min(earlier, triggered)
        return touched

    def remove_slice(self, name: str) -> set[Key]:
        """An EndpointSlice is gone."""
        if name not in self._slice_objects:
            return set()
        self.endpoint_changes += 1
        return self._drop_slice(name)

    def set_node_addresses(self, new: Mapping[IPv4Address, NodeAddress]) -> set[Key]:
        """Which nodes' addresses these are; judges anew what it concerns."""
        old, self._node_addresses = self._node_addresses, new
        changed = {
            address for address in old.keys() | new.keys() if old.get(address) != new.get(address)
        }
        if not changed:
            return set()
        concerned: set[str] = set()
        for name in self._to_tunnel_port:
            if any(first_address(e) in changed for e in self._slice_objects[name].endpoints or ()):
                self._judge_slice(name)
                concerned.add(service_of(self._slice_objects[name]))
        touched = self._make(concerned)
        named = {name for address in changed for name in self._named.get(address, ())}
        for name in named:
            touched |= self._redraft(name)
        return touched

    # --- what others ask ---

    def take_triggers(self) -> dict[str, float]:
        """By Service, when the earliest change was made that altered it since the last call.

        In seconds since 1970, as whoever wrote the EndpointSlice says.
        """
        taken, self._triggers = self._triggers, {}
        return taken

    # --- slices ---

    def _judge_slice(self, name: str) -> None:
        given = self._slice_objects[name]
        judged = judge_slice(given, self._cluster, self._node_addresses)
        self._slices.setdefault(judged.service, {})[name] = judged
        if any(is_tunnel_port(port, self._cluster) for port in given.ports or ()):
            self._to_tunnel_port.add(name)
        else:
            self._to_tunnel_port.discard(name)

    def _drop_slice(self, name: str) -> set[Key]:
        service = service_of(self._slice_objects.pop(name))
        self._to_tunnel_port.discard(name)
        slices = self._slices[service]
        del slices[name]
        if not slices:
            del self._slices[service]
        self._note(ObjectRef.namespaced("EndpointSlice", name), "")
        return self._make({service})

    def _join(self, service: str, port: DraftPort) -> tuple[Endpoint, ...]:
        """The endpoints of a Service port, over all of its slices."""
        slices = self._slices.get(service, {})
        parts = [
            found
            for _, each in sorted(slices.items())
            if each.endpoints and (found := each.endpoints.get((port.name, port.protocol)))
        ]
        return parts[0] if len(parts) == 1 else united(e for part in parts for e in part)

    # --- Services ---

    def _redraft(self, name: str) -> set[Key]:
        """Judge a Service by itself; then it, and whoever gets or loses something by that."""
        given = self._objects.get(name)
        old = self._drafts.pop(name, NOTHING)
        new = judge_service(given, self._cluster, self._node_addresses) if given else NOTHING
        if given:
            self._drafts[name] = new
        for address in old.addresses - new.addresses:
            _remove(self._named, address, name)
        for address in new.addresses - old.addresses:
            self._named.setdefault(address, set()).add(name)
        return self._make({name} | self._claim(new.age, new.offers(), old=(old.age, old.offers())))

    def _claim(
        self,
        age: tuple[str, str],
        offers: Iterable[Offer],
        old: tuple[tuple[str, str], Iterable[Offer]],
    ) -> set[str]:
        """Change what a Service claims; everybody who claims what has another holder now."""
        before = {(old[0], offer.claim) for offer in old[1]}
        after = {(age, offer.claim) for offer in offers}
        changed = before ^ after
        holders = {claim: self._claims.get(claim, [])[:1] for _, claim in changed}
        for was, claim in before - after:
            self._claims[claim].remove(was)
        for now, claim in after - before:
            insort(self._claims.setdefault(claim, []), now)
        concerned: set[str] = set()
        for claim, holder in holders.items():
            claimants = self._claims[claim]
            if claimants[:1] != holder:
                concerned |= {name for _, name in claimants}
            if not claimants:
                del self._claims[claim]
        return concerned

    def _make(self, names: AbstractSet[str]) -> set[Key]:
        """Put these Services together anew, and those whose group ids change by it."""
        touched: set[Key] = set()
        waiting = set(names)
        while waiting:
            name = waiting.pop()
            old = self.view.get(name)
            parts, problems = self._parts(name)
            moved = self._share_out_ids(name, old, parts)
            waiting |= {key.service for key in moved} - {name}
            new = self._put_together(name, parts)
            if new == old:
                new = old
            elif new is None:
                del self.view[name]
            else:
                self.view[name] = new
            if new is not old:
                touched.add(Key(CLUSTER_SCOPE, "service", name))
                touched |= self._follow_choices(name, old, new)
                touched |= self._follow_targets(name, old, new)
                self.stale_udp.follow(old, new)
            self.hosts.follow(name, old, new, self._health_check(name))
            self._note(ObjectRef.namespaced("Service", name), _sentence(problems))
            self._note_slices(name)
        return touched

    def _parts(self, name: str) -> tuple[list[ServicePort], list[str]]:
        """A Service's ports, without their groups, and all that is wrong with it."""
        draft = self._drafts.get(name)
        if draft is None:
            return [], []
        problems = list(draft.problems)
        parts: list[ServicePort] = []
        for port in draft.ports:
            frontends: list[Frontend] = []
            for offer in port.offers:
                if (holder := self._holder(offer)) == name:
                    frontends.append(offer.frontend)
                else:
                    problems.append(f"{offer.field}: {offer.claim} is Service {holder}'s already")
            if not frontends:
                continue
            parts.append(
                ServicePort(
                    port.name,
                    port.protocol,
                    tuple(frontends),
                    self._join(name, port),
                    {},
                    draft.internal_local and any(not f.external for f in frontends),
                    draft.external_local and any(f.external for f in frontends),
                    draft.affinity,
                )
            )
        check = draft.health_check
        if check and (holder := self._holder(check)) != name:
            problems.append(f"{check.field}: {check.claim} is Service {holder}'s already")
        return parts, problems

    def _health_check(self, name: str) -> int | None:
        """The port of every node that it has for that."""
        draft = self._drafts.get(name)
        check = draft.health_check if draft else None
        return check.frontend.port if check and self._holder(check) == name else None

    def _holder(self, offer: Offer) -> str:
        return self._claims[offer.claim][0][1]

    def _share_out_ids(
        self, name: str, old: Service | None, parts: Iterable[ServicePort]
    ) -> set[GroupKey]:
        before = {
            GroupKey(name, port.name, port.protocol, variant)
            for port in (old.ports if old else ())
            for variant in port.groups
        }
        after = {
            GroupKey(name, port.name, port.protocol, variant)
            for port in parts
            for variant in _variants(port)
        }
        moved: set[GroupKey] = set()
        for key in before - after:
            moved |= self._groups.give_back(key)
        for key in after - before:
            moved |= self._groups.take(key)
        return moved

    def _put_together(self, name: str, parts: Iterable[ServicePort]) -> Service | None:
        ports = tuple(
            replace(
                port,
                groups={
                    variant: self._groups[GroupKey(name, port.name, port.protocol, variant)]
                    for variant in _variants(port)
                },
            )
            for port in parts
        )
        namespace, _, rest = name.partition("/")
        return Service(namespace, rest, ports) if ports else None

    def _note_slices(self, service: str) -> None:
        """Say what is wrong with its slices; of IPv6 ones that depends on the Service."""
        draft = self._drafts.get(service)
        for name, judged in self._slices.get(service, {}).items():
            problems = judged.problems
            if judged.ipv6 and draft and draft.ipv4_only:
                problems = (f"addressType is IPv6, and Service {service} is IPv4 alone",)
            self._note(ObjectRef.namespaced("EndpointSlice", name), _sentence(problems))

    # --- what follows from a change ---

    def _follow_choices(self, name: str, old: Service | None, new: Service | None) -> set[Key]:
        """Keep `local` true; the keys of nodes whose own choice may be another now."""
        before = _choices(old)
        after = _choices(new)
        for node in before.keys() - after.keys():
            _remove(self.local, node, name)
        for node in after.keys() - before.keys():
            self.local.setdefault(node, set()).add(name)
        return {
            Key(node, "service", name)
            for node in before.keys() | after.keys()
            if before.get(node) != after.get(node)
        }

    def _follow_targets(self, name: str, old: Service | None, new: Service | None) -> set[Key]:
        """Update `targets` and who has them; the keys of those that came, went or changed owner."""
        before, after = self._targets(old), self._targets(new)
        for target in before - after:
            _remove(self.target_services, str(target), name)
            if str(target) not in self.target_services:
                del self.targets[str(target)]
        for target in after - before:
            self.targets[str(target)] = target
            self.target_services.setdefault(str(target), set()).add(name)
        return {Key(CLUSTER_SCOPE, "target", str(target)) for target in before ^ after}

    def _targets(self, service: Service | None) -> set[Target]:
        return {
            Target.of(endpoint, port.protocol, self._cluster.pod_range)
            for port in (service.ports if service else ())
            for endpoint in port.endpoints
        }


# --- Services, put together ---


def _seconds(text: str) -> float | None:
    """Since 1970."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _variants(port: ServicePort) -> list[str]:
    """See `flows.view.ServicePort`."""
    found = ["cluster"]
    if port.internal_local or port.external_local:
        found.append("local")
    if any(endpoint.nodes for endpoint in port.endpoints):
        found.append("node")
    zones = {zone for endpoint in port.endpoints for zone in endpoint.zones}
    found += [f"zone {zone}" for zone in sorted(zones)]
    parts = range(topology.parts(port))
    return found + [f"part {part} of {variant}" for variant in found for part in parts]


def _choices(service: Service | None) -> dict[str, list[object]]:
    """By node that chooses otherwise than the others: all that its choice can depend on."""
    found: dict[str, list[object]] = {}
    for port in service.ports if service else ():
        nodes = port.nodes_with_a_choice()
        if not nodes:
            continue
        # Whether hints hold is a matter of all endpoints that are ready.
        hinted = [bool(e.nodes) for e in port.endpoints if e.ready] if "node" in port.groups else []
        whole = (
            port.name,
            port.protocol,
            port.frontends,
            port.groups,
            port.internal_local,
            port.external_local,
            port.affinity,
            bool(hinted) and all(hinted),
        )
        own: dict[str, list[Endpoint]] = {node: [] for node in nodes}
        for endpoint in port.endpoints:
            for node in {endpoint.node, *endpoint.nodes}:
                if node in own:
                    own[node].append(endpoint)
        for node, endpoints in own.items():
            found.setdefault(node, []).append((whole, endpoints))
    return found


def _sentence(problems: Iterable[str]) -> str:
    # A field that is wrong once for each of many ports is wrong once.
    told = list(dict.fromkeys(problems))
    more = len(told) - MOST_PROBLEMS
    return "; ".join(told[:MOST_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))


def _remove(index: dict[_K, set[str]], key: _K, name: str) -> None:
    index[key].discard(name)
    if not index[key]:
        del index[key]
