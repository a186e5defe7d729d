"""Services and slices of any content: taken or refused, and never anything else."""

from contextlib import suppress
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from controller.sources.objects import ObjectError, from_manifest
from flows import names
from tests.controller.test_services import inventory

ODD = st.sampled_from(
    [None, "", "x", "None", "a/b", "\x00", "10.96.0.1", "10.244.1.5", "::ffff:10.0.0.1",
     "010.1.1.1", "0.0.0.0/0", "TCP", "IPv4", "x" * 5000, 0, -1, 80, 6081, 2**70, True, 1.5, [], {}]
)  # fmt: skip
TEXTS = st.lists(ODD, max_size=3)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries({}, optional=fields)


def mostly(usual: Any) -> st.SearchStrategy[Any]:
    return st.one_of(*[st.just(usual)] * 4, ODD)


service_specs = some(
    type=mostly("LoadBalancer"),
    clusterIP=mostly("10.96.0.1"),
    clusterIPs=mostly(["10.96.0.1"]),
    ipFamilies=st.one_of(st.just(["IPv4"]), TEXTS),
    ports=st.lists(
        some(port=mostly(80), name=mostly("a"), protocol=mostly("UDP"), nodePort=mostly(30080)),
        max_size=3,
    ),
    externalIPs=st.one_of(st.just(["198.51.100.1"]), TEXTS),
    loadBalancerSourceRanges=st.one_of(st.just(["10.0.0.0/8"]), TEXTS),
    externalTrafficPolicy=mostly("Local"),
    internalTrafficPolicy=mostly("Local"),
    sessionAffinity=mostly("ClientIP"),
    sessionAffinityConfig=st.one_of(
        ODD, some(clientIP=st.one_of(ODD, some(timeoutSeconds=mostly(10))))
    ),
    healthCheckNodePort=mostly(30081),
)
statuses = some(loadBalancer=some(ingress=st.lists(some(ip=ODD, ipMode=ODD), max_size=2)))
slice_endpoints = some(
    addresses=st.one_of(st.just(["10.244.1.5"]), TEXTS),
    conditions=some(ready=mostly(True), serving=ODD, terminating=ODD),
    nodeName=mostly("node1"),
    hints=some(forZones=st.lists(some(name=mostly("a")), max_size=2),
               forNodes=st.lists(some(name=mostly("node1")), max_size=2)),
)  # fmt: skip


@given(
    service_specs,
    statuses,
    st.lists(slice_endpoints, max_size=3),
    st.lists(some(name=mostly("a"), protocol=mostly("UDP"), port=mostly(5353)), max_size=2),
    mostly("2026-01-01T00:00:00Z"),
)
@settings(max_examples=500, deadline=None)
def test_any_content_is_taken_or_refused(spec, status, endpoints, ports, triggered) -> None:
    made = inventory()
    for manifest in (
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}, "spec": spec,
         "status": status},
        {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
         "metadata": {
             "name": "s-1",
             "labels": {"kubernetes.io/service-name": "s"},
             "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": triggered},
         },
         "endpoints": endpoints, "ports": ports},
    ):  # fmt: skip
        with suppress(ObjectError):
            made.set_object(from_manifest(manifest))
    made.settle()
    for problem in made.problems.texts().values():
        assert len(problem) < 1500
        assert "\x00" not in problem
    for service in made.view.services.values():
        for port in service.ports:
            assert port.frontends
            assert all(0 < each.port < 65536 for each in (*port.frontends, *port.endpoints))
            assert all(each in names.GROUPS for each in port.groups.values())
    made.services.take_triggers()
    for node in ("node1", "x"):
        made.services.hosts.wanted(node)
    made.remove_object("Service", "default", "s")
    made.remove_object("EndpointSlice", "default", "s-1")
    made.settle()
    assert not made.problems
    assert not made.services._claims
