"""An egress address in a lab, and which node sends from it while the lab is changed."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import yaml

from lab.arp_watch import Watch
from lab.commands import LabError
from lab.lab import Lab
from lab.layout import OUTSIDE_ADDRESS
from lab.link_addresses import owner
from lab.network import BRIDGE, node_mac
from lab.processes import running

ADDRESS: Final = "172.30.200.9"
NAMESPACE: Final = "shop"
GATEWAY_LABEL: Final = "egress"
"""The label of the nodes that may be the gateway."""
INTERVAL: Final = 0.01
"""Seconds between two datagrams."""
_PROBE: Final = Path(__file__).with_name("egress_probe.py")
_DISCARD: Final = 9


def rule(**spec: Any) -> dict[str, Any]:
    """All pods of the namespace leave from the address, through a node with the label."""
    return {
        "apiVersion": "sluice.dev/v1alpha1",
        "kind": "EgressAddress",
        "metadata": {"name": "shop"},
        "spec": {
            "address": ADDRESS,
            "namespaceSelector": {"matchLabels": {"team": "shop"}},
            "gateways": {"matchLabels": {GATEWAY_LABEL: "yes"}},
        }
        | spec,
    }


def set_up(lab: Lab, *gateways: str) -> None:
    """Make the namespace and the rule; these nodes may be the gateway."""
    metadata = {"name": NAMESPACE, "labels": {"team": "shop"}}
    lab.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
    for node in gateways:
        set_label(lab, node, GATEWAY_LABEL, "yes")
    lab.apply(rule())


def set_label(lab: Lab, node: str, key: str, value: str | None) -> None:
    """As `kubectl label node` does it, where the cluster is a directory."""
    path = lab.layout.directory / "cluster" / "nodes" / f"{node}.yaml"
    manifest = yaml.safe_load(path.read_text())
    labels = manifest["metadata"].setdefault("labels", {})
    if value is None:
        del labels[key]
    else:
        labels[key] = value
    new = path.with_suffix(".new")
    new.write_text(yaml.safe_dump(manifest))
    new.replace(path)


@contextmanager
def watched(lab: Lab, pod: str) -> Iterator[tuple[str, Watch]]:
    """The gateway, and a watch on the link: which nodes send from the egress address.

    The pod sends a datagram to the outside every 10 ms, always on one connection.
    """
    before = owner(lab, ADDRESS)
    nodes = {node_mac(each): each.name for each in lab.layout.nodes(len(lab.status()["nodes"]))}
    probe = [sys.executable, "-I", str(_PROBE)]
    sniff = lab.command("fabric", [*probe, "sniff", BRIDGE, ADDRESS])
    send = lab.command(pod, [*probe, "send", str(OUTSIDE_ADDRESS), str(_DISCARD), str(INTERVAL)])
    with running(sniff) as sniffer, running(send) as sender:
        if (sniffer.line(), sender.line()) != ("ready", "ready"):
            raise LabError("the egress probe has not started")
        time.sleep(0.3)
        yield before, Watch(sniffer, nodes)
