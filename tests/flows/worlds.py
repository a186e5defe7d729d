"""Small clusters that the tests of the core share."""

from ipaddress import IPv4Address, IPv4Network

from flows import names
from flows.view import Attachment, Cluster, ClusterView, Node

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
    )


def attachment(on: Node, number: int, pod: str) -> Attachment:
    namespace, name = pod.split("/")
    return Attachment(
        names.port_name(namespace, name, f"uid-{pod}", "eth0", f"sandbox-{pod}"),
        names.FIRST_ATTACHMENT_OFPORT + number,
        on.pod_cidr[2 + number],
        pod,
    )


def view(pods: dict[int, list[str]]) -> ClusterView:
    """`{1: ["default/a"]}`: node1 with one pod; nodes are numbered as the keys are."""
    nodes = {f"node{number}": node(number) for number in pods}
    attachments = {}
    for number, names_ in pods.items():
        made = [attachment(node(number), i, pod) for i, pod in enumerate(names_)]
        attachments[f"node{number}"] = {a.port: a for a in made}
    return ClusterView(CLUSTER, nodes, attachments)
