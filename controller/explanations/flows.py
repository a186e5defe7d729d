"""What a flow is for: found by its cookie, or by table, priority and match."""

import re
from dataclasses import dataclass
from types import ModuleType
from typing import Final

from controller.explanations.fields import fields_of
from controller.inventory import Inventory
from controller.object_names import UnknownObject
from controller.policies.slices import SLICE, Slices
from controller.programs import Programs
from controller.references import Reference
from controller.reports.explanation import Explanation, Fact, FlowFacts
from flows.compile import Program
from flows.diff import is_generation, is_learned, is_ours
from flows.features import (
    arp,
    classify,
    conntrack,
    direct,
    egress,
    forwarding,
    misses,
    output,
    policy,
    services,
    state,
)
from flows.flow import Flow
from flows.labels import EVERY_BRIDGE, Labels
from flows.pipeline import LAYOUT, Feature
from flows.policy import SET_REFS
from flows.refs import CLUSTER, ObjectRef, Owners
from flows.text import actions_text, match_text
from flows.view import CLUSTER_SCOPE, ClusterView, Key

MOST_NODES: Final = 10
"""Nodes that are named."""
MOST_COMPARED: Final = 500_000
"""Flows that a line without a cookie is compared with."""


def _in_line(module: ModuleType) -> str:
    """The first line of a feature's documentation, to stand behind the feature's name."""
    line = str(module.__doc__).split("\n", 1)[0]
    # Some begin with the name.
    text = re.sub(r"^\w+: ", "", line)
    return text[0].lower() + text[1:] if text[:2] != text[:2].upper() else text


_PURPOSES: Final = {
    feature: _in_line(module)
    for feature, module in {
        Feature.MISS: misses, Feature.CLASSIFY: classify, Feature.ARP: arp,
        Feature.CONNTRACK: conntrack, Feature.FORWARDING: forwarding, Feature.OUTPUT: output,
        Feature.SERVICES: services, Feature.POLICY: policy, Feature.STATE: state,
        Feature.DIRECT: direct, Feature.EGRESS: egress,
    }.items()
}  # fmt: skip
"""The first line of each feature's documentation."""
_COOKIE: Final = re.compile(r"\bcookie=(0x[0-9a-f]+)", re.IGNORECASE)
_TABLE: Final = re.compile(r"\btable=\"?(\w+)")
_IN_PORT: Final = re.compile(r"\bin_port=\"?([A-Za-z][\w-]*)\"?")
"""By a name, as `ovs-ofctl` prints it to a terminal or with `--names`."""
_PRIORITY: Final = re.compile(r"\bpriority=(\d+)")
_USUAL_PRIORITY: Final = 32_768
"""`ovs-ofctl` does not print this one."""
_HEXADECIMAL: Final = re.compile(r"0x[0-9a-f]{1,16}", re.IGNORECASE)
_COUNTERS: Final = frozenset(
    (
        "cookie", "duration", "table", "n_packets", "n_bytes", "idle_age", "hard_age",
        "idle_timeout", "hard_timeout", "importance", "priority", "send_flow_rem", "reset_counts",
        "no_packet_counts", "no_byte_counts", "check_overlap",
    )
)  # fmt: skip
"""What stands before the match in a line of `ovs-ofctl dump-flows`."""


@dataclass(frozen=True)
class _Found:
    """A flow, and where it belongs."""

    flow: Flow
    owners: Owners
    node: str
    """One of the nodes that should hold it; empty: all."""
    nodes: tuple[str, ...] = ()
    """If not all: those that should hold it for the same objects."""
    others: tuple[tuple[str, Owners], ...] = ()
    """Other nodes, where an equal flow is there for other objects."""


def is_cookie(text: str) -> bool:
    """Whether a text is a cookie."""
    return _HEXADECIMAL.fullmatch(text) is not None


def is_flow_line(text: str) -> bool:
    """Whether a text looks like a line of `ovs-ofctl dump-flows`."""
    return any(word in text for word in ("cookie=", "table=", "actions="))


