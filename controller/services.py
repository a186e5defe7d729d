"""Services, and the EndpointSlices behind them: what is served, and what is refused.

Two kinds of `controller.inventory`. They take objects in, and keep their part of the view and the
problems up to date. The cost of a change does not grow with the number of other Services. The
result depends on the objects alone, never on the order in which they came.
"""

from collections.abc import Callable, Container, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import replace
from datetime import datetime
from typing import Final, TypeVar

from controller.group_ids import GroupIds, GroupKey
from controller.host_services import Hosts
from controller.known_addresses import KnownAddresses, NodeAddress
from controller.service_changes import changed_keys, group_variants, node_choices
from controller.service_claims import Claims
from controller.service_costs import (
    MAX_COST,
    MAX_NAMESPACE_COST,
    MAX_NAMESPACE_EXTERNAL_PORTS,
    MAX_SERVICE_ENDPOINTS,
    ServiceCosts,
)
from controller.service_drafts import (
    NOTHING,
    Draft,
    DraftPort,
    read_service,
    why_ignored,
)
from controller.service_targets import Targets
from controller.slice_drafts import (
    PortEndpoints,
    SliceDraft,
    has_tunnel_port,
    ipv4_addresses,
    joined,
    read_slice,
    service_of,
)
from controller.sources.endpoint_objects import SliceObject
from controller.sources.objects import ServiceObject
from controller.stale_udp import StaleUdp
from flows.family import IPAddress
from flows.refs import ObjectRef
from flows.view import Cluster, Frontend, Key, Service, ServicePort, Target
from wire.documents import MAX_EXTERNAL_PORTS

MAX_PROBLEMS: Final = 5
"""Problems of one object that are reported."""
API_SERVERS: Final = "default/kubernetes"
"""The Service whose endpoints are the API servers."""
_K = TypeVar("_K")


