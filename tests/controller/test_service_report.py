"""What people are told of a Service: as its flows do it, with all that is wrong with it."""

import asyncio
from ipaddress import IPv4Address
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.agent_problems import take_problems
from controller.api import Api
from controller.inventory import Inventory
from controller.policies.slices import complete
from controller.problems import Reporter, ReporterKind
from controller.reconciler import Reconciler
from controller.reports import VERSION
from controller.reports.report import encoded
from controller.service_report import detailed, listed
from controller.sources.objects import Object
from flows.compile import compile_scope
from flows.flow import Flow, Group, SetField, ToGroup
from flows.pipeline import LAYOUT, Source
from flows.refs import ObjectRef
from flows.view import CLUSTER_SCOPE
from tests.controller.events import node_object
from tests.controller.service_objects import endpoint, endpoint_slice, service
from tests.controller.world import SETTINGS
from tests.flows.worlds import CLUSTER
from wire.documents import NodeProblems

NODES = [
    node_object(f"node{n}", f"10.244.{n}.0/24", f"172.30.1.{n}", uid=f"n{n}", zone=zone)
    for n, zone in ((1, "a"), (2, "a"), (3, "b"), (4, "b"), (5, ""))
]
GOING = {"ready": False, "serving": True, "terminating": True}
EVERYWHERE = {
    "type": "LoadBalancer",
    "ingress": [{"ip": "192.0.2.1"}],
    "externalIPs": ["192.0.2.2"],
    "healthCheckNodePort": 32000,
    "ports": [{"port": 80, "nodePort": 30080}],
}
LOCAL = EVERYWHERE | {"externalTrafficPolicy": "Local"}
SPREAD = [
    endpoint("10.244.1.2", "node1"),
    endpoint("10.244.1.3", "node1", **GOING),
    endpoint("10.244.2.2", "node2", **GOING),
    endpoint("10.244.3.2", "node3"),
]
BY_ZONE = [
    endpoint("10.244.1.2", "node1", zones=["a"]),
    endpoint("10.244.3.2", "node3", zones=["b"]),
    endpoint("10.244.3.3", "node3", zones=["b"], **GOING),
]
BY_NODE = [
    endpoint("10.244.1.2", "node1", zones=["a"], nodes=["node1"]),
    endpoint("10.244.2.2", "node2", zones=["a"], nodes=["node2"]),
    endpoint("10.244.3.2", "node3", zones=["b"], nodes=["node3"]),
]
AFFINITY = {"sessionAffinity": "ClientIP"}


def rows_of(made: Inventory) -> list[Any]:
    return msgspec.json.decode(complete(encoded(complete(listed(made)))))["services"]


def details(made: Inventory, name: str, node: str | None = None) -> Any:
    return msgspec.json.decode(msgspec.json.encode(complete(detailed(made, name, node))))


def inventory(*objects: Object) -> Inventory:
    made = Inventory(CLUSTER)
    for each in (*NODES, *objects):
        made.set_object(each)
    made.settle()
    made.settle()
    return made


# --- as the flows do it ---


class Node:
    """A node's flows, asked for what they do with a packet to a Service."""

    def __init__(self, inventory: Inventory, name: str) -> None:
        programs = [compile_scope(inventory.view, scope) for scope in (CLUSTER_SCOPE, name)]
        self.flows = [flow for program in programs for flow in program.flows()]
        self.groups = {k: group for program in programs for k, group in program.groups.items()}

    def first(self, table: str, packet: dict[str, int]) -> Flow:
        number = LAYOUT.tables[table].number
        return max(
            (flow for flow in self.flows if flow.table == number and _matches(flow, packet)),
            key=lambda flow: flow.priority,
        )

    def chosen(self, source: Source, to: dict[str, Any]) -> tuple[set[str], str]:
        """Endpoints, and what becomes of the packet without one."""
        packet = {"dl_type": 0x0800, "nw_proto": 6, "tp_dst": to["port"]}
        _load(packet, "Source", source)
        if to["address"] is None:
            _load(packet, "NodeAddress", 1)
        else:
            packet["nw_dst"] = int(IPv4Address(to["address"]))
        self.do(self.first("ServiceChoice", packet), packet)
        self.do(self.first("Topology", packet), packet)
        flow = self.first("EndpointChoice", packet)
        for action in flow.actions:
            if isinstance(action, ToGroup):
                return _endpoints(self.groups[action.group]), ""
        return set(), "refused" if flow.actions else "dropped"

    def do(self, flow: Flow, packet: dict[str, int]) -> None:
        for action in flow.actions:
            if isinstance(action, SetField):
                mask = action.mask if action.mask is not None else 0xFFFF_FFFF
                old = packet.get(action.field, 0)
                packet[action.field] = old & ~mask | action.value


def _load(packet: dict[str, int], register: str, number: int) -> None:
    value, _ = LAYOUT.registers[register].value(number)
    name = LAYOUT.registers[register].register
    packet[name] = packet.get(name, 0) | value