def of_cookie(
    inventory: Inventory, programs: Programs, text: str, node: str | None
) -> Slices[Explanation]:
    """What a cookie stands for; on this node, if one is given. Raises `UnknownObject`.

    Pods with one ofport on different nodes have some flows that are equal.
    """
    cookie = int(text, 16)
    found = yield from _by_cookie(programs, cookie, node)
    if found is None:
        raise UnknownObject(_unknown(cookie))
    made = yield from _explained(inventory, programs, text, found)
    return made


def of_line(
    inventory: Inventory, programs: Programs, text: str, node: str | None
) -> Slices[Explanation]:
    """What a line of a dump is, by its cookie, else by table, priority and match.

    `node`: only flows of this one and of all. Raises `UnknownObject`.
    """
    cookie = _COOKIE.search(text)
    if cookie is not None and is_ours(int(cookie[1], 16)):
        found = yield from _by_cookie(programs, int(cookie[1], 16), node)
        if found is not None:
            made = yield from _explained(inventory, programs, text, found)
            return made
    if cookie is not None and _is_no_program(int(cookie[1], 16)):
        raise UnknownObject(_unknown(int(cookie[1], 16)))
    found = yield from _by_match(inventory.view, programs, text, node)
    if found is None:
        told = _unknown(int(cookie[1], 16)) if cookie is not None else "no such flow is needed now"
        raise UnknownObject(f"{told}; nor is there a flow of this table, priority and match")
    made = yield from _explained(inventory, programs, text, found)
    return made


def _is_no_program(cookie: int) -> bool:
    return is_learned(cookie) or is_generation(cookie)


def _unknown(cookie: int) -> str:
    if is_generation(cookie):
        return (
            f"cookie {cookie:#x}: says that the controller of generation"
            f" {cookie & state.MOST_GENERATIONS} has written to this switch; an older one may not"
        )
    if is_learned(cookie):
        return (
            f"cookie {cookie:#x}: the switch made this flow itself, to remember the endpoint of a"
            " client (session affinity)"
        )
    if is_ours(cookie):
        feature = Feature(cookie >> 56).name.lower()
        return (
            f"cookie {cookie:#x}: no object needs such a flow now; one was of the feature {feature}"
        )
    return f"cookie {cookie:#x}: not managed by Sluice"


# --- finding it ---


def _by_cookie(programs: Programs, cookie: int, node: str | None) -> Slices[_Found | None]:
    shared = programs.shared
    if (entry := shared.cookies.get(cookie)) is not None:
        return _Found(*entry, "")
    if shared.seal.cookie == cookie:
        return _Found(shared.seal, (CLUSTER,), "")
    flow: Flow | None = None
    owners: dict[str, Owners] = {}
    for number, name in enumerate(list(programs.nodes_with_programs())):
        if number % SLICE == 0:
            yield
        if (entry := _entry(programs.program(name), cookie)) is not None:
            flow, owners[name] = entry
    if flow is None or (node is not None and node not in owners):
        return None
    chosen = node or min(owners)
    mine = owners[chosen]
    return _Found(
        flow, mine, chosen,
        nodes=tuple(sorted(name for name, each in owners.items() if each == mine)),
        others=tuple(sorted((name, each) for name, each in owners.items() if each != mine)),
    )  # fmt: skip


def _entry(program: Program, cookie: int) -> tuple[Flow, Owners] | None:
    # A seal is made when it is asked for, which takes a while for thousands of programs.
    if cookie >> 56 == Feature.STATE and program.seal.cookie == cookie:
        return program.seal, (ObjectRef.node(program.scope),)
    return program.cookies.get(cookie)


def _by_match(
    view: ClusterView, programs: Programs, text: str, node: str | None
) -> Slices[_Found | None]:
    table = _table_of(text)
    given = _PRIORITY.search(text)
    priority = int(given[1]) if given else _USUAL_PRIORITY
    match, of_port = _match_of(view, text)
    node = node or of_port
    nodes = list(programs.nodes_with_programs()) if node is None else [node]
    compared = 0
    for scope in (CLUSTER_SCOPE, *nodes):
        program = programs.program(scope) if scope else programs.shared
        entries = list(program.cookies.values())
        compared += len(entries)
        if compared > MOST_COMPARED:
            raise UnknownObject(
                f"not found in {MOST_COMPARED:,} flows; say with --node whose it is, or give the"
                " cookie"
            )
        for number, (flow, owners) in enumerate(entries):
            if number % SLICE == 0:
                yield
            if (flow.table, flow.priority) == (table, priority) and _fields(flow) == match:
                found = yield from _by_cookie(programs, flow.cookie, scope or None)
                return found or _Found(flow, owners, scope, (scope,))
    return None


