"""The endpoints that get connections, in the cases of kube-proxy's pkg/proxy/topology.go."""

import pytest

from flows import topology
from flows.view import Endpoint, ServicePort
from tests.flows.worlds import endpoint, port

A, B, C = (endpoint(f"10.244.{n}.2", 80, f"node{n}") for n in (1, 2, 3))
"""Ready endpoints, one on each node."""
NOWHERE = endpoint("192.0.2.1", 80)
"""An endpoint of a Service without a selector: on no node."""


def leaving(of: Endpoint) -> Endpoint:
    """The endpoint, but terminating and still serving."""
    return of._replace(ready=False)


def zoned(of: Endpoint, *zones: str) -> Endpoint:
    return of._replace(zones=zones)


def meant_for(of: Endpoint, *nodes: str) -> Endpoint:
    return of._replace(nodes=nodes)


def having(*endpoints: Endpoint) -> ServicePort:
    return port("", [], list(endpoints))


@pytest.mark.parametrize(
    ("what", "endpoints", "chosen"),
    [
        ("all that are ready", [A, B, NOWHERE], [A, B, NOWHERE]),
        ("none that is terminating, while one is ready", [A, leaving(B)], [A]),
        ("the terminating ones, where none is ready", [leaving(A), leaving(B)],
         [leaving(A), leaving(B)]),
        ("none", [], []),
        ("whatever hints say of a node or zone", [zoned(A, "x"), meant_for(B, "node1")],
         [zoned(A, "x"), meant_for(B, "node1")]),
    ],
)  # fmt: skip
def test_everywhere_is_ready_endpoints_or_those_that_still_serve(
    what: str, endpoints: list[Endpoint], chosen: list[Endpoint]
) -> None:
    assert topology.everywhere(having(*endpoints)) == tuple(sorted(chosen)), what


@pytest.mark.parametrize(
    ("what", "endpoints", "chosen"),
    [
        ("the node's own", [A, B, NOWHERE], [A]),
        ("none, whoever else has some", [B, NOWHERE], []),
        # Ready endpoints on other nodes do not replace serving ones here.
        ("its terminating ones, where none of its own is ready", [leaving(A), B], [leaving(A)]),
        ("not those, while another of its own is ready",
         [leaving(A), A._replace(port=81), B], [A._replace(port=81)]),
        ("hints say nothing of it", [meant_for(zoned(A, "x"), "node2"), B],
         [meant_for(zoned(A, "x"), "node2")]),
    ],
)  # fmt: skip
def test_local_is_endpoints_of_the_node(
    what: str, endpoints: list[Endpoint], chosen: list[Endpoint]
) -> None:
    assert topology.local(having(*endpoints), "node1") == tuple(chosen), what


@pytest.mark.parametrize(
    ("what", "endpoints", "chosen"),
    [
        ("each zone its own", [zoned(A, "x"), zoned(B, "y")],
         {"x": [zoned(A, "x")], "y": [zoned(B, "y")]}),
        ("one for two zones", [zoned(A, "x", "y"), zoned(B, "y")],
         {"x": [zoned(A, "x", "y")], "y": [zoned(A, "x", "y"), zoned(B, "y")]}),
        ("one without a hint: none counts", [zoned(A, "x"), B], {}),
        ("only the ready ones must have hints", [zoned(A, "x"), leaving(B)],
         {"x": [zoned(A, "x")]}),
        ("a terminating one's hint is none", [zoned(A, "x"), leaving(zoned(B, "y"))],
         {"x": [zoned(A, "x")]}),
        ("where none is ready, hints do not count",
         [leaving(zoned(A, "x")), leaving(zoned(B, "y"))], {}),
        ("hints for nodes are not for zones", [meant_for(A, "node1")], {}),
        ("none", [], {}),
    ],
)  # fmt: skip
def test_zones_have_hinted_endpoints(
    what: str, endpoints: list[Endpoint], chosen: dict[str, list[Endpoint]]
) -> None:
    """Other zones choose among all endpoints: see `everywhere`."""
    found = topology.zones(having(*endpoints))
    assert found == {zone: tuple(sorted(of)) for zone, of in chosen.items()}, what


@pytest.mark.parametrize(
    ("what", "endpoints", "chosen"),
    [
        ("those meant for it", [meant_for(A, "node1"), meant_for(B, "node2", "node1"),
                                meant_for(C, "node3")],
         [meant_for(A, "node1"), meant_for(B, "node2", "node1")]),
        ("none for it: it chooses as its zone does", [meant_for(B, "node2")], []),
        ("one without a hint: none counts", [meant_for(A, "node1"), B], []),
        ("only the ready ones must have hints", [meant_for(A, "node1"), leaving(B)],
         [meant_for(A, "node1")]),
        ("a terminating one is not for it", [leaving(meant_for(A, "node1")),
                                             meant_for(B, "node2")], []),
        ("where none is ready, hints do not count", [leaving(meant_for(A, "node1"))], []),
    ],
)  # fmt: skip
def test_node_hints_choose_endpoints(
    what: str, endpoints: list[Endpoint], chosen: list[Endpoint]
) -> None:
    assert topology.hinted(having(*endpoints), "node1") == tuple(chosen), what