def _matches(flow: Flow, packet: dict[str, int]) -> bool:
    return all(
        packet.get(name, 0) & (mask if mask is not None else -1) == value
        for name, value, mask in flow.match
    )


def _endpoints(group: Group) -> set[str]:
    found = set()
    for bucket in group.buckets:
        for action in bucket.actions:
            if (nat := getattr(action, "nat", None)) is not None:
                address, port = nat.destination
                found.add(f"{IPv4Address(address)}:{port}")
    return found


def _senders(whence: str) -> list[Source]:
    named = {"outside": [Source.GATEWAY], "pods and nodes": [Source.POD, Source.HOST]}
    return named.get(whence, [Source.GATEWAY, Source.POD, Source.HOST])


@pytest.mark.parametrize(
    ("fields", "endpoints"),
    [
        ({}, SPREAD),
        ({}, []),
        ({}, SPREAD[1:3]),
        (EVERYWHERE, SPREAD),
        (EVERYWHERE, []),
        (LOCAL, SPREAD),
        (LOCAL, []),
        (LOCAL, BY_ZONE),
        (LOCAL, BY_NODE),
        ({"internalTrafficPolicy": "Local"}, SPREAD),
        (LOCAL | {"internalTrafficPolicy": "Local"}, BY_NODE),
        ({}, BY_ZONE),
        ({}, [*BY_ZONE, SPREAD[0] | {"addresses": ["10.244.1.9"]}]),
        ({}, BY_NODE),
    ],
)
def test_report_of_each_node_agrees_with_its_flows(fields: Any, endpoints: Any) -> None:
    made = inventory(service("web", **fields), endpoint_slice("web-1", "web", endpoints))
    report = details(made, "default/web")
    assert report is not None
    (port,) = report["ports"]
    nodes = {n.metadata.name: Node(made, n.metadata.name) for n in NODES}
    seen: list[tuple[str, str, str]] = []
    for choice in port["choices"]:
        internal = choice["to"] == "ClusterIP"
        for name in choice["nodes"]:
            seen.append((choice["to"], choice["from"], name))
            expected = set(choice["endpoints"]), choice["otherwise"]
            for source in _senders(choice["from"]):
                for frontend in port["frontends"]:
                    if (frontend["kind"] == "ClusterIP") == internal:
                        assert nodes[name].chosen(source, frontend) == expected
    assert len(seen) == len(set(seen))
    ways = {(to, whence) for to, whence, _ in seen}
    assert len(seen) == len(ways) * len(NODES)
    external = {whence for to, whence in ways if to == "external"}
    both = {"outside", "pods and nodes"} if "externalTrafficPolicy" in fields else {"anywhere"}
    assert external == (both if "type" in fields else set())
    # One node alone is told the same of itself.
    alone = details(made, "default/web", "node3")
    assert alone is not None
    of_three = [c | {"nodes": ["node3"]} for c in port["choices"] if "node3" in c["nodes"]]
    assert alone["ports"][0]["choices"] == of_three


# --- what it says of it ---


def test_report_shows_the_parts_of_a_service() -> None:
    made = inventory(
        service("web", loadBalancerSourceRanges=["198.51.100.0/24"], **LOCAL, **AFFINITY),
        endpoint_slice("web-1", "web", SPREAD[:2]),
        endpoint_slice("web-2", "web", [endpoint("192.0.2.77", "", zones=["a"])]),
    )
    report = details(made, "default/web")
    assert report is not None
    assert report.pop("version") == VERSION
    (port,) = report.pop("ports")
    assert report == {
        "namespace": "default",
        "name": "web",
        "type": "LoadBalancer",
        "nothingToDo": "",
        "internalTrafficPolicy": "Cluster",
        "externalTrafficPolicy": "Local",
        "affinitySeconds": 10800,
        "problems": {},
        "balancer": None,
    }
    assert [(f["kind"], f["address"], f["port"], f["sources"]) for f in port["frontends"]] == [
        ("ClusterIP", "10.96.0.1", 80, None),
        ("LoadBalancer", "192.0.2.1", 80, ["198.51.100.0/24"]),
        ("ExternalIP", "192.0.2.2", 80, None),
        ("NodePort", None, 30080, None),
    ]
    assert (port["protocol"], port["ready"], port["terminating"]) == ("TCP", 2, 1)
    assert [
        (e["address"], e["port"], e["state"], e["node"], e["zone"], list(e["hintZones"]))
        for e in port["endpoints"]
    ] == [
        ("10.244.1.2", 8080, "ready", "node1", "a", []),
        ("10.244.1.3", 8080, "terminating", "node1", "a", []),
        ("192.0.2.77", 8080, "ready", "", "", ["a"]),
    ]
    (short,) = rows_of(made)
    kept = ("name", "protocol", "frontends", "ready", "terminating")
    assert short == report | {"ports": [{key: port[key] for key in kept}]}


