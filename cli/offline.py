"""Answers without a controller: from a support bundle, or from manifests.

The same paths as a controller has, so a command does not know whom it asks. What only a running
cluster can know (sessions, counters) comes from the bundle; everything else is computed anew from
the objects.
"""

import re
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import click
import msgspec

from cli import bundle_file
from cli.bundle_file import BundleError
from cli.controller import Query, RequestError
from cli.output import say_nothing_by_itself
from controller import service_report
from controller.cluster_status import cluster_status
from controller.counter_rows import Counted, drop_rows
from controller.flow_choice import BadQuestion
from controller.inventory import Inventory
from controller.load_balancers import report as pool_report
from controller.offline.cluster_copy import CopyError, load
from controller.offline.flow_report import chosen_flows
from controller.offline.from_manifests import Offline, from_manifests
from controller.offline.manifests import ManifestError, Manifests
from controller.policies.slices import complete
from controller.policy_reports.ends import QuestionError
from controller.policy_reports.pods import pod_policies
from controller.policy_reports.verdict import verdict
from controller.programs import CompiledPrograms
from controller.reports.check import CheckReport
from controller.reports.counters import Counters, Denials, NodeCounters
from controller.reports.flows import FlowReport
from controller.reports.status import ClusterStatus

T = TypeVar("T")
_SOURCE: Final = "sluice.source"
"""A command that asks twice reads it once."""


@dataclass(frozen=True)
class Source:
    """A cluster without a controller."""

    path: Path
    offline: Offline
    manifests: Manifests
    """Empty for a bundle."""
    header: bundle_file.Header | None = None
    """None: it is no bundle."""

    @property
    def inventory(self) -> Inventory:
        """What there is."""
        return self.offline.inventory

    @cached_property
    def programs(self) -> CompiledPrograms:
        """What the switches should hold."""
        return CompiledPrograms(self.inventory.view)

    def recorded(self, name: str, kind: type[T]) -> T | None:
        """A member of the bundle; None: it has none. Raises `RequestError`."""
        if self.header is None:
            return None
        try:
            content = bundle_file.read(self.path, lambda member: member == name).get(name)
            return None if content is None else msgspec.json.decode(content, type=kind)
        except BundleError as error:
            raise RequestError(str(error)) from error
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{self.path}: {name} cannot be read: {error}") from error


def read_source(path: Path, pod_range: IPv4Network | None = None) -> Source:
    """The cluster of a bundle, or of manifests. Raises `RequestError`.

    What cannot be read of it, or is assumed, is told on standard error.
    """
    say_nothing_by_itself()
    try:
        if bundle_file.is_bundle(path):
            return _bundle(path)
        return _manifests(path, pod_range)
    except (ManifestError, BundleError, CopyError, ValueError) as error:
        raise RequestError(str(error)) from error


def _bundle(path: Path) -> Source:
    wanted = {bundle_file.HEADER, bundle_file.CLUSTER}
    members = bundle_file.read(path, wanted.__contains__)
    header = bundle_file.header(path, members[bundle_file.HEADER])
    if (cluster := members.get(bundle_file.CLUSTER)) is None:
        why = header.missing.get(bundle_file.CLUSTER, "nobody says why")
        raise BundleError(f"{path}: the bundle has no objects: {why}")
    return Source(path, Offline(load(cluster.splitlines())), Manifests(), header)


def _manifests(path: Path, pod_range: IPv4Network | None) -> Source:
    given = Manifests()
    given.read(path)
    made = from_manifests(given, pod_range)
    for problem in given.problems:
        click.echo(f"ignored: {problem}", err=True)
    for assumed in made.assumed:
        click.echo(f"assumed: {assumed}", err=True)
    return Source(path, made, given)


# --- answers ---


def answer(path: Path, asked: str, query: Query) -> Any:
    """What a controller would answer, as values of JSON. Raises `RequestError`."""
    known = click.get_current_context().meta
    if _SOURCE not in known:
        known[_SOURCE] = read_source(path)
    source: Source = known[_SOURCE]
    flat = {name: value for name, value in query.items() if isinstance(value, str)}
    for pattern, make in _ANSWERS:
        if found := pattern.fullmatch(asked):
            try:
                report = make(source, flat, *map(unquote, found.groups()))
            except (BadQuestion, QuestionError) as error:
                raise RequestError(str(error)) from error
            return msgspec.to_builtins(report)
    raise RequestError(f"{asked} is answered by a running controller only, not from {path}")


def _status(source: Source, _: Mapping[str, str]) -> ClusterStatus:
    recorded = source.recorded(bundle_file.STATUS, ClusterStatus)
    if recorded is not None:
        return recorded
    return _done(cluster_status(source.inventory, ready=True, whole=True))