def _table_of(text: str) -> int:
    """Raises `UnknownObject`."""
    given = _TABLE.search(text)
    name = given[1] if given else "0"
    for table in LAYOUT.tables.values():
        if name.lower() in {table.name.lower(), str(table.number)}:
            return table.number
    raise UnknownObject(f"there is no table {name}; there are {', '.join(LAYOUT.tables)}")


def _match_of(view: ClusterView, text: str) -> tuple[frozenset[str], str | None]:
    """The fields of the match, and the node that its ingress port belongs to, if that is told."""
    match = text.partition("actions=")[0]
    given = _IN_PORT.search(match)
    if given is None:
        return _words(match), None
    for ofport, name in EVERY_BRIDGE.items():
        if name == given[1]:
            return _words(_IN_PORT.sub(f"in_port={ofport}", match)), None
    for node, attachments in view.attachments.items():
        if (found := attachments.get(given[1])) is not None:
            return _words(_IN_PORT.sub(f"in_port={found.ofport}", match)), node
    return _words(match), None


def _words(match: str) -> frozenset[str]:
    words = (word.strip().lower() for word in re.split(r"[,\s]+", match))
    return frozenset(word for word in words if word and word.partition("=")[0] not in _COUNTERS)


def _fields(flow: Flow) -> frozenset[str]:
    return _words(match_text(flow))


# --- explaining it ---


def _explained(
    inventory: Inventory, programs: Programs, asked: str, found: _Found
) -> Slices[Explanation]:
    flow = found.flow
    program = programs.program(found.node) if found.node else programs.shared
    key = yield from _key_of(program, found)
    fields: tuple[str, ...] = ()
    if key is not None:
        fields = yield from fields_of(inventory, key, flow)
    table = LAYOUT.by_number[flow.table]
    labels = Labels.of(inventory.view, found.node)
    feature = Feature(flow.feature)
    # The sets are named among the owners, but nobody made them.
    made_by = [each for each in found.owners if each.kind not in SET_REFS] or found.owners
    objects = ", ".join(map(str, made_by))
    return Explanation(
        asked=asked,
        kind="flow",
        sentence=f"{objects}: {flow.reason}" if flow.reason else objects,
        object=Reference.of(made_by[0]),
        flow=FlowFacts(
            cookie=f"{flow.cookie:#018x}",
            table=table.name,
            table_number=table.number,
            purpose=table.doc,
            priority=flow.priority,
            match=match_text(flow, labels).partition(",")[2],
            actions=actions_text(flow, labels),
            feature=feature.name.lower(),
            feature_purpose=_PURPOSES.get(feature, ""),
            reason=flow.reason,
            owners=tuple(map(Reference.of, found.owners)),
            fields=fields,
            every_node=not found.node,
            nodes=found.nodes[:MOST_NODES],
            node_count=len(found.nodes) if found.node else len(inventory.view.nodes),
        ),
        facts=tuple(
            Fact(f"the same on {node}", ", ".join(map(str, owners)))
            for node, owners in found.others[:MOST_NODES]
        ),
    )


def _key_of(program: Program, found: _Found) -> Slices[Key | None]:
    """The key of the fragment that has a flow; None: it is a seal."""
    likely: list[Key] = []
    for number, (key, fragment) in enumerate(list(program.fragments.items())):
        if number % SLICE == 0:
            yield
        # Entries of a fragment hold its own tuple of owners.
        if fragment.owners is found.owners:
            likely.append(key)
    for key in likely:
        held = program.fragments.get(key)
        if held is not None and any(flow.cookie == found.flow.cookie for flow in held.flows):
            return key
    return None
