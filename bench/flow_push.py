"""flow_push_vs_ofctl: 10,000 flows into an empty bridge, by the controller and by `ovs-ofctl`.

Both put the same flows into the same bridge. The controller is started anew for each sample, so
that it has encoded nothing yet. Its clock starts when the switch's handshake is done, by its own
log: Open vSwitch may first take half a second to answer on a new connection of type `service`.
"""

import asyncio
import json
import time
from datetime import datetime

from bench.controller import StandaloneController, node, node_manifest, standalone, write_manifests
from bench.figures import Figure, steady_rounds, versus
from bench.nodes import dial, make_bridge, ofctl, vsctl
from flows import names
from flows.pipeline import LAYOUT
from lab import LabError
from lab.layout import NodeLayout
from openflow.messages import FlowUpdate
from openflow.watch import connect

FLOWS_OF_A_PEER = 3


def measure(*, flows: int = 10_000, rounds: int = 9) -> list[Figure]:
    """Alternate between the two."""
    ours, theirs, ratios = [], [], list[float]()
    with standalone("push", nodes=1) as controller:
        switch = controller.lab.layout.node(1)
        make_bridge(switch)
        peers = [node(number) for number in range(1, flows // FLOWS_OF_A_PEER + 2)]
        write_manifests(controller.cluster / "nodes.yaml", map(node_manifest, peers))
        dump = controller.lab.layout.directory / "flows.txt"
        for _ in steady_rounds(ratios, rounds):
            controller.start()
            controller.wait(timeout=60)
            _empty(switch)
            held_at = asyncio.run(_pushed(controller, switch))
            controller.wait([peers[0].name])
            ready_at = _logged(controller, "switch connected")
            held = ofctl(switch, "--no-stats --no-names dump-flows").splitlines()
            controller.stop()
            ours.append(len(held) / (held_at - ready_at))

            dump.write_text("\n".join(held) + "\n")
            _empty(switch)
            began = time.monotonic()
            ofctl(switch, "--bundle add-flows", str(dump))
            theirs.append(len(held) / (time.monotonic() - began))
            ratios.append(ours[-1] / theirs[-1])
            if ofctl(switch, "--no-stats --no-names dump-flows").splitlines() != held:
                raise LabError("ovs-ofctl did not put in the same flows")
    return versus("flow_push_vs_ofctl", "flows/s", ours, ("ofctl", theirs), at_least=1.5)


def _empty(switch: NodeLayout) -> None:
    """Take the controller away, and all flows."""
    vsctl(switch, "clear", "Bridge", names.INTEGRATION_BRIDGE, "controller")
    ofctl(switch, "del-flows")


async def _pushed(controller: StandaloneController, switch: NodeLayout) -> float:
    """Tell the bridge of its controller; when it holds all flows, by `time.time`.

    The first table's flows come in the last bundle (`openflow.batch`).
    """
    arrived: asyncio.Future[float] = asyncio.get_running_loop().create_future()

    def on_update(_: FlowUpdate) -> None:
        if not arrived.done():
            arrived.set_result(time.time())

    async with connect(switch.mgmt, on_update) as monitor:
        await monitor.monitor_flows(LAYOUT.tables["Classifier"].number)
        await asyncio.to_thread(dial, switch, controller.address)
        async with asyncio.timeout(60):
            return await arrived


def _logged(controller: StandaloneController, event: str) -> float:
    """When the controller last logged this, by `time.time`."""
    for line in reversed(controller.daemons.log("controller").read_text().splitlines()):
        entry = json.loads(line)
        if entry["event"] == event:
            return datetime.fromisoformat(entry["timestamp"]).timestamp()
    raise LabError(f"the controller has not logged {event!r}")
