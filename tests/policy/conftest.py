"""Switches for clusters of policy, and a judge who asks both the evaluator and the switches."""

import logging
from collections.abc import Iterator, Mapping
from typing import Final

import pytest
import structlog

from tests.policy.controlled import Controlled
from tests.policy.evaluator import Cluster, End, Evaluator, Packet, gateway, node_addresses
from tests.policy.fuzz import Fuzz
from tests.policy.generator import NODES, as_yaml
from tests.policy.proof import Kind, Proof
from tests.policy.switches import Switches, switches_for


@pytest.fixture(scope="module")
def switches(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Switches]:
    """The switches of the nodes that run pods.

    Of one file: a switch closes a connection that is not used while other files run.
    """
    with switches_for(tmp_path_factory.mktemp("ovs"), NODES[:2]) as made:
        yield made


@pytest.fixture(autouse=True)
def errors_only(request: pytest.FixtureRequest) -> None:
    """A problem is reported by a line of the log, for each of thousands of clusters."""
    request.getfixturevalue("logging_as_before")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))


BATCH: Final = 100
"""Random clusters of one test."""
PAIRS: Final = 50_000
"""At least, of one batch: with 20 batches more than a million."""
TRACES: Final = 3
"""Packets of each cluster that the switches trace as well."""


def examine(switches: Switches, seed: int) -> None:
    """Examine the clusters of a batch of seeds."""
    fuzz = Fuzz(switches, traces=TRACES)
    fuzz.examine_all(range(seed, seed + BATCH))
    assert fuzz.examined.clusters == BATCH
    assert fuzz.examined.pairs >= PAIRS


class Judge:
    """One controller whose cluster changes; asks evaluator and switches about packets."""

    def __init__(self, switches: Switches) -> None:
        self._switches = switches
        self.controlled = Controlled()

    def decides(self, cluster: Cluster, verdicts: Mapping[str, bool]) -> None:
        """Check these verdicts, and that evaluator and switches agree about all packets.

        A packet is `SOURCE > DESTINATION PROTOCOL PORT`. An end is `NAMESPACE/NAME` of a pod, the
        name of a node, or an address.
        """
        evaluator = Evaluator(cluster)
        said = {text: evaluator.allows(packet_of(cluster, text)[0]) for text in verdicts}
        assert said == dict(verdicts), "the evaluator"
        self.controlled.become(cluster)
        contents = self.controlled.contents(self._switches.nodes)
        proof = Proof(cluster, contents, self._switches)
        done = {text: proof.goes(*packet_of(cluster, text)) for text in verdicts}
        assert done == dict(verdicts), "ofproto/trace"
        found = list(proof.differences())
        assert not found, f"{found[0]} (and {len(found) - 1} more)\n{as_yaml(cluster)}"


def packet_of(cluster: Cluster, text: str) -> tuple[Packet, Kind]:
    """A packet from its text; the port `later`: a later fragment."""
    source, _, rest = text.partition(" > ")
    destination, protocol, *port = rest.split()
    fragment = "later" if port == ["later"] else "no"
    number = int(port[0]) if port and fragment == "no" else None
    packet = Packet(_end(cluster, source, sends=True), _end(cluster, destination), protocol, number)
    return packet, Kind(protocol, number, fragment)


def _end(cluster: Cluster, text: str, *, sends: bool = False) -> End:
    if text in cluster.pods:
        return cluster.end(text)
    for name, node in cluster.nodes.items():
        if text == name:
            return End(gateway(node), "", name)
        if sends and text in node_addresses(node):
            return End(text, "", name)
    return End(text)


@pytest.fixture
def judge(switches: Switches) -> Judge:
    return Judge(switches)
