"""Small clusters that the tests of `flows` share."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, IPv4Network
from typing import Any

from flows import names
from flows.compile import FEATURES, Compiler
from flows.kinds import Writer
from flows.view import (
    SOME_SCOPE,
    Attachment,
    Cluster,
    ClusterView,
    EgressAddress,
    EgressMember,
    EgressPod,
    Endpoint,
    Frontend,
    HostDnatAddress,
    Key,
    Node,
    Service,
    ServicePort,
    Target,
)


def compiler_with(old: Callable[..., Any], new: Callable[..., Any]) -> Compiler:
    """All features, with one function replaced."""
    return Compiler(
        [Writer(kind, new if write is old else write) for kind, write in feature]
        for feature in FEATURES
    )


TCP, UDP, SCTP = 6, 17, 132

CLUSTER = Cluster(
    pod_range=IPv4Network("10.244.0.0/16"),
    service_range=IPv4Network("10.96.0.0/16"),
    tunnel_port=6081,
    new_connections_per_second=10_000,
)


def node(number: int) -> Node:
    return Node(
        f"node{number}",
        f"uid-{number}",
        IPv4Address("172.30.1.0") + number,
        IPv4Network(f"10.244.{number}.0/24"),
        zone="zone-a" if number == 1 else "",
    )


def attachment(on: Node, number: int, pod: str) -> Attachment:
    namespace, name = pod.split("/")
    return Attachment(
        names.port_name(namespace, name, f"uid-{pod}", "eth0", f"sandbox-{pod}"),
        names.FIRST_ATTACHMENT_OFPORT + number,
        on.pod_cidr[2 + number],
        pod,
    )


def port(
    name: str,
    frontends: list[Frontend],
    endpoints: list[Endpoint],
    protocol: int = TCP,
    first_group: int = names.GROUPS[0],
    variants: tuple[str, ...] = ("cluster",),
    **more: Any,
) -> ServicePort:
    """A Service port whose groups are numbered from `first_group`, in the order of `variants`."""
    groups = {variant: first_group + index for index, variant in enumerate(variants)}
    ordered = tuple(sorted(endpoints))
    return ServicePort(name, protocol, tuple(frontends), ordered, groups, **more)


def service(name: str, *ports: ServicePort) -> Service:
    return Service("default", name, ports)


def frontend(address: str | None, number: int, *, external: bool = False, **more: Any) -> Frontend:
    return Frontend(None if address is None else IPv4Address(address), number, external, **more)


def endpoint(address: str, number: int, node: str = "", **more: Any) -> Endpoint:
    return Endpoint(IPv4Address(address), number, node=node, **more)


def services() -> list[Service]:
    """One Service of each kind; its pods are those of `view({1: [a, b], 2: [c], 3: []})`."""
    a, b, c = (
        endpoint("10.244.1.2", 8080, "node1"),
        endpoint("10.244.1.3", 8080, "node1"),
        endpoint("10.244.2.2", 8080, "node2"),
    )
    at = names.GROUPS[0]
    return [
        service("web", port("http", [frontend("10.96.0.10", 80)], [a, b, c], first_group=at)),
        service(
            "sticky",
            port("http", [frontend("10.96.0.11", 80)], [a, c], first_group=at + 16, affinity=10800),
        ),
        service(
            "dns",
            port("dns", [frontend("10.96.0.12", 53)], [b], UDP, at + 32),
            port("dns-tcp", [frontend("10.96.0.12", 53)], [b], TCP, at + 48),
        ),
        service(
            "shop",
            port(
                "",
                [
                    frontend("10.96.0.13", 443),
                    frontend(None, 30443, external=True),
                    frontend("192.0.2.1", 443, external=True,
                             sources=(IPv4Network("198.51.100.0/24"),)),
                    frontend("192.0.2.2", 443, external=True),
                ],
                [a, c], first_group=at + 64, variants=("cluster", "local"), external_local=True,
            ),
        ),
        service("empty", port("http", [frontend("10.96.0.14", 80)], [], first_group=at + 80)),
        service(
            "near",
            port(
                "", [frontend("10.96.0.15", 80)],
                [b._replace(zones=("zone-a",)), c._replace(zones=("zone-b",), nodes=("node2",))],
                first_group=at + 96, variants=("cluster", "zone zone-a", "zone zone-b"),
            ),
        ),
        service(
            "edge",
            port(
                "",
                [
                    frontend("10.96.0.16", 80),
                    frontend("172.30.1.1", 8443, external=True, node="node1",
                             host_dnat=(HostDnatAddress("node1", names.HOST_DNAT_RANGE[0]),)),
                ],
                [a, c], first_group=at + 112, variants=("cluster", "local"), external_local=True,
            ),
        ),
    ]  # fmt: skip


def view(pods: dict[int, list[str]], *, served: Iterable[Service] = ()) -> ClusterView:
    """`{1: ["default/a"]}`: node1 with one pod; nodes are numbered as the keys are."""
    nodes = {f"node{number}": node(number) for number in pods}
    attachments = {}
    for number, names_ in pods.items():
        made = [attachment(node(number), i, pod) for i, pod in enumerate(names_)]
        attachments[f"node{number}"] = {a.port: a for a in made}
    by_name = {f"{each.namespace}/{each.name}": each for each in served}
    local: dict[str, set[str]] = {}
    for name, each in by_name.items():
        for of_port in each.ports:
            for on in of_port.nodes_with_a_choice():
                local.setdefault(on, set()).add(name)
    targets: dict[str, Target] = {}
    owners: dict[str, set[str]] = {}
    for name, each in by_name.items():
        for of_port in each.ports:
            for behind in of_port.endpoints:
                target = Target.of(behind, of_port.protocol, CLUSTER.pod_range)
                targets[str(target)] = target
                owners.setdefault(str(target), set()).add(name)
    return ClusterView(CLUSTER, nodes, attachments, by_name, local, targets, owners)


def with_egress(
    view: ClusterView, gateways: Mapping[str, str], pods: Mapping[str, str]
) -> ClusterView:
    """The same cluster with egress addresses: `{"192.0.2.9": "node2"}`, `{"default/a": ...}`.

    An address without a gateway has "". Each node may be the gateway of each address.
    """
    rules = {}
    at: dict[str, set[str]] = {}
    for address, gateway in gateways.items():
        name = f"from-{address.replace('.', '-')}"
        tunnel = view.nodes[gateway].address if gateway else None
        rules[name] = EgressAddress(name, IPv4Address(address), gateway, tunnel)
        if gateway:
            at.setdefault(gateway, set()).add(name)
    by_address = {str(rule.address): rule for rule in rules.values()}
    selected: dict[str, dict[str, EgressPod]] = {}
    members = {}
    for node_name, attachments in view.attachments.items():
        for each in attachments.values():
            if (address := pods.get(each.pod)) is not None:
                rule = by_address[address]
                of_node = selected.setdefault(node_name, {})
                of_node[each.port] = EgressPod(each, rule.name, rule.address)
                members[str(each.address)] = EgressMember(
                    each.ref, each.address, rule.name, rule.address
                )
    needed = {Key(SOME_SCOPE, "egress-member", name): set(view.nodes) for name in members}
    return replace(
        view,
        needed_by={**view.needed_by, **needed},
        egress_addresses=rules,
        egress_gateways=at,
        egress_pods=selected,
        egress_members=members,
    )
