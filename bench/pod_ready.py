"""pod_ready_*: from the veth's existence until the switch holds the pod's flows.

Real ADDs by the real shim, agent, switch and controller, watched from outside (`bench.observer`).
A pod's flows come in one bundle, so the one in the first table stands for all.
"""

import json
from concurrent.futures import ThreadPoolExecutor

from bench.figures import Figure, percentile
from bench.nodes import sandboxes, unique, vsctl
from bench.observer import observing
from flows import names
from flows.features.classify import attachment_classifier_flow
from flows.pipeline import LAYOUT
from lab import Lab
from lab.layout import NodeLayout
from lab.runtime import IFNAME, Runtime

AT_ONCE = 10


def measure(*, rounds: int = 5, pods: int = 40) -> list[Figure]:
    """In each round `pods` pods one at a time, and as many ten at once."""
    single: list[list[float]] = []
    ten: list[list[float]] = []
    # Two nodes, by turns: the addresses of one would all be resting before the last round.
    with Lab(unique("ready")).running(nodes=2) as lab:
        one, two = lab.layout.nodes(2)
        for node in (one, two):
            _ready(lab, node, ["warm1", "warm2", "warm3"], 1)
        for turn in range(rounds):
            listed = [f"p{turn}-{number}" for number in range(pods)]
            single.append(_ready(lab, one, listed, 1))
            ten.append(_ready(lab, two, listed, AT_ONCE))
    return [
        *_figures("pod_ready_ms", single, 20),
        *_figures("pod_ready_ten_ms", ten, 30),
    ]


def _figures(name: str, rounds: list[list[float]], at_most: float) -> list[Figure]:
    return [
        Figure(name, "ms", [sample for each in rounds for sample in each]),
        # Of each round one.
        Figure(f"{name}_p99", "ms", [percentile(each, 0.99) for each in rounds], at_most=at_most),
    ]


def _ready(lab: Lab, node: NodeLayout, listed: list[str], at_once: int) -> list[float]:
    """Plug these pods in and out again; milliseconds for each."""
    runtime = Runtime(node)
    with sandboxes(lab, node, listed) as made, ThreadPoolExecutor(at_once) as pool:
        with observing({node.mgmt: [LAYOUT.tables["Classifier"].number]}, node.netns) as seen:
            results = [*pool.map(runtime.add, made)]
        ofports = _ofports(node)
        list(pool.map(runtime.delete, made, results))
    flows = {flow.cookie: flow.at for flow in seen.flows}
    samples = []
    for sandbox in made:
        port = names.port_name(
            sandbox.namespace, sandbox.pod, sandbox.uid, IFNAME, sandbox.container_id
        )
        cookie = attachment_classifier_flow(ofports[port], names.attachment_tag(port)).cookie
        samples.append(1000 * (flows[cookie] - seen.links[port]))
    return samples


def _ofports(node: NodeLayout) -> dict[str, int]:
    told = vsctl(node, "--format=json", "--columns=name,ofport", "list", "Interface")
    return {name: number for name, number in json.loads(told)["data"] if isinstance(number, int)}
