"""300 pods come and go, ten at a time, over nodes with few addresses."""

import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import pytest
import yaml

from lab import Lab
from lab.patience import PATIENCE
from lab.runtime import PluginError
from node_agent.cni_call import Code
from tests.lab.test_pods import settled, traces
from tests.waiting import wait_until

NODES = ("node1", "node2", "node3")
PODS = 300


@pytest.fixture(scope="module")
def lab(lab: Lab) -> Lab:
    """The lab of conftest.py, each node's range cut down to 61 addresses for pods.

    So those of pods that are gone are handed out again within the test.
    """
    for node in NODES:
        manifest = lab.layout.cluster / "nodes" / f"{node}.yaml"
        content = yaml.safe_load(manifest.read_text())
        cidr = content["spec"]["podCIDR"].replace("/24", "/26")
        content["spec"] = {"podCIDR": cidr, "podCIDRs": [cidr]}
        part = manifest.with_name(f".{node}.part")
        part.write_text(yaml.safe_dump(content))
        part.rename(manifest)
    get = ["ovs-vsctl", "get", "Open_vSwitch", ".", "external_ids:sluice-config"]
    for node in NODES:
        wait_until(lambda node=node: "/26" in lab.exec(node, get).stdout)
    # And each switch holds flows for the new ranges of all.
    dump = ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"]
    for node in NODES:
        wait_until(lambda node=node: ".0/24" not in lab.exec(node, dump).stdout)
    return lab


@pytest.mark.parametrize("lab", [{"nodes": 3}], indirect=True, ids=["3 nodes"])
@pytest.mark.timeout(900)
def test_churn_leaves_nothing_and_no_address_has_two_pods(lab: Lab) -> None:
    anchor = lab.pod_add("default", "anchor", "node1")
    before = {node: traces(lab, node) for node in NODES}
    intervals: dict[str, list[tuple[float, float]]] = defaultdict(list)

    def live(number: int) -> None:
        """One pod's life. Where the range is full it is tried again, as kubelet does."""
        name, node = f"p{number}", NODES[number % len(NODES)]
        deadline = time.monotonic() + 300 * PATIENCE
        while True:
            try:
                pod = lab.pod_add("churn", name, node)
                break
            except PluginError as error:
                if error.code != Code.NO_ADDRESS or time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
        began = time.monotonic()
        lab.exec(f"churn/{name}", ["ping", "-n", "-c", "1", "-w", "30", str(anchor.address)])
        intervals[str(pod.address)].append((began, time.monotonic()))
        lab.pod_del("churn", name)

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(live, range(PODS)))

    assert sum(map(len, intervals.values())) == PODS
    assert max(map(len, intervals.values())) > 1, "no address was handed out again"
    assert str(anchor.address) not in intervals
    for address, lives in intervals.items():
        lives.sort()
        for (_, end), (begin, _) in pairwise(lives):
            assert end < begin, f"{address} was two pods' at once"
    for node, wanted in before.items():
        assert settled(lab, node, wanted) == wanted
    lab.pod_del("default", "anchor")
