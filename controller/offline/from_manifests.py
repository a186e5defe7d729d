"""An inventory with the objects of some manifests, and pods attached to made-up switches."""

from dataclasses import dataclass, field
from ipaddress import IPv4Network

from controller.inventory import Inventory
from controller.offline import gateways
from controller.offline.manifests import Manifests
from controller.offline.placing import Placer, complete_nodes, pod_range_of
from controller.offline.workloads import Workload, workload_of
from controller.sources.objects import NodeObject, PodObject
from flows.refs import ObjectRef
from flows.view import Cluster

SERVICE_RANGES = ("10.96.0.0/16", "172.30.0.0/16", "192.168.0.0/16")
"""A directory does not say which range Services have: the first that is free."""


@dataclass
class Offline:
    """A cluster in an inventory of its own."""

    inventory: Inventory
    without_pods: dict[str, ObjectRef] = field(default_factory=dict)
    """By the name of an invented pod, the workload that has no pod now."""
    assumed: list[str] = field(default_factory=list)
    """What was not given, in words."""

    def add_templates(self, workloads: dict[ObjectRef, Workload]) -> None:
        """Attach a pod for each workload that has none."""
        known = {workload_of(pod) for pod in self.inventory.pods.objects.values()}
        placer = Placer(self.inventory)
        left = 0
        for ref, workload in sorted(workloads.items()):
            if ref in known or not workload.has_pods_of_its_own:
                continue
            if (pod := workload.pod()) is None:
                continue
            if placer.put(pod):
                self.without_pods[f"{pod.metadata.namespace}/{pod.metadata.name}"] = ref
            else:
                left += 1
        self.inventory.settle()
        if left:
            self.assumed.append(f"no node has room for pods of {left} workloads: left out")


def from_manifests(given: Manifests, pod_range: IPv4Network | None = None) -> Offline:
    """The cluster that the manifests describe.

    Each pod gets the address of its status if its node has it, otherwise another one.
    """
    nodes = [each for each in given.objects.values() if isinstance(each, NodeObject)]
    pods = {
        identity: each
        for identity, each in given.objects.items()
        if isinstance(each, PodObject)
        and not each.spec.host_network
        and identity not in given.finished
    }
    pod_range = pod_range or pod_range_of(nodes)
    service_range = next(
        network for text in SERVICE_RANGES
        if not (network := IPv4Network(text)).overlaps(pod_range)
    )  # fmt: skip
    inventory = Inventory(Cluster(pod_range, service_range, 6081, 4_000))
    made = Offline(inventory)
    complete = complete_nodes(nodes, pod_range, len(pods) + len(given.workloads))
    invented = len(complete) - len(nodes)
    if invented > 0:
        why = "those given have not enough room" if nodes else "none is given"
        made.assumed.append(f"{invented} more node{'s' * (invented > 1)}, because {why}")
    for node in complete:
        inventory.set_object(node)
    inventory.settle()
    placer = Placer(inventory)
    moved = left = 0
    for identity, pod in pods.items():
        wanted = given.addresses.get(identity)
        address = placer.put(pod, wanted)
        if address is None:
            left += 1
        elif wanted not in {None, address}:
            moved += 1
    if left:
        made.assumed.append(f"no node has room for {_pods(left)}: left out")
    if moved:
        made.assumed.append(
            f"another address for {_pods(moved)}: status.podIP is not in spec.podCIDR of its Node,"
            " so ipBlocks do not match its real one"
        )
    for each in given.objects.values():
        is_host = isinstance(each, PodObject) and each.spec.host_network
        if is_host or not isinstance(each, NodeObject | PodObject):
            inventory.set_object(each)
    inventory.settle()
    inventory.load_balancers.refresh()
    made.assumed += gateways.assume(inventory)
    return made


def _pods(count: int) -> str:
    return f"{count} pod{'s' * (count > 1)}"
