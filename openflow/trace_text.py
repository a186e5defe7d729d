"""Reads what `ofproto/trace` of Open vSwitch prints (ovs-vswitchd(8)).

A trace cannot know what conntrack would find, so it goes on with a guess after each `ct` with a
table. Here it ends there: `Traced.resume` says where and with what the packet goes on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address
from typing import Final

_STEP: Final = re.compile(
    r"( *)(\d+)\. (?:.*, |)priority (\d+)(?:, cookie (0x[0-9a-f]+))?(?:, .*)?"
)
_NO_MATCH: Final = re.compile(r"( *)(\d+)\. No match\.")
_OUTPUT: Final = re.compile(r"output:\d+")
_FORK: Final = re.compile(r"ct\(.*\btable=(\d+)\b.*\)")
_ZONE: Final = re.compile(r"\bzone=(\d+)")
_NAT: Final = re.compile(r"\bnat\((src|dst)=([\d.]+)(?:-[\d.]+)?(?::(\d+)(?:-\d+)?)?.*?\)")
_MARK: Final = re.compile(r"set_field:(0x[0-9a-f]+|\d+)(?:/(0x[0-9a-f]+|\d+))?->ct_mark")
_KEPT: Final = re.compile(
    r"reg\d+|in_port|dl_src|dl_dst|nw_src|nw_dst|nw_ttl|tp_src|tp_dst|icmp_type|icmp_code"
    r"|tun_src|tun_dst|tun_id|tcp_flags"
)
"""Fields that a packet keeps from one part to the next. Conntrack's are found anew."""


@dataclass(frozen=True, slots=True)
class TracedStep:
    """A flow that the packet met; `cookie` is None where a table had no flow for it."""

    table: int
    cookie: int | None
    priority: int
    depth: int
    """More than 0: within a resubmit."""


@dataclass(frozen=True, slots=True)
class Resume:
    """A conntrack lookup, after which the packet goes on at a table."""

    table: int
    zone: int
    commit: bool
    nat: bool
    """Whether a known connection's packets are translated."""
    destination: tuple[IPv4Address, int | None] | None
    """What a new connection's destination becomes."""
    source: IPv4Address | None
    mark: tuple[int, int]
    """Value and mask that the commit writes to ct_mark."""


@dataclass(frozen=True, slots=True)
class Traced:
    """One part of a trace."""

    steps: tuple[TracedStep, ...]
    fields: Mapping[str, str]
    """The packet and its registers at the end of the part."""
    resume: Resume | None
    outputs: tuple[int | None, ...]
    """The ofports that it leaves by; None: the one that it came in by."""
    meters: tuple[int, ...]
    groups: tuple[int, ...]
    """Groups that chose for the packet."""


class TraceTextError(ValueError):
    """The text is not a trace."""


def read(text: str, bridge: str) -> Traced:
    """The first part of a trace, on the bridge of this name. Raises `TraceTextError`."""
    steps: list[TracedStep] = []
    actions: list[str] = []
    first: Mapping[str, str] | None = None
    final: Mapping[str, str] | None = None
    on_bridge = False
    for line in _first_part(text):
        said = line.strip()
        if said.startswith("bridge("):
            on_bridge = said == f'bridge("{bridge}")'
        elif said.startswith("Flow: ") and first is None:
            first = _fields(said)
        elif said.startswith("Final flow: "):
            final = first if said == "Final flow: unchanged" else _fields(said)
        elif on_bridge and (step := _step(line)) is not None:
            steps.append(step)
        elif on_bridge:
            actions.append(said)
    if final is None or not steps:
        raise TraceTextError("ovs-vswitchd's trace cannot be read")
    forks = [(each, found) for each in actions if (found := _FORK.fullmatch(each))]
    return Traced(
        tuple(steps),
        final,
        _resume(forks[0][0], int(forks[0][1][1])) if forks else None,
        tuple(
            None if each == "IN_PORT" else int(each.removeprefix("output:"))
            for each in actions
            if each == "IN_PORT" or _OUTPUT.fullmatch(each)
        ),
        _numbers(actions, "meter:"),
        _numbers(actions, "group:"),
    )


def _step(line: str) -> TracedStep | None:
    if found := _STEP.fullmatch(line):
        indent, table, priority, cookie = found.groups()
        at = int(cookie, 16) if cookie else 0
        return TracedStep(int(table), at, int(priority), len(indent) // 4)
    if found := _NO_MATCH.fullmatch(line):
        return TracedStep(int(found[2]), None, 0, len(found[1]) // 4)
    return None


def _numbers(actions: Iterable[str], kind: str) -> tuple[int, ...]:
    given = (each.removeprefix(kind) for each in actions if each.startswith(kind))
    return tuple(int(each) for each in given if each.isdecimal())


def kept(fields: Mapping[str, str]) -> dict[str, str]:
    """The fields with which the packet goes on after a lookup."""
    return {name: value for name, value in fields.items() if _KEPT.fullmatch(name)}


def _first_part(text: str) -> Iterator[str]:
    for line in text.splitlines():
        if line.startswith("=========="):
            return
        yield line


def _fields(line: str) -> dict[str, str]:
    pairs = (each.partition("=") for each in line.partition(": ")[2].split(","))
    return {name: value for name, sign, value in pairs if sign}


def _resume(action: str, table: int) -> Resume:
    zone = _ZONE.search(action)
    destination: tuple[IPv4Address, int | None] | None = None
    source: IPv4Address | None = None
    if nat := _NAT.search(action):
        address = IPv4Address(nat[2])
        if nat[1] == "dst":
            destination = address, int(nat[3]) if nat[3] else None
        else:
            source = address
    mark = _MARK.search(action)
    return Resume(
        table=table,
        zone=int(zone[1]) if zone else 0,
        commit="commit" in action.partition("(")[2].split(",")[0:1],
        nat=re.search(r"\bnat\b", action) is not None,
        destination=destination,
        source=source,
        mark=(int(mark[1], 0), int(mark[2], 0) if mark[2] else 0xFFFF_FFFF) if mark else (0, 0),
    )
