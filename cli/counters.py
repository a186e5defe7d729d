"""How commands read the counters of switches, page by page, and what rates they make."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import click

from cli.completions import NODES
from cli.controller import Controller, ask, convert
from controller.references import Reference
from controller.reports.counters import Counters, DropRow, NodeCounters
from controller.reports.top import DropRates, NodeRates, PodRates, ServiceRates, Top

DropKey = tuple[str, str, str, tuple[Reference, ...]]
PAGE: Final = 16
"""Nodes of one answer of a controller."""


def chosen_nodes(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--node` and `--all`: the parameters `nodes` and `everything`."""
    command = click.option("--all", "everything", is_flag=True, help="Read all nodes, in turns.")(
        command
    )
    return click.option(
        "--node",
        "nodes",
        multiple=True,
        metavar="NODE",
        shell_complete=NODES,
        help=f"Read this node. Can be repeated.  [default: the first {PAGE}]",
    )(command)


@dataclass
class Snapshot:
    """The counters of some nodes."""

    nodes: dict[str, NodeCounters] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)
    of: int = 0


def read(
    controller: Controller, nodes: Collection[str], what: str = "", *, most: int | None = None
) -> Snapshot:
    """The counters of these nodes; of all, `most` at most, if none is named.

    Raises `RequestError`.
    """
    made, after, chosen = Snapshot(), "", [*nodes]
    while True:
        query = {"after": after, "what": what, "node": chosen[:PAGE]}
        page = convert(ask(controller, "/v1/counters", query), Counters)
        made.of = page.of
        # A bundle tells of all nodes that it has.
        made.nodes |= {each.node: each for each in page.nodes if each.node in nodes or not nodes}
        made.unread |= page.unread
        if chosen:
            chosen = chosen[PAGE:]
            if not chosen:
                return made
            continue
        after = page.after
        if not after or (most is not None and len(made.nodes) + len(made.unread) >= most):
            return made


def rates(before: Snapshot, after: Snapshot) -> Top:
    """What happened each second between two snapshots, on the nodes that both have."""
    pods: list[PodRates] = []
    services: dict[Reference, float] = {}
    nodes: list[NodeRates] = []
    drops: dict[str, list[tuple[float, str, str]]] = {}
    longest = 0.0
    for name, new in after.nodes.items():
        old = before.nodes.get(name)
        seconds = new.at - old.at if old is not None else 0.0
        if old is None or seconds <= 0:
            continue
        longest = max(longest, seconds)
        own, totals = _traffic(old, new, seconds)
        pods += own
        for ref, connections in _connections(old, new, seconds):
            services[ref] = services.get(ref, 0.0) + connections
        dropped = 0.0
        for row, packets in new_drops(old, new):
            rate = packets / seconds
            dropped += rate
            drops.setdefault(row.reason, []).append((rate, name, _why(row)))
        nodes.append(_node_rates(name, totals, dropped))
    return Top(
        at=max((each.at for each in after.nodes.values()), default=time.time()),
        seconds=longest,
        read=len(after.nodes),
        of=after.of,
        pods=tuple(sorted(pods, key=lambda row: -row.sent_bytes - row.received_bytes)),
        services=tuple(
            ServiceRates(ref, rate)
            for ref, rate in sorted(services.items(), key=lambda each: -each[1])
            if rate > 0
        ),
        nodes=tuple(sorted(nodes, key=lambda row: -_total(row))),
        drops=tuple(sorted(map(_drop_rates, drops.items()), key=lambda row: -row.packets)),
        unread=after.unread,
        left_out={name: each.left_out for name, each in after.nodes.items() if each.left_out},
    )


def new_drops(old: NodeCounters, new: NodeCounters) -> Iterator[tuple[DropRow, int]]:
    """The rows whose counters rose, and by how much."""
    known = {_drop_key(row): row.packets for row in old.drops}
    for row in new.drops:
        # A flow that was added anew counts from 0.
        before = known.get(_drop_key(row), 0)
        packets = row.packets - before if row.packets >= before else row.packets
        if packets > 0:
            yield row, packets


def _drop_key(row: DropRow) -> DropKey:
    return row.reason, row.why, row.table, row.objects


def _traffic(
    old: NodeCounters, new: NodeCounters, seconds: float
) -> tuple[list[PodRates], tuple[float, ...]]:
    """The rates of pods, and the totals of pods, tunnel and gateway."""
    known = {row.object: row for row in old.traffic}
    pods: list[PodRates] = []
    totals = {"pod": [0.0, 0.0], "tunnel": [0.0, 0.0], "gateway": [0.0, 0.0]}
    for row in new.traffic:
        before = known.get(row.object)
        counts = [
            max(0, (now - then)) / seconds
            for now, then in (
                (row.sent_bytes, before.sent_bytes if before else 0),
                (row.received_bytes, before.received_bytes if before else 0),
                (row.sent_packets, before.sent_packets if before else 0),
                (row.received_packets, before.received_packets if before else 0),
            )
        ]
        total = totals[row.object.kind if row.object.kind in totals else "pod"]
        total[0] += counts[0]
        total[1] += counts[1]
        if row.object.kind not in totals and any(counts):
            pods.append(PodRates(row.object, new.node, *counts))
    # What the tunnel sends into the switch, the node has received by it.
    order = (*totals["pod"], *reversed(totals["tunnel"]), *reversed(totals["gateway"]))
    return pods, order


def _node_rates(node: str, totals: tuple[float, ...], dropped: float) -> NodeRates:
    pods_sent, pods_received, tunnel_sent, tunnel_received, gateway_sent, gateway_received = totals
    return NodeRates(
        node, pods_sent, pods_received, tunnel_sent, tunnel_received, gateway_sent,
        gateway_received, dropped,
    )  # fmt: skip


def _connections(
    old: NodeCounters, new: NodeCounters, seconds: float
) -> Iterator[tuple[Reference, float]]:
    known: Mapping[Reference, int] = {row.object: row.connections for row in old.services}
    for row in new.services:
        yield row.object, max(0, row.connections - known.get(row.object, 0)) / seconds


def _total(row: NodeRates) -> float:
    return row.pods_sent_bytes + row.pods_received_bytes


def _drop_rates(given: tuple[str, list[tuple[float, str, str]]]) -> DropRates:
    reason, rows = given
    _, node, why = max(rows)
    return DropRates(reason, sum(rate for rate, _, _ in rows), node, why)


def _why(row: DropRow) -> str:
    return f"{objects_text(row)}: {row.why}" if row.objects else row.why


def objects_text(row: DropRow) -> str:
    """The objects of a row, the first of many."""
    named = ", ".join(map(str, row.objects[:3]))
    return f"{named} and {len(row.objects) - 3} more" if len(row.objects) > 3 else named