def _check(source: Source, _: Mapping[str, str]) -> CheckReport:
    recorded = source.recorded(bundle_file.CHECK, CheckReport)
    if recorded is None:
        raise RequestError(f"{source.path}: nobody has checked the nodes of this cluster")
    return recorded


def _settings(source: Source, _: Mapping[str, str]) -> Any:
    return source.recorded(bundle_file.SETTINGS, dict)


def _services(source: Source, _: Mapping[str, str]) -> Any:
    return _done(service_report.listed(source.inventory))


def _pools(source: Source, _: Mapping[str, str]) -> Any:
    return _done(pool_report.listed(source.inventory))


def _service(source: Source, query: Mapping[str, str], namespace: str, name: str) -> Any:
    inventory, node = source.inventory, query.get("node")
    if node is not None and node not in inventory.view.nodes:
        raise RequestError(f"Node {node}: {inventory.nodes.reason(node)}")
    found = _done(service_report.detailed(inventory, f"{namespace}/{name}", node))
    if found is None:
        raise RequestError(f"there is no Service {namespace}/{name}")
    return found


def _flows(source: Source, query: Mapping[str, str], node: str | None = None) -> FlowReport:
    recorded = _Recorded(source)
    return chosen_flows(source.inventory, source.programs, recorded, query, node)


def _policy(source: Source, query: Mapping[str, str]) -> Any:
    if (pod := query.get("pod")) is not None:
        made = complete(pod_policies(source.inventory, pod))
        if isinstance(made, str):
            raise RequestError(made)
        return made
    ends = query.get("from", ""), query.get("to", "")
    work = verdict(source.inventory, ends, query.get("port", ""), query.get("protocol", "TCP"))
    return complete(work)


def _counters(source: Source, query: Mapping[str, str]) -> Counters:
    """What was dropped until the bundle was made, on the nodes whose flows it has."""
    if source.header is None or query.get("what") != "drops":
        raise RequestError(f"rates, and counters of switches, are not in {source.path}")
    recorded = _Recorded(source)
    at = source.header.made.timestamp()
    nodes, unread = [], {}
    for node in sorted(recorded):
        try:
            rows = recorded[node].flows
        except KeyError:
            unread[node] = "its flows are not in the bundle"
            continue
        entries = source.programs.of(node)
        known = [
            Counted(row.packets, row.bytes, None, *entries[cookie])
            for row in rows
            if (cookie := int(row.cookie, 16)) in entries
        ]
        nodes.append(NodeCounters(node, at, (), (), tuple(_done(drop_rows(known)))))
    of = len(source.inventory.view.nodes)
    return Counters(nodes=tuple(nodes), unread=unread, of=of, after="")


def _denials(source: Source, _: Mapping[str, str]) -> Denials:
    log_denials = source.inventory.view.cluster.log_denials
    return Denials(enabled=log_denials, denials=(), left_out=0)


def _trace(source: Source, query: Mapping[str, str]) -> Any:
    # Its packages take long to load.
    from controller.offline.trace import trace  # noqa: PLC0415

    return trace(source.inventory, source.programs, query)


class _Recorded(Mapping[str, FlowReport]):
    """The flows of nodes as the bundle has them; one is read when it is asked for."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._members = source.header.flows if source.header else {}

    def __getitem__(self, node: str) -> FlowReport:
        found = self._source.recorded(self._members[node], FlowReport)
        if found is None:
            raise KeyError(node)
        for row in found.flows:
            _check_cookie(self._source.path, row.cookie)
        return found

    def __iter__(self) -> Any:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _check_cookie(path: Path, cookie: str) -> None:
    if not re.fullmatch(r"0x[0-9a-f]{1,16}", cookie):
        raise RequestError(f"{path}: a flow has the cookie {cookie[:40]!r}, which is none")


def _done(work: Generator[None, None, T]) -> T:
    return complete(work)


_Answer = Callable[..., Any]
_ANSWERS: Final[tuple[tuple[re.Pattern[str], _Answer], ...]] = (
    (re.compile("/v1/status"), _status),
    (re.compile("/v1/check"), _check),
    (re.compile("/v1/settings"), _settings),
    (re.compile("/v1/pools"), _pools),
    (re.compile("/v1/services"), _services),
    (re.compile("/v1/services/([^/]+)/([^/]+)"), _service),
    (re.compile("/v1/flows"), _flows),
    (re.compile("/v1/nodes/([^/]+)/flows"), _flows),
    (re.compile("/v1/policy"), _policy),
    (re.compile("/v1/counters"), _counters),
    (re.compile("/v1/denials"), _denials),
    (re.compile("/v1/trace"), _trace),
)
