"""An inventory of two nodes with Services, and what tests ask of it."""

from controller.inventory import Inventory
from controller.sources.objects import Object
from flows.view import CLUSTER_SCOPE, Key, ServicePort
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER


def inventory(*objects: Object) -> Inventory:
    """With node1 in zone a and node2, and these."""
    made = Inventory(CLUSTER)
    made.set_object(node_object("node1", "10.244.1.0/24", "172.30.1.1", zone="a"))
    made.set_object(node_object("node2", "10.244.2.0/24", "172.30.1.2"))
    made.settle()
    for item in objects:
        made.set_object(item)
    made.settle()
    return made


def put(made: Inventory, item: Object) -> set[Key]:
    return made.set_object(item) | made.settle()


def drop(made: Inventory, kind: str, name: str) -> set[Key]:
    return made.remove_object(kind, "" if kind == "Node" else "default", name) | made.settle()


def of_port(name: str) -> Key:
    """The key of the endpoints of the only port, TCP and without a name, of a Service."""
    return Key(CLUSTER_SCOPE, "service-port", f"default/{name} /6")


def only_port(made: Inventory, name: str = "s") -> ServicePort:
    (port,) = made.view.services[f"default/{name}"].ports
    return port


def frontends(made: Inventory, name: str = "s") -> list[str]:
    """As `ADDRESS:PORT/PROTOCOL`, with an `e` where they are external."""
    found = made.view.services.get(f"default/{name}")
    return [
        f"{frontend.address or '*'}:{frontend.port}/{port.protocol}{'e' * frontend.external}"
        for port in (found.ports if found else ())
        for frontend in port.frontends
    ]


def addresses(made: Inventory) -> list[str]:
    return [str(each.address) for each in only_port(made).endpoints]
