"""Real switches for many small clusters: one ovs-vswitchd, one bridge for each node.

A bridge keeps its flows from cluster to cluster, and gets only what differs. Dumps and traces go
through the socket of `ovs-appctl`, without a process for each.
"""

import asyncio
import json
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from flows import names
from flows.flow import Flow, Meter
from openflow.batch import Batch
from openflow.switch import Switch
from openflow.watch import connect
from tests.ovs import Ovs, running
from tests.policy.simulator import Tables

ATTACHMENTS = 8
"""Ports for attachments, of each bridge."""


class Contents(NamedTuple):
    """What a bridge should hold: flows by cookie, meters by id."""

    flows: Mapping[int, Flow]
    meters: Mapping[int, Meter]


class Control:
    """The control socket of ovs-vswitchd, as ovs-appctl uses it (JSON-RPC, RFC 4627)."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(60)
        self._socket.connect(str(path))
        self._decoder = json.JSONDecoder()

    def call(self, command: str, *arguments: str) -> str:
        """The command's answer. Raises `RuntimeError` with its error."""
        request = {"id": 0, "method": command, "params": arguments}
        self._socket.sendall(json.dumps(request).encode())
        text = ""
        while True:
            text += self._socket.recv(1 << 20).decode()
            if not text.rstrip().endswith("}"):
                continue
            try:
                answer, _ = self._decoder.raw_decode(text)
            except json.JSONDecodeError:
                continue
            break
        if answer["error"]:
            raise RuntimeError(answer["error"])
        return str(answer["result"])

    def close(self) -> None:
        self._socket.close()


class Switches:
    """A bridge for each of some nodes."""

    def __init__(self, ovs: Ovs, nodes: Sequence[str]) -> None:
        self.ovs = ovs
        self.nodes = tuple(nodes)
        self._bridges = {node: f"b{number}" for number, node in enumerate(nodes)}
        self._loop = asyncio.new_event_loop()
        self._stack = AsyncExitStack()
        self._installed = {node: Contents({}, {}) for node in nodes}
        commands = []
        for bridge in self._bridges.values():
            commands += [
                "--", "add-br", bridge, "--", "set", "Bridge", bridge, "datapath_type=dummy",
                "fail_mode=secure", "protocols=OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15",
            ]  # fmt: skip
            first = names.FIRST_ATTACHMENT_OFPORT
            for ofport in (1, 2, *range(first, first + ATTACHMENTS)):
                port = f"{bridge}p{ofport}"
                commands += [
                    "--", "add-port", bridge, port, "--", "set", "Interface", port, "type=dummy",
                    f"ofport_request={ofport}",
                ]  # fmt: skip
        ovs.vsctl(*commands[1:])
        self._switches: dict[str, Switch] = self._loop.run_until_complete(self._connect())
        pid = (ovs.directory / "ovs-vswitchd.pid").read_text().strip()
        self._control = Control(ovs.directory / f"ovs-vswitchd.{pid}.ctl")

    async def _connect(self) -> dict[str, Switch]:
        return {
            node: await self._stack.enter_async_context(
                connect(self.ovs.directory / f"{bridge}.mgmt")
            )
            for node, bridge in self._bridges.items()
        }

    def hold(self, node: str, wanted: Contents) -> None:
        """Make a node's bridge hold this and nothing else."""
        self._loop.run_until_complete(self._hold(node, wanted))

    async def _hold(self, node: str, wanted: Contents) -> None:
        had = self._installed[node]
        meters = [m for m in wanted.meters.values() if had.meters.get(m.id) != m]
        batch = Batch.of(
            adds=[flow for cookie, flow in wanted.flows.items() if cookie not in had.flows],
            deletes=[cookie for cookie in had.flows if cookie not in wanted.flows],
            meters_set=[meter for meter in meters if meter.id not in had.meters],
            meters_change=[meter for meter in meters if meter.id in had.meters],
        )
        await self._switches[node].apply(batch)
        self._installed[node] = Contents(wanted.flows, {**had.meters, **wanted.meters})

    def dump(self, node: str) -> list[str]:
        """The flows that the bridge has, one a line."""
        return self._control.call("bridge/dump-flows", self._bridges[node]).splitlines()

    def tables(self, node: str) -> Tables:
        """The same, to be simulated."""
        return Tables(self.dump(node))

    def trace(self, node: str, packet: str, *ct_states: str) -> str:
        """As `Ovs.trace`."""
        states = [word for state in ct_states for word in ("--ct-next", state)]
        return self._control.call("ofproto/trace", self._bridges[node], packet, *states)

    def close(self) -> None:
        self._loop.run_until_complete(self._stack.aclose())
        self._loop.close()
        self._control.close()


@contextmanager
def switches_for(directory: Path, nodes: Sequence[str]) -> Iterator[Switches]:
    """Switches for as long as the context lasts."""
    with running(directory) as ovs:
        made = Switches(ovs, nodes)
        try:
            yield made
        finally:
            made.close()


def sent_by(trace: str) -> list[tuple[int, str]]:
    """The ports that a traced packet left by, each with the tunnel's destination then."""
    sent = []
    destination = ""
    for line in trace.splitlines():
        if found := re.match(r"\s+set_field:([\d.]+)->tun_dst$", line):
            destination = found[1]
        elif found := re.match(r"\s+output:(\d+)$", line):
            sent.append((int(found[1]), destination))
    return sent
