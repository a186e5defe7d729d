"""When did which interface and which flow come? A process of its own sees, and tells at the end.

The kernel tells of each new interface of a namespace (rtnetlink), each switch of each new flow of
some tables (flow monitor). Both are seen by one process that the kernel lets run before all
others, so that on a busy machine neither is noted late.

    python -m bench.observer < one line, {"netns": NAMESPACE, "tables": {SOCKET: [TABLE, ...]}}

It answers with an empty line when it watches, and at the end of stdin with what it has seen since:
{"links": {NAME: AT}, "flows": [[SOCKET, TABLE, COOKIE, AT], ...]}, at in `time.monotonic`.
"""

import asyncio
import json
import os
import socket
import struct
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pyroute2 import netns

from lab import LabError
from lab.processes import running
from lab.programs import python
from openflow.messages import FlowUpdate
from openflow.watch import connect

_LAST = 0.2
"""Seconds in which what came before the end may still be told."""


class SeenFlow(NamedTuple):
    """A flow that came."""

    socket: str
    table: int
    cookie: int
    at: float


@dataclass
class Seen:
    """What was seen, by `time.monotonic`. Filled when the observation ends."""

    links: dict[str, float] = field(default_factory=dict)
    flows: list[SeenFlow] = field(default_factory=list)


@contextmanager
def observing(tables: Mapping[Path, Sequence[int]], namespace: str) -> Iterator[Seen]:
    """Watch these tables of these switches, and the interfaces of a namespace."""
    seen = Seen()
    asked = {"netns": namespace, "tables": {str(path): list(n) for path, n in tables.items()}}
    with running(python("bench.observer")) as process:
        if process.ask(json.dumps(asked)) != "ready":
            raise LabError("the observer cannot watch; see above")
        yield seen
        process.close_input()
        answer = json.loads(process.rest())
        seen.links.update(answer["links"])
        seen.flows += (SeenFlow(*each) for each in answer["flows"])


async def _observe(asked: Mapping[str, Any]) -> Seen:
    seen = Seen()
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    with _link_socket(asked["netns"]) as netlink:
        async with AsyncExitStack() as stack:
            for path, tables in asked["tables"].items():
                for table in tables:

                    def on_update(update: FlowUpdate, path: str = path) -> None:
                        if not update.gone:
                            now = time.monotonic()
                            seen.flows.append(SeenFlow(path, update.table, update.cookie, now))

                    # A connection each: monitors of one connection would need numbers.
                    switch = await stack.enter_async_context(connect(Path(path), on_update))
                    await switch.monitor_flows(table)
            seen.flows.clear()  # what was there before
            loop.add_reader(netlink, _read_links, netlink, seen)
            loop.add_reader(sys.stdin, ended.set)
            sys.stdout.write("ready\n")
            sys.stdout.flush()
            await ended.wait()
            # The switch tells its connections of a flow one after another, us perhaps last.
            await asyncio.sleep(_LAST)
    return seen


def _read_links(netlink: socket.socket, seen: Seen) -> None:
    now = time.monotonic()
    for name in _new_links(netlink.recv(65536)):
        seen.links.setdefault(name, now)


# rtnetlink(7): the group of link messages, RTM_NEWLINK, IFLA_IFNAME
_GROUP_LINK = 1
_NEWLINK = 16
_IFNAME = 3


def _link_socket(namespace: str) -> socket.socket:
    """A socket that hears of every change of an interface in this namespace."""
    netns.pushns(namespace)
    try:
        made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
    finally:
        netns.popns()
    made.bind((0, _GROUP_LINK))
    made.setblocking(False)
    return made


def _new_links(data: bytes) -> Iterator[str]:
    """The names of the interfaces in these messages."""
    at = 0
    while at + 16 <= len(data):
        length, kind = struct.unpack_from("=IH", data, at)
        attribute, end = at + 32, at + length
        while kind == _NEWLINK and attribute + 4 <= end:
            size, tag = struct.unpack_from("=HH", data, attribute)
            if tag == _IFNAME:
                yield data[attribute + 4 : attribute + size].rstrip(b"\0").decode()
            attribute += max(4, (size + 3) & ~3)
        at += max(16, (length + 3) & ~3)


def _main() -> None:
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    seen = asyncio.run(_observe(json.loads(sys.stdin.readline())))
    sys.stdout.write(json.dumps({"links": seen.links, "flows": seen.flows}))


if __name__ == "__main__":
    _main()
