"""Who writes to the switches of a lab, as the switches themselves tell it.

`ovs-vswitchd` logs every OpenFlow message with its connection (module `vconn`, level debug). A
controller writes if it changes flows, groups or meters and the switch does not refuse. It may only
as master; the generation is that of its role request.
"""

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from lab import Lab
from lab import node as nodes

_PATTERN = "PATTERN:console:%D{%Y-%m-%dT%H:%M:%S.###Z}|%c|%p|%m"
_ENTRY = re.compile(
    r"^(?P<at>\d{4}-\d\d-\d\dT[\d:.]+Z)\|vconn\|DBG\|(?:tcp|ssl):(?P<controller>[\d.]+):\d+: "
    r"(?P<text>.*(?:\n(?!\d{4}-\d\d-\d\dT).*)*)",
    re.MULTILINE,
)
# Not NXT_CT_FLUSH: Open vSwitch takes it in any role. One that a leader has sent in time, and that
# arrives late, for example after a cut, is carried out. It ends connections, and changes no flow.
_WRITES = re.compile(r"received: (OFPT_(FLOW|GROUP|METER)_MOD|OFPT_PACKET_OUT) ")
_XID = re.compile(r"\(xid=(0x[0-9a-f]+)\)")
_SAID_OF_ROLES = re.compile(r"negotiated |OFPT_ROLE_|OFPT_ERROR")
_GENERATION = re.compile(r"role=(?:primary|master) generation_id=(\d+)")


@dataclass(frozen=True)
class Write:
    """One that the switch has carried out."""

    node: str
    at: datetime
    controller: str
    """Its address."""
    generation: int | None
    """None: without being master."""


class Writers:
    """Reads the switches' logs from now on: of each session that begins from now on."""

    def __init__(self, lab: Lab, names: Sequence[str]) -> None:
        self._lab = lab
        layouts = {layout.name: layout for layout in lab.layout.nodes(len(names))}
        self._logs = {name: nodes.daemons(layouts[name]).log("ovs-vswitchd") for name in names}
        self._begin = {name: log.stat().st_size for name, log in self._logs.items()}

    def watch(self, *names: str) -> None:
        """Have these switches log messages; again after a restart."""
        for name in names or self._logs:
            for words in (
                ["vlog/set", _PATTERN],
                ["vlog/set", "vconn:console:dbg"],
                ["vlog/disable-rate-limit", "vconn"],
            ):
                self._lab.exec(name, ["ovs-appctl", *words])

    def writes(self, since: datetime) -> list[Write]:
        """By time."""
        found = [
            write
            for name, log in self._logs.items()
            for write in writes_in(name, _read(log, self._begin[name]))
            if write.at >= since
        ]
        return sorted(found, key=lambda write: (write.at, write.generation or 0))

    def roles(self, since: datetime) -> list[str]:
        """Connections, role requests and their answers, for a failure's message."""
        return [
            f"{name} {found['at']} {found['controller']}: {found['text'][:120]}"
            for name, log in self._logs.items()
            for found in _ENTRY.finditer(_read(log, self._begin[name]))
            if _SAID_OF_ROLES.search(found["text"])
            and datetime.fromisoformat(found["at"]) >= since - timedelta(seconds=30)
        ]


def _read(log: Path, begin: int) -> str:
    with log.open("rb") as file:
        file.seek(begin)
        return file.read().decode(errors="replace")


def writes_in(node: str, text: str) -> Iterator[Write]:
    """Of one switch."""
    entries = [
        (datetime.fromisoformat(found["at"]), found["controller"], found["text"])
        for found in _ENTRY.finditer(text)
    ]
    generations: dict[str, int | None] = defaultdict(lambda: None)
    refused = {
        (controller, _xid(said))
        for _, controller, said in entries
        if said.startswith("sent (Success): OFPT_ERROR ")
    }
    for at, controller, said in entries:
        if said.startswith("negotiated "):  # a new connection
            generations[controller] = None
        elif said.startswith("sent (Success): OFPT_ROLE_REPLY "):
            granted = _GENERATION.search(said)
            generations[controller] = int(granted[1]) if granted else None
            if granted:
                for other in set(generations) - {controller}:
                    generations[other] = None
        elif is_write(said) and (controller, _xid(said)) not in refused:
            yield Write(node, at, controller, generations[controller])


def is_write(said: str) -> bool:
    """Whether it changes the switch: what is in a bundle changes it with the commit."""
    if _WRITES.match(said):
        return True
    return said.startswith("sent (Success): OFPT_BUNDLE_CONTROL ") and "type=COMMIT_REPLY" in said


def _xid(said: str) -> str:
    found = _XID.search(said)
    return found[1] if found else ""


def faults(writes: Sequence[Write]) -> list[str]:
    """Writes by controllers that do not lead, and those of an older generation than another's."""
    found = []
    newest: Write | None = None
    for write in writes:
        if write.generation is None:
            found.append(f"{write} without being master")
        elif newest and write.generation < newest.generation:
            found.append(f"{write} after {newest}")
        else:
            newest = write
    return found
