"""A real switch with the flows of one node, and parts of its `ofproto/trace`."""

import re

from flows import names
from flows.compile import compile_scope
from flows.flow import Flow
from flows.pipeline import LAYOUT
from flows.view import CLUSTER_SCOPE, Attachment, ClusterView
from tests.ovs import Ovs

NEW, ESTABLISHED, RELATED, INVALID = "trk,new", "trk,est", "trk,rel", "trk,inv"


def become(switch: Ovs, view: ClusterView, node: str) -> None:
    """Give an empty switch the ports, flows, groups and meters of the node."""
    ports = {p.port: p.ofport for p in view.attachments[node].values()}
    for name, ofport in {**fixed_ports(), **ports}.items():
        switch.vsctl(
            "add-port", "br0", name, "--", "set", "Interface", name, "type=dummy",
            f"ofport_request={ofport}",
        )  # fmt: skip
    programs = [compile_scope(view, scope) for scope in (CLUSTER_SCOPE, node)]
    switch.install(
        flows(view, node),
        [meter for program in programs for meter in program.meters.values()],
        [group for program in programs for group in program.groups.values()],
    )


def flows(view: ClusterView, node: str) -> list[Flow]:
    """All flows of the node."""
    programs = [compile_scope(view, scope) for scope in (CLUSTER_SCOPE, node)]
    return [flow for program in programs for flow in program.flows()]


def fixed_ports() -> dict[str, int]:
    """The ports that every bridge has."""
    return {
        names.TUNNEL_PORT: names.TUNNEL_OFPORT,
        names.GATEWAY_PORT: names.GATEWAY_OFPORT,
    }


def from_pod(attachment: Attachment, protocol: str = "tcp", **fields: object) -> str:
    """A packet of a pod as its kernel sends it."""
    packet = {
        "in_port": attachment.ofport,
        "dl_src": attachment.mac,
        "dl_dst": names.ROUTER_MAC,
        "nw_src": attachment.address,
        "nw_ttl": 64,
        **fields,
    }
    return ",".join([protocol, *(f"{k}={v}" for k, v in packet.items())])


def from_host(protocol: str = "tcp", **fields: object) -> str:
    """A packet of the node's own stack, or from outside through it."""
    packet = {
        "in_port": names.GATEWAY_OFPORT,
        "dl_src": names.GATEWAY_MAC,
        "dl_dst": names.ROUTER_MAC,
        "nw_ttl": 64,
        **fields,
    }
    return ",".join([protocol, *(f"{k}={v}" for k, v in packet.items())])


def path(trace: str) -> list[str]:
    """The names of the tables that a trace passed, in order."""
    numbers = re.findall(r"^\s*(\d+)\. ", trace, re.MULTILINE)
    return [LAYOUT.by_number[int(number)].name for number in numbers]


def outputs(trace: str) -> list[int]:
    return [int(port) for port in re.findall(r"^\s+output:(\d+)$", trace, re.MULTILINE)]


def leaves(trace: str) -> list[int | str]:
    """The ports that a packet left by; `IN_PORT` for its ingress port."""
    found = re.findall(r"^\s+(?:output:(\d+)|IN_PORT)$", trace, re.MULTILINE)
    return [int(port) if port else "IN_PORT" for port in found]


def translations(trace: str) -> list[str]:
    """The translations that conntrack was told: `dst=ADDRESS:PORT`, `src=ADDRESS`."""
    return re.findall(r"^\s+nat\((.*)\)$", trace, re.MULTILINE)


def meters(trace: str) -> list[int]:
    """The meters that a packet counted against."""
    return [int(meter) for meter in re.findall(r"^\s+meter:(\d+)$", trace, re.MULTILINE)]