def test_problems_are_those_of_the_service_its_slices_and_its_nodes() -> None:
    made = inventory(
        service("web", clusterIP="10.244.1.9"),
        service("web2", clusterIP="10.96.0.2"),
        endpoint_slice("web-1", "web", ["127.0.0.1"]),
        endpoint_slice("web2-1", "web2", ["127.0.0.1"]),
        endpoint_slice("nobodys", "gone", ["127.0.0.1"]),
    )
    web, web2 = (ObjectRef("Service", "default", name) for name in ("web", "web2"))
    agent, switch = Reporter(ReporterKind.AGENT, "node1"), Reporter(ReporterKind.SWITCH, "node2", 1)
    made.problems.set(agent, web, "the host's ports")
    made.problems.set(agent, web2, "not this one's")
    made.problems.set(switch, web, "the table is full")
    made.problems.set(switch, ObjectRef("Pod", "default", "web"), "no Service at all")
    report = details(made, "default/web")
    assert report is not None
    of_pods = "spec.clusterIP: 10.244.1.9 is inside the pod range 10.244.0.0/16"
    loopback = "endpoints[0].addresses: 127.0.0.1 is a loopback address"
    assert report["ports"] == []
    assert report["problems"] == {
        "Service default/web": of_pods,
        "EndpointSlice default/web-1": loopback,
        "Service default/web on node1": "the host's ports",
        "Service default/web on the switch of node2": "the table is full",
    }
    rows = {row["name"]: row["problems"] for row in rows_of(made)}
    assert rows["web"] == report["problems"]
    assert set(rows["web2"]) == {"EndpointSlice default/web2-1", "Service default/web2 on node1"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"clusterIP": "None"}, "it is headless"),
        ({"type": "ExternalName", "clusterIP": ""}, "its type is ExternalName"),
        (
            {"labels": {"service.kubernetes.io/service-proxy-name": "mesh"}},
            "its label service.kubernetes.io/service-proxy-name is 'mesh'",
        ),
        (
            {"labels": {"service.kubernetes.io/headless": ""}},
            "it has the label service",
        ),
    ],
)
def test_report_says_why_there_is_nothing_to_do(fields: Any, why: str) -> None:
    made = inventory(service("web", **fields))
    report = details(made, "default/web")
    assert report is not None
    assert report["nothingToDo"].startswith(why)
    assert [row["nothingToDo"] for row in rows_of(made)] == [report["nothingToDo"]]
    made.set_object(service("web"))
    made.settle()
    assert [row["nothingToDo"] for row in rows_of(made)] == [""]
    made.set_object(service("web", **fields))
    made.settle()
    assert [row["nothingToDo"] for row in rows_of(made)] == [report["nothingToDo"]]
    made.remove_object("Service", "default", "web")
    made.settle()
    assert rows_of(made) == []
    assert details(made, "default/web") is None


# --- over HTTP ---


def test_answers() -> None:
    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([*NODES, service("web"), service("a", clusterIP="10.96.0.2")], [])
        api = Api(reconciler, SETTINGS)
        async with TestClient(TestServer(api.application(local=True))) as client:

            async def get(path: str) -> tuple[int, Any]:
                response = await client.get(path)
                return response.status, await response.json()

            sentence = {"error": "the controller has not read the cluster yet"}
            assert await get("/v1/services") == (503, sentence)
            assert await get("/v1/services/default/web") == (503, sentence)
            reconciler.source_complete(True)
            take_problems(
                reconciler.inventory, "node1", NodeProblems(services={"default/web": "taken"})
            )
            status, answer = await get("/v1/services")
            assert status == 200
            assert [row["name"] for row in answer["services"]] == ["a", "web"]
            assert answer["services"][1]["problems"] == {"Service default/web on node1": "taken"}
            status, answer = await get("/v1/services/default/web?node=node2")
            assert (status, answer["ports"][0]["choices"][0]["nodes"]) == (200, ["node2"])
            missing = {"error": "there is no Service default/no"}
            assert await get("/v1/services/default/no") == (404, missing)
            unknown = {"error": "Node node9: it is unknown"}
            assert await get("/v1/services/default/web?node=node9") == (404, unknown)
        # Of the whole cluster: nothing for whoever comes by TCP.
        async with TestClient(TestServer(api.application(local=False))) as client:
            for path in ("/v1/services", "/v1/services/default/web"):
                assert (await client.get(path)).status == 404

    asyncio.run(story())


def test_report_of_many_endpoints_is_made_in_small_steps() -> None:
    addresses = [f"10.244.1.{n}" for n in range(2, 102)]
    made = inventory(
        service("web", clusterIP="10.96.0.9"), endpoint_slice("web-1", "web", addresses)
    )
    steps = sum(1 for _ in detailed(made, "default/web"))
    assert steps >= len(addresses) + len(NODES)
    assert len(details(made, "default/web")["ports"][0]["endpoints"]) == len(addresses)
