"""How fast: `python -m tests.openflow.speed` prints a table. Nothing is asserted here."""

import asyncio
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter

from flows.text import actions_text, match_text
from openflow import codec
from openflow.batch import Batch
from openflow.templates import FlowEncoder
from tests.openflow import samples
from tests.openflow.conftest import connected
from tests.ovs import Ovs

COUNT = 10_000
ROUNDS = 7


def show(what: str, seconds: float, count: int) -> None:
    """One line: milliseconds, and flows a second."""
    sys.stdout.write(f"{what:<48}{seconds * 1e3:8.1f} ms{count / seconds:12,.0f} flows/s\n")


def encoding(flows: list[samples.Flow]) -> None:
    """Templates against os-ken."""
    encoder = FlowEncoder()
    encoder.add(flows[0])
    times = []
    for _ in range(ROUNDS):
        start = perf_counter()
        for xid, flow in enumerate(flows):
            encoder.add(flow, xid)
        times.append(perf_counter() - start)
    show("templates", median(times), len(flows))
    start = perf_counter()
    for flow in flows[:2000]:
        codec.flow_add(flow)
    show("os-ken", perf_counter() - start, 2000)
    times = []
    for _ in range(ROUNDS):
        start = perf_counter()
        for part in Batch.of(flows).parts:
            _ = part.data
        times.append(perf_counter() - start)
    show("a batch encoded", median(times), len(flows))


async def applying(ovs: Ovs, flows: list[samples.Flow]) -> None:
    """A real switch over TCP: batches against `ovs-ofctl --bundle`."""
    text = ovs.directory / "flows.txt"
    text.write_text(
        "".join(
            f"table={f.table},cookie={f.cookie:#x},{match_text(f)} actions={actions_text(f)}\n"
            for f in flows
        ).replace("PolicyFromPod", "80")
    )
    async with connected(ovs) as switch:
        for size in (500, 1000, 2000, 5000, 10_000):
            times = []
            for _ in range(ROUNDS):
                ovs.ofctl("del-flows", str(ovs.mgmt))
                await switch.alive(5)
                batch = Batch.of(flows, bundle_size=size)
                start = perf_counter()
                await switch.apply(batch)
                times.append(perf_counter() - start)
            show(f"apply, encoded and sent, bundles of {size}", median(times), len(flows))
            sys.stdout.write(f"{'  longest':<48}{max(times) * 1e3:8.1f} ms\n")
        start = perf_counter()
        found = await switch.dump_flows()
        show("dump", perf_counter() - start, len(found))
        times = []
        for number in range(100):
            batch = Batch.of([samples.flow(20_000 + number), samples.flow(30_000 + number)])
            start = perf_counter()
            await switch.apply(batch)
            times.append(perf_counter() - start)
        show("apply two flows", median(times), 2)
        times = []
        for _ in range(ROUNDS):
            ovs.ofctl("del-flows", str(ovs.mgmt))
            start = perf_counter()
            ovs.ofctl("--bundle", "add-flows", str(ovs.mgmt), str(text))
            times.append(perf_counter() - start)
        show("ovs-ofctl --bundle add-flows", median(times), len(flows))


def main() -> None:
    """Everything."""
    flows = [samples.flow(number) for number in range(COUNT)]
    for flow in flows:
        _ = flow.cookie
    encoding(flows)
    with tempfile.TemporaryDirectory(prefix="sluice-h4-") as directory:
        ovs = Ovs(Path(directory))
        try:
            ovs.start()
            asyncio.run(applying(ovs, flows))
        finally:
            ovs.stop()


if __name__ == "__main__":
    main()
