"""Reads what `ofproto/trace` of Open vSwitch prints (ovs-vswitchd(8)).

A trace cannot know what conntrack would find, so it goes on with a guess after each `ct` with a
table. Here it ends there: `Traced.resume` says where and with what the packet goes on.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from ipaddress import IPv4Address
from typing import Final

from flows.traced import Resume, Traced, TracedStep

_STEP: Final = re.compile(
    r"( *)(\d+)\. (?:.*, |)priority (\d+)(?:, cookie (0x[0-9a-f]+))?(?:, .*)?"
)
_NO_MATCH: Final = re.compile(r"( *)(\d+)\. No match\.")
_OUTPUT: Final = re.compile(r"output:\d+")
_FORK: Final = re.compile(r"ct\(.*\btable=(\d+)\b.*\)")
_COMMIT: Final = re.compile(r"ct\(commit\b")
_ZONE: Final = re.compile(r"\bzone=(\d+)")
_NAT: Final = re.compile(r"\bnat\((src|dst)=([\d.]+)(?:-[\d.]+)?(?::(\d+)(?:-\d+)?)?.*?\)")
_MARK: Final = re.compile(r"set_field:(0x[0-9a-f]+|\d+)(?:/(0x[0-9a-f]+|\d+))?->ct_mark")


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
        tuple(_resume(each, 0) for each in actions if _COMMIT.match(each) and "table=" not in each),
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