class ServiceInventory:
    """Takes in Services and EndpointSlices, and keeps the Services of the view up to date.

    `settle` builds the changed Services and returns the keys that changed, once after any number of
    changes. `hosts` and `stale_udp` have the other effects of a change.
    """

    def __init__(
        self,
        cluster: Cluster,
        note: Callable[[ObjectRef, str], None],
        groups: GroupIds | None = None,
        protected: Mapping[IPAddress, str] | None = None,
    ) -> None:
        """`note` is called with a subject and what is wrong with it; empty: nothing any more.

        `protected`: addresses that no Service may take, and what they are.
        """
        self.view: dict[str, Service] = {}
        self.given: dict[str, ServiceObject] = {}
        """By `NAMESPACE/NAME`, every Service that is not ignored, accepted or refused."""
        self.followers: list[Callable[[str], None]] = []
        """Each is called with the name of a Service that was built again by `settle`."""
        self.local: dict[str, set[str]] = {}
        """By node, accepted or not: see `ClusterView.local_services`."""
        self.targets = Targets()
        self.ignored: dict[str, str] = {}
        """Services that are ignored, and why."""
        self.service_changes = 0
        self.endpoint_changes = 0
        """Services and EndpointSlices that were added, changed or removed, so far."""
        self.addresses = KnownAddresses(protected or {})
        self.costs = ServiceCosts(
            "flows, groups and buckets at each switch", MAX_COST, MAX_NAMESPACE_COST
        )
        self.external_costs = ServiceCosts(
            "ports of external addresses", MAX_EXTERNAL_PORTS, MAX_NAMESPACE_EXTERNAL_PORTS
        )
        self.hosts = Hosts(cluster.service_range, self.addresses)
        self.stale_udp = StaleUdp()
        self._cluster = cluster
        self._note = note
        self._groups = GroupIds() if groups is None else groups
        self._drafts: dict[str, Draft] = {}
        self._claims = Claims()
        self._slice_objects: dict[str, SliceObject] = {}
        self._slices: dict[str, dict[str, SliceDraft]] = {}
        """By Service, then by the slice's name."""
        self._to_tunnel_port: set[str] = set()
        """Slices with the tunnel's port: if a node has such an address, it is no valid endpoint."""
        self._named: dict[IPAddress, set[str]] = {}
        """Services that ask for this address (`Draft.addresses`), whether they get it or not."""
        self._triggers: dict[str, float] = {}
        self._new_triggers: dict[str, float] = {}
        """By Service, from the slices that came since the last `settle`."""
        self._unsettled: set[str] = set()
        """Services that the next `settle` builds."""

    def service(self, name: str) -> ServiceObject | None:
        """The object of this `NAMESPACE/NAME`, unless it is ignored."""
        return self.given.get(name)

    @property
    def names(self) -> AbstractSet[str]:
        """`NAMESPACE/NAME` of every Service that is not ignored, accepted or refused."""
        return self.given.keys()

    def objects(self) -> list[ServiceObject | SliceObject]:
        """All Services that are not ignored, and the slices of Services."""
        return [*self.given.values(), *self._slice_objects.values()]

    def endpoint_slice(self, name: str) -> SliceObject | None:
        """The object of this `NAMESPACE/NAME`, if it is a Service's."""
        return self._slice_objects.get(name)

    # --- objects in ---

    def set_service(self, new: ServiceObject) -> None:
        """A Service was added or changed."""
        name = f"{new.metadata.namespace}/{new.metadata.name}"
        if self.given.get(name) == new:
            return
        if why := why_ignored(new):
            self.remove_service(name)
            self.ignored[name] = why
            return
        self.ignored.pop(name, None)
        self.service_changes += 1
        self.given[name] = new
        self._read_again([name])

    def remove_service(self, name: str) -> None:
        """A Service is gone."""
        self.ignored.pop(name, None)
        if self.given.pop(name, None) is None:
            return
        self.service_changes += 1
        self._triggers.pop(name, None)
        self._new_triggers.pop(name, None)
        self._read_again([name])

    def set_slice(self, new: SliceObject) -> None:
        """An EndpointSlice was added or changed."""
        name = f"{new.metadata.namespace}/{new.metadata.name}"
        old = self._slice_objects.get(name)
        if old == new:
            return
        if not new.service:
            self.remove_slice(name)
            return
        self.endpoint_changes += 1
        service = service_of(new)
        if old is not None and service_of(old) != service:
            self._drop_slice(name)
        self._slice_objects[name] = new
        self._read_slice(name)
        self._unsettled.add(service)
        annotations = new.metadata.annotations
        if annotations and (triggered := _seconds(annotations.triggered)) is not None:
            earlier = self._new_triggers.get(service, triggered)
            self._new_triggers[service] = min(earlier, triggered)
        if service == API_SERVERS:
            self._follow_api_servers()

    def remove_slice(self, name: str) -> None:
        """An EndpointSlice is gone."""
        if name not in self._slice_objects:
            return
        self.endpoint_changes += 1
        service = service_of(self._slice_objects[name])
        self._drop_slice(name)
        if service == API_SERVERS:
            self._follow_api_servers()

    def set_node_addresses(self, new: Mapping[IPAddress, NodeAddress]) -> None:
        """Which addresses Node objects name as the nodes' own."""
        changed = self.addresses.set_of_nodes(new)
        if changed:
            for name in self._to_tunnel_port:
                given = self._slice_objects[name]
                if not changed.isdisjoint(ipv4_addresses(given)):
                    self._read_slice(name)
                    self._unsettled.add(service_of(given))
            # Whether the host translates to an endpoint depends on the owner of its address.
            self._unsettled |= {
                name
                for name, draft in self._drafts.items()
                if draft.external_local and self._has_endpoint_at(name, changed)
            }
        self._follow_addresses(changed)

    def _has_endpoint_at(self, name: str, addresses: Container[IPAddress]) -> bool:
        service = self.view.get(name)
        return service is not None and any(
            endpoint.address in addresses for port in service.ports for endpoint in port.endpoints
        )

    def report_addresses(self, node: str, addresses: Iterable[IPAddress]) -> None:
        """What a node's agent has found on the host's interfaces."""
        self._follow_addresses(self.addresses.report(node, addresses))

    def settle(self) -> set[Key]:
        """Build the Services that changed. Returns the keys that changed."""
        before = {name: self.view.get(name) for name in self._new_triggers}
        names, self._unsettled = self._unsettled, set()
        touched = self._rebuild(names)
        for name, triggered in self._new_triggers.items():
            if self.view.get(name) is not before[name]:
                self._triggers[name] = min(self._triggers.get(name, triggered), triggered)
        self._new_triggers.clear()
        return touched

    # --- what others ask ---

    def take_triggers(self) -> dict[str, float]:
        """By Service, the time of the earliest change since the last call.

        In seconds since 1970, from the annotation of its EndpointSlice.
        """
        taken, self._triggers = self._triggers, {}
        return taken

    # --- slices ---

    def _read_slice(self, name: str) -> None:
        given = self._slice_objects[name]
        draft = read_slice(given, self._cluster, self.addresses)
        self._slices.setdefault(draft.service, {})[name] = draft
        if has_tunnel_port(given.ports, self._cluster):
            self._to_tunnel_port.add(name)
        else:
            self._to_tunnel_port.discard(name)

    def _drop_slice(self, name: str) -> None:
        service = service_of(self._slice_objects.pop(name))
        self._to_tunnel_port.discard(name)
        slices = self._slices[service]
        del slices[name]
        if not slices:
            del self._slices[service]
        self._note(ObjectRef.namespaced("EndpointSlice", name), "")
        self._unsettled.add(service)

    def _join(self, service: str, port: DraftPort) -> PortEndpoints:
        """The endpoints of a Service port, over all of its slices."""
        slices = self._slices.get(service, {})
        key = port.name, port.protocol
        return joined(
            [
                found
                for _, each in sorted(slices.items())
                if each.ports and (found := each.ports.get(key))
            ]
        )

    # --- addresses ---

    def _follow_api_servers(self) -> None:
        found: set[IPAddress] = set()
        for name in self._slices.get(API_SERVERS, {}):
            found |= ipv4_addresses(self._slice_objects[name])
        changed = self.addresses.set_api_servers(found)
        self.hosts.protect()
        self._follow_addresses(changed)

    def _follow_addresses(self, changed: Iterable[IPAddress]) -> None:
        """Read the Services that use these addresses again: their meaning has changed."""
        self._read_again({name for address in changed for name in self._named.get(address, ())})

    # --- Services ---

    def _read_again(self, names: Iterable[str]) -> None:
        """Read these Services again, and mark all Services that are affected as unsettled."""
        waiting = list(names)
        while waiting:
            name = waiting.pop()
            given = self.given.get(name)
            old = self._drafts.pop(name, NOTHING)
            new = read_service(given, self._cluster, self.addresses) if given else NOTHING
            if given:
                self._drafts[name] = new
            changed: set[IPAddress] = set()
            for address in old.addresses - new.addresses:
                _remove(self._named, address, name)
                if address not in self._named:
                    changed |= self.addresses.service_address_removed(address)
            for address in new.addresses - old.addresses:
                if address not in self._named:
                    changed |= self.addresses.service_address_added(address)
                self._named.setdefault(address, set()).add(name)
            waiting += {each for address in changed for each in self._named.get(address, ())}
            self._unsettled |= {name} | self._claims.change(new, old)

    def _rebuild(self, names: AbstractSet[str]) -> set[Key]:
        """Build these Services again, and those that change with them."""
        touched: set[Key] = set()
        waiting = set(names)
        while waiting:
            name = waiting.pop()
            old = self.view.get(name)
            parts, targets, problems = self._ports_of(name)
            waiting |= self._charge(name, parts) - {name}
            if refusal := self.costs.refusal(name) or self.external_costs.refusal(name):
                parts, targets = [], frozenset()
                problems = [refusal]
            moved = self._assign_ids(name, old, parts)
            waiting |= {key.service for key in moved} - {name}
            new = self._put_together(name, parts)
            if new == old:
                new = old
            elif new is None:
                del self.view[name]
            else:
                self.view[name] = new
            if new is not old:
                touched |= changed_keys(name, old, new)
                touched |= self._follow_choices(name, old, new)
                touched |= self.targets.change(name, targets)
                self.stale_udp.follow(old, new)
            self.hosts.follow(name, new, self._health_check(name))
            self._note(ObjectRef.namespaced("Service", name), _sentence(problems))
            self._note_slices(name)
            for follower in self.followers:
                follower(name)
        return touched

    def _ports_of(
        self, name: str
    ) -> tuple[list[tuple[ServicePort, PortEndpoints]], frozenset[Target], list[str]]:
        """A Service's ports without their groups, where its endpoints are, and its problems."""
        draft = self._drafts.get(name)
        if draft is None:
            return [], frozenset(), []
        problems = list(draft.problems)
        parts: list[tuple[ServicePort, PortEndpoints]] = []
        left = MAX_SERVICE_ENDPOINTS
        for port in draft.ports:
            frontends: list[Frontend] = []
            for offer in port.offers:
                if (holder := self._claims.holder(offer.key)) == name:
                    frontends.append(offer.frontend)
                else:
                    problems.append(f"{offer.field}: {offer.claim} is Service {holder}'s already")
            if not frontends:
                continue
            found = self._join(name, port)
            endpoints = tuple(found.by_place.values())
            if len(endpoints) > left:
                problems.append(
                    f"spec.ports[{port.number}]: with its {len(endpoints)} endpoints the Service"
                    f" has more than {MAX_SERVICE_ENDPOINTS}; {len(endpoints) - left} of them get"
                    " no connections"
                )
                endpoints = endpoints[:left]
            left -= len(endpoints)
            made = ServicePort(
                port.name,
                port.protocol,
                tuple(frontends),
                endpoints,
                {},
                draft.internal_local and any(not f.external for f in frontends),
                draft.external_local and any(f.external for f in frontends),
                draft.affinity,
            )
            parts.append((made, found))
        check = draft.health_check
        if check and (holder := self._claims.holder(check.key)) != name:
            problems.append(f"{check.field}: {check.claim} is Service {holder}'s already")
        targets = frozenset().union(*(found.targets for _, found in parts))
        return parts, targets, problems

    def _charge(self, name: str, parts: Iterable[tuple[ServicePort, PortEndpoints]]) -> set[str]:
        """Say what a Service costs; who is refused for it now, or not any more."""
        age = self._drafts.get(name, NOTHING).age
        cost = external = 0
        for port, found in parts:
            # With affinity an endpoint has two flows besides its bucket.
            each = 1 if port.affinity is None else 3
            cost += 4 + len(port.frontends) + min(found.buckets, MAX_SERVICE_ENDPOINTS) * each
            external += sum(f.external and f.address is not None for f in port.frontends)
        return self.costs.set(name, age, cost) | self.external_costs.set(name, age, external)

    def _health_check(self, name: str) -> int | None:
        """The port of every node that it has for that."""
        draft = self._drafts.get(name)
        check = draft.health_check if draft else None
        return check.frontend.port if check and self._claims.holder(check.key) == name else None

    def _assign_ids(
        self, name: str, old: Service | None, parts: Iterable[tuple[ServicePort, PortEndpoints]]
    ) -> set[GroupKey]:
        before = {
            GroupKey(name, port.name, port.protocol, variant)
            for port in (old.ports if old else ())
            for variant in port.groups
        }
        after = {
            GroupKey(name, port.name, port.protocol, variant)
            for port, found in parts
            for variant in group_variants(port, found)
        }
        moved: set[GroupKey] = set()
        for key in before - after:
            moved |= self._groups.give_back(key)
        for key in after - before:
            moved |= self._groups.take(key)
        return moved

    def _put_together(
        self, name: str, parts: Iterable[tuple[ServicePort, PortEndpoints]]
    ) -> Service | None:
        ports = tuple(
            replace(
                port,
                groups={
                    variant: self._groups[GroupKey(name, port.name, port.protocol, variant)]
                    for variant in group_variants(port, found)
                },
            )
            for port, found in parts
        )
        if not ports:
            return None
        namespace, _, rest = name.partition("/")
        addresses = {int(f.address): f.address for p in ports for f in p.frontends if f.address}
        shared = frozenset(
            address for number, address in addresses.items() if self._claims.is_shared(number)
        )
        return Service(namespace, rest, ports, shared)

    def _note_slices(self, service: str) -> None:
        """Report what is wrong with its slices; of IPv6 ones that depends on the Service."""
        draft = self._drafts.get(service)
        for name, read in self._slices.get(service, {}).items():
            problems = read.problems
            if read.ipv6 and draft and draft.ipv4_only:
                problems = (f"addressType is IPv6, and Service {service} is IPv4-only",)
            self._note(ObjectRef.namespaced("EndpointSlice", name), _sentence(problems))

    # --- what follows from a change ---

    def _follow_choices(self, name: str, old: Service | None, new: Service | None) -> set[Key]:
        """Keep `local` true; the keys of nodes whose own choice may be another now."""
        before = node_choices(old)
        after = node_choices(new)
        for node in before.keys() - after.keys():
            _remove(self.local, node, name)
        for node in after.keys() - before.keys():
            self.local.setdefault(node, set()).add(name)
        return {
            Key(node, "service", name)
            for node in before.keys() | after.keys()
            if before.get(node) != after.get(node)
        }


def _seconds(text: str) -> float | None:
    """Since 1970."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _sentence(problems: Iterable[str]) -> str:
    # A field that is wrong once for each of many ports is wrong once.
    told = list(dict.fromkeys(problems))
    more = len(told) - MAX_PROBLEMS
    return "; ".join(told[:MAX_PROBLEMS] + ([f"and {more} more"] if more > 0 else []))


def _remove(index: dict[_K, set[str]], key: _K, name: str) -> None:
    index[key].discard(name)
    if not index[key]:
        del index[key]
