"""flows_per_service, groups_per_service, bytes_per_endpoint_change: counted, not timed.

A typical Service (one port, ten endpoints) is given to the controller's own code beside others, and
what that makes for the switches is counted: each of them gets the same.
"""

from bench import service_objects as objects
from bench.controller import Manifest
from bench.figures import Figure
from controller.desired import batch_of
from controller.inventory import Inventory
from controller.sources.objects import from_manifest
from flows.compile import compile_scope, fragments
from flows.view import CLUSTER_SCOPE, Cluster, Key
from lab.layout import POD_RANGE, SERVICE_RANGE, LabLayout

NODES = LabLayout("bench").nodes(3)
MANY = 250
TURNS = 10
"""Services of which one endpoint is changed: which one it is makes a little difference."""


def measure(*, services: int = 20) -> list[Figure]:
    """What one Service more costs a switch, and what one endpoint more, or less, does."""
    known = Inventory(Cluster(POD_RANGE, SERVICE_RANGE, 6081, 1000))
    for number in range(services):
        _take(known, *objects.both(NODES, number))
    before = compile_scope(known.view, CLUSTER_SCOPE)
    _take(known, *objects.both(NODES, services))
    after = compile_scope(known.view, CLUSTER_SCOPE)
    of_ten = _changes(known, objects.ENDPOINTS)
    of_many = _changes(known, MANY)
    return [
        Figure("flows_per_service", "flows", [len(after.cookies) - len(before.cookies)]),
        Figure("groups_per_service", "groups", [len(after.groups) - len(before.groups)]),
        Figure("bytes_per_endpoint_change", "bytes", of_ten),
        Figure(f"bytes_per_endpoint_change.of_{MANY}", "bytes", of_many),
    ]


def _take(known: Inventory, *manifests: Manifest) -> set[Key]:
    touched = {key for each in manifests for key in known.set_object(from_manifest(each))}
    return touched | known.settle()


def _changes(known: Inventory, endpoints: int) -> list[float]:
    """Bytes to each switch for one endpoint more, then for one less, of Services that have so many.

    Everything on the wire: the bundle around it, and the seal.
    """
    sizes: list[float] = []
    for number in range(TURNS):
        _take(known, objects.slice_of(NODES, number, endpoints))
        program = compile_scope(known.view, CLUSTER_SCOPE)
        for changed in (endpoints + 1, endpoints):
            touched = _take(known, objects.slice_of(NODES, number, changed))
            delta = program.update(fragments(known.view, sorted(touched)))
            batch = batch_of(delta, program.seal, sealed=True)
            sizes.append(sum(len(part.data) + len(part.commit) for part in batch.parts))
    return sizes
