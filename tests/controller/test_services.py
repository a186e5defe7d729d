"""What of a Service is served, what is refused and in which words, and what others are told."""

from ipaddress import IPv4Address, IPv4Network
from typing import Any

import pytest

from controller.host_services import OwnAddress
from flows import names
from flows.view import CLUSTER_SCOPE, Endpoint, Frontend, HostDnatAddress, Key
from tests.controller.events import node_object
from tests.controller.service_inventory import (
    addresses,
    drop,
    frontends,
    inventory,
    of_port,
    only_port,
    put,
)
from tests.controller.service_objects import endpoint, endpoint_slice, service


def test_whole_service_is_read() -> None:
    made = inventory(
        service("s", ports=[{"name": "dns", "port": 53, "protocol": "UDP"}]),
        endpoint_slice(
            "s-1", "s", ["10.244.2.5", "10.244.1.5"],
            [{"name": "dns", "port": 5353, "protocol": "UDP"},
             {"name": "dns", "port": 54, "protocol": "TCP"}],
        ),
    )  # fmt: skip
    assert made.view.nodes["node1"].zone == "a"
    port = only_port(made)
    assert (port.name, port.protocol) == ("dns", 17)
    assert port.frontends == (Frontend(IPv4Address("10.96.0.1"), 53, False),)
    assert port.endpoints == tuple(
        Endpoint(IPv4Address(address), 5353, node="node1")
        for address in ("10.244.1.5", "10.244.2.5")
    )
    assert list(port.groups) == ["cluster"]
    assert (port.internal_local, port.external_local, port.affinity) == (False, False, None)
    assert not made.problems


@pytest.mark.parametrize(
    "fields",
    [
        {"clusterIP": "None"},
        {"type": "ExternalName", "clusterIP": ""},
        {"labels": {"service.kubernetes.io/service-proxy-name": "another"}},
        {"labels": {"service.kubernetes.io/headless": ""}},
    ],
)
def test_ignored_services(fields: dict[str, Any]) -> None:
    made = inventory(service("s", **fields))
    assert not made.view.services
    assert not made.problems
    # One that becomes so goes.
    put(made, service("s"))
    assert frontends(made) == ["10.96.0.1:80/6"]
    assert put(made, service("s", **fields)) == {
        Key(CLUSTER_SCOPE, "service", "default/s"),
        of_port("s"),
    }
    assert not made.view.services


def test_service_without_endpoints_keeps_its_frontends() -> None:
    made = inventory(service("s"))
    assert only_port(made).endpoints == ()
    assert frontends(made) == ["10.96.0.1:80/6"]


def test_every_frontend_is_read() -> None:
    made = inventory(
        service(
            "s", type="LoadBalancer", ports=[{"port": 80, "nodePort": 30080}],
            ipFamilies=["IPv4", "IPv6"], clusterIPs=["10.96.0.1", "fd00::1"],
            externalIPs=["198.51.100.1", "fd00::2", "198.51.100.3"],
            ingress=[{"ip": "198.51.100.2"}, {"ip": "198.51.100.3"}, {"ip": "fd00::3"},
                     {"ip": "198.51.100.4", "ipMode": "Proxy"}, {"hostname": "a.example"}],
            loadBalancerSourceRanges=[" 192.0.2.7/24 ", "10.0.0.0/8"],
        )
    )  # fmt: skip
    sources = IPv4Network("10.0.0.0/8"), IPv4Network("192.0.2.0/24")
    assert only_port(made).frontends == (
        Frontend(IPv4Address("10.96.0.1"), 80, False),
        Frontend(IPv4Address("198.51.100.2"), 80, True, sources),
        # Among both: the narrower holds.
        Frontend(IPv4Address("198.51.100.3"), 80, True, sources),
        Frontend(IPv4Address("198.51.100.1"), 80, True),
        Frontend(None, 30080, True),
    )
    assert not made.problems


@pytest.mark.parametrize(
    ("ranges", "sources", "problem"),
    [
        (["0.0.0.0/0", "10.0.0.0/8"], None, ""),
        (["x", "10.0.0.0/8"], ["10.0.0.0/8"], "loadBalancerSourceRanges[0]: 'x' is not a CIDR"),
        (["x"], [], "spec.loadBalancerSourceRanges holds no IPv4 range: it serves nobody"),
        (["fd00::/8"], [], "spec.loadBalancerSourceRanges holds no IPv4 range: it serves nobody"),
        ([], None, ""),
    ],
)
def test_source_ranges_are_never_widened(
    ranges: list[str], sources: list[str] | None, problem: str
) -> None:
    made = inventory(
        service("s", type="LoadBalancer", ingress=[{"ip": "198.51.100.1"}],
                loadBalancerSourceRanges=ranges)
    )  # fmt: skip
    wanted = None if sources is None else tuple(IPv4Network(each) for each in sources)
    assert only_port(made).frontends[1].sources == wanted
    assert problem in made.problems.texts().get("Service default/s", "")
    assert bool(problem) == bool(made.problems)


NODE_PORT = {"type": "NodePort", "ports": [{"port": 80, "nodePort": 30080}]}
REFUSED = [
    *(
        ({"clusterIP": address}, [], f"spec.clusterIP: {address} is {problem}")
        for address, problem in (
            ("10.244.1.5", "inside the pod range 10.244.0.0/16"),
            ("172.30.1.2", "Node node2's own address"),
            ("127.0.0.1", "a loopback address"),
            ("169.254.1.3", "a link-local address"),
            ("224.0.0.1", "a multicast address"),
            ("0.0.0.0", "the unspecified address"),
            ("255.255.255.255", "the broadcast address"),
        )
    ),
    ({"clusterIP": ""}, [], "spec.clusterIP is missing: nobody has assigned one"),
    ({"clusterIP": "ten"}, [], "spec.clusterIP: 'ten' is not an IP address"),
    ({"clusterIP": "fd00::1"}, [], "spec.ipFamilies holds only IPv6"),
    ({"ports": [{"port": 0}]}, [], "spec.ports[0].port: 0 is not a valid port (1-65535)"),
    ({"ports": [{"port": 9, "protocol": "X"}]}, [], "spec.ports[0].protocol: 'X' is none of TCP"),
    *(
        ({"externalIPs": [address]}, ["10.96.0.1:80/6"], f"spec.externalIPs[0]: {problem}")
        for address, problem in (
            ("10.244.1.5", "10.244.1.5 is inside the pod range 10.244.0.0/16"),
            ("10.96.0.9", "10.96.0.9 is inside the Service range 10.96.0.0/16"),
            ("127.0.0.1", "127.0.0.1 is a loopback address"),
            ("169.254.1.3", "169.254.1.3 is a link-local address"),
            ("224.0.0.1", "224.0.0.1 is a multicast address"),
            ("0.0.0.0", "0.0.0.0 is the unspecified address"),
            ("255.255.255.255", "255.255.255.255 is the broadcast address"),
            ("fd00::1", "fd00::1 is not IPv4"),
            ("x", "'x' is not an IP address"),
        )
    ),
    (
        {"externalIPs": ["172.30.1.2"],
         "ports": [{"port": 6081, "protocol": "UDP"}, {"port": 6081, "name": "b"}]},
        ["10.96.0.1:6081/17", "10.96.0.1:6081/6", "172.30.1.2:6081/6e"],
        "spec.externalIPs[0]: port 6081/UDP of 172.30.1.2 is reserved for the tunnel of Node node2",
    ),
    (
        {"type": "LoadBalancer", "ingress": [{"ip": "10.244.1.5"}]},
        ["10.96.0.1:80/6"],
        "status.loadBalancer.ingress[0].ip: 10.244.1.5 is inside the pod range",
    ),
    ({"type": "NodePort"}, ["10.96.0.1:80/6"], "spec.ports[0].nodePort is missing: nobody has"),
    (
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 70_000}]},
        ["10.96.0.1:80/6"],
        "spec.ports[0].nodePort: 70000 is not a valid port (1-65535)",
    ),
    (
        {"type": "NodePort", "ports": [{"port": 80, "nodePort": 6081, "protocol": "UDP"}]},
        ["10.96.0.1:80/17"],
        "spec.ports[0].nodePort: 6081/UDP is reserved for the tunnel of each node",
    ),
    (
        {"ports": [{"port": 80, "name": "a"}, {"port": 80, "name": "b"}]},
        ["10.96.0.1:80/6"],
        "spec.ports[1]: port 80/TCP of 10.96.0.1 is spec.ports[0]'s already",
    ),
    (
        {"ports": [{"port": 80, "name": "a"}, {"port": 81, "name": "a"}]},
        ["10.96.0.1:80/6"],
        "spec.ports[1].name: 'a' is another port's already",
    ),
    (
        {"externalTrafficPolicy": "local"},
        ["10.96.0.1:80/6"],
        "spec.externalTrafficPolicy: 'local' is neither Cluster nor Local",
    ),
    (
        NODE_PORT | {"type": "LoadBalancer", "externalTrafficPolicy": "Local"},
        ["10.96.0.1:80/6", "*:30080/6e"],
        "spec.healthCheckNodePort is missing",
    ),
    (
        NODE_PORT | {"type": "LoadBalancer", "externalTrafficPolicy": "Local",
                     "healthCheckNodePort": 30080},
        ["10.96.0.1:80/6", "*:30080/6e"],
        "spec.healthCheckNodePort: port 30080/TCP of every node is a nodePort of its own already",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "served", "problem"), REFUSED)
def test_bad_fields_of_a_service_are_refused(
    fields: dict[str, Any], served: list[str], problem: str
) -> None:
    made = inventory(service("s", **fields))
    assert made.problems.texts()["Service default/s"].startswith(problem)
    assert frontends(made) == served
    put(made, service("s"))
    assert not made.problems


@pytest.mark.parametrize(
    ("fields", "seconds", "problem"),
    [
        ({}, None, ""),
        ({"sessionAffinity": "ClientIP"}, 10_800, ""),
        ({"sessionAffinity": "ClientIP", "sessionAffinityConfig": {"clientIP": {}}}, 10_800, ""),
        *(
            (
                {
                    "sessionAffinity": "ClientIP",
                    "sessionAffinityConfig": {"clientIP": {"timeoutSeconds": given}},
                },
                taken,
                problem,
            )
            for given, taken, problem in (
                (1, 1, ""),
                (65_535, 65_535, ""),
                (86_400, 65_535, "86400 is more than a switch can hold; 65535 is taken"),
                (86_401, 10_800, "86401 is not in 1 to 86400"),
                (0, 10_800, "0 is not in 1 to 86400"),
            )
        ),
    ],
)
def test_affinity(fields: dict[str, Any], seconds: int | None, problem: str) -> None:
    made = inventory(service("s", **fields))
    assert only_port(made).affinity == seconds
    assert problem in made.problems.texts().get("Service default/s", "")
    assert bool(problem) == bool(made.problems)


# --- endpoints ---


@pytest.mark.parametrize(
    ("conditions", "ready"),
    [
        ({}, True),
        ({"ready": None, "serving": None, "terminating": None}, True),
        ({"ready": True, "terminating": True}, True),
        ({"ready": False}, None),
        ({"ready": False, "serving": True}, None),
        ({"ready": False, "serving": True, "terminating": True}, False),
        ({"ready": False, "terminating": True}, False),
        ({"ready": False, "serving": False, "terminating": True}, None),
    ],
)
def test_which_endpoints_may_get_connections(conditions: dict[str, Any], ready: object) -> None:
    made = inventory(
        service("s"), endpoint_slice("s-1", "s", [endpoint("10.244.1.5", **conditions)])
    )
    assert [each.ready for each in only_port(made).endpoints] == ([] if ready is None else [ready])


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_endpoint_in_two_slices_counts_once(order: tuple[int, int]) -> None:
    leaving = {"ready": False, "serving": True, "terminating": True}
    slices = (
        endpoint_slice(
            "s-1",
            "s",
            [endpoint("10.244.1.5", "node1", **leaving), endpoint("10.244.1.6", "node1")],
        ),
        endpoint_slice(
            "s-2", "s", [endpoint("10.244.1.6", "node2"), endpoint("10.244.1.5", "node2")]
        ),
    )
    made = inventory(service("s"), *(slices[number] for number in order))
    assert [(str(e.address), e.ready, e.node) for e in only_port(made).endpoints] == [
        ("10.244.1.5", True, "node2"),
        ("10.244.1.6", True, "node1"),
    ]


@pytest.mark.parametrize(
    ("address", "problem"),
    [
        ("127.0.0.1", "127.0.0.1 is a loopback address"),
        ("169.254.169.254", "169.254.169.254 is a link-local address"),
        ("0.0.0.0", "0.0.0.0 is the unspecified address"),
        ("239.0.0.1", "239.0.0.1 is a multicast address"),
        ("255.255.255.255", "255.255.255.255 is the broadcast address"),
        ("10.96.0.1", "10.96.0.1 is inside the Service range 10.96.0.0/16"),
        ("fd00::1", "fd00::1 is not IPv4"),
        ("x" * 300, "'xxxxx"),
    ],
)
def test_refused_endpoint_affects_no_other(address: str, problem: str) -> None:
    made = inventory(service("s"), endpoint_slice("s-1", "s", ["8.8.8.8", address, "10.244.1.5"]))
    said = made.problems.texts()["EndpointSlice default/s-1"]
    assert said.startswith(f"endpoints[1].addresses: {problem}")
    assert len(said) < 200
    # One outside of every podCIDR is good.
    assert addresses(made) == ["8.8.8.8", "10.244.1.5"]
    drop(made, "EndpointSlice", "s-1")
    assert not made.problems


@pytest.mark.parametrize(
    ("port", "problem"),
    [
        ({}, "ports[0].port is missing"),
        ({"port": 0}, "ports[0].port: 0 is not a valid port (1-65535)"),
        ({"port": 65_536}, "ports[0].port: 65536 is not a valid port (1-65535)"),
        ({"port": 1, "protocol": "x"}, "ports[0].protocol: 'x' is none of TCP, UDP, SCTP"),
    ],
)
def test_bad_port_of_a_slice_is_refused(port: dict[str, Any], problem: str) -> None:
    made = inventory(service("s"), endpoint_slice("s-1", "s", ["10.244.1.5"], [port, {"port": 81}]))
    assert made.problems.texts() == {"EndpointSlice default/s-1": problem}
    assert [each.port for each in only_port(made).endpoints] == [81]


def test_tunnel_endpoint_cannot_be_an_endpoint() -> None:
    """It is judged anew as nodes come and go."""
    udp = [{"port": 53, "protocol": "UDP"}]
    into_the_tunnel = [{"port": 6081, "protocol": "UDP"}]
    made = inventory(
        service("s", ports=udp),
        endpoint_slice("s-1", "s", ["172.30.1.2", "172.30.1.3"], into_the_tunnel),
    )
    problem = "endpoints[0].addresses: 172.30.1.2, port 6081/UDP is Node node2's tunnel"
    assert made.problems.texts() == {"EndpointSlice default/s-1": problem}
    assert addresses(made) == ["172.30.1.3"]
    drop(made, "Node", "node2")
    touched = put(made, node_object("node3", "10.244.3.0/24", "172.30.1.3"))
    assert Key(CLUSTER_SCOPE, "service-port", "default/s /17") in touched
    assert addresses(made) == ["172.30.1.2"]
    # To any other port of a node, and to the same one of TCP, anybody may be sent.
    put(made, endpoint_slice("s-1", "s", ["172.30.1.3"], [{"port": 53, "protocol": "UDP"}]))
    put(made, service("t", clusterIP="10.96.0.2"))
    put(made, endpoint_slice("t-1", "t", ["172.30.1.3"], [{"port": 6081}]))
    assert addresses(made) == ["172.30.1.3"]
    assert not made.problems


def test_slices_of_the_other_family_are_ignored() -> None:
    dual = {"ipFamilies": ["IPv4", "IPv6"], "clusterIPs": ["10.96.0.1", "fd00::1"]}
    six = endpoint_slice("s-6", "s", ["fd00::5"], addressType="IPv6")
    made = inventory(six)
    assert not made.problems
    put(made, service("s"))
    problem = "addressType is IPv6, and Service default/s is IPv4-only"
    assert made.problems.texts() == {"EndpointSlice default/s-6": problem}
    put(made, service("s", **dual))
    assert not made.problems
    assert only_port(made).endpoints == ()
    put(made, endpoint_slice("s-6", "s", ["a.example"], addressType="FQDN"))
    assert made.problems.texts() == {"EndpointSlice default/s-6": "addressType: 'FQDN' is not IPv4"}


@pytest.mark.parametrize(
    "labels",
    [
        None,
        {"service.kubernetes.io/headless": ""},
        {"service.kubernetes.io/service-proxy-name": ""},
    ],
)
def test_slices_without_a_service_are_ignored(labels: dict[str, str] | None) -> None:
    good = endpoint_slice("s-1", "s", ["10.244.1.5"])
    made = inventory(service("s"), good)
    assert addresses(made) == ["10.244.1.5"]
    put(
        made,
        endpoint_slice("s-1", None if labels is None else "s", ["127.0.0.1"], labels=labels or {}),
    )
    assert addresses(made) == []
    assert not made.problems


def test_slice_can_change_its_service() -> None:
    made = inventory(
        endpoint_slice("x", "s", ["10.244.1.5"]), service("s"), service("t", clusterIP="10.96.0.2")
    )
    assert addresses(made) == ["10.244.1.5"]
    touched = put(made, endpoint_slice("x", "t", ["10.244.1.5"]))
    assert {key for key in touched if key.kind != "target"} == {of_port(name) for name in "st"}
    assert addresses(made) == []
    assert len(only_port(made, "t").endpoints) == 1


# --- claims ---

OLD, NEW = "2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"


@pytest.mark.parametrize("order", ["zab", "bza", "abz"])
def test_older_of_two_claims_wins(order: str) -> None:
    shared = {"externalIPs": ["198.51.100.1"]} | NODE_PORT
    made = inventory()
    for name in order:
        created = OLD if name == "z" else NEW
        number = ord(name) - 96
        put(made, service(name, clusterIP=f"10.96.0.{number}", created=created, **shared))
    assert frontends(made, "z") == ["10.96.0.26:80/6", "198.51.100.1:80/6e", "*:30080/6e"]
    assert frontends(made, "a") == ["10.96.0.1:80/6"]
    assert made.problems.texts() == {
        f"Service default/{name}": (
            "spec.externalIPs[0]: port 80/TCP of 198.51.100.1 is Service default/z's already; "
            "spec.ports[0].nodePort: port 30080/TCP of every node is Service default/z's already"
        )
        for name in "ab"
    }
    touched = drop(made, "Service", "z")
    assert touched == {
        *(Key(CLUSTER_SCOPE, "service", f"default/{name}") for name in "az"),
        *(of_port(name) for name in "az"),
    }
    assert frontends(made, "a") == ["10.96.0.1:80/6", "198.51.100.1:80/6e", "*:30080/6e"]
    assert "Service default/a's already" in made.problems.texts()["Service default/b"]
    drop(made, "Service", "b")
    assert not made.problems


def test_recreated_service_is_read_again() -> None:
    made = inventory(
        service("s", uid="1", created=OLD, ports=[{"name": "a", "port": 80}]),
        endpoint_slice("s-1", "s", ["10.244.1.5"], [{"name": "a", "port": 1}]),
    )
    before = only_port(made).groups
    put(made, service("s", uid="2", created=NEW, ports=[{"name": "b", "port": 81}]))
    assert frontends(made) == ["10.96.0.1:81/6"]
    assert addresses(made) == []
    assert only_port(made).groups != before
    assert made.metadata("Service", "default", "s").uid == "2"  # type: ignore[union-attr]
    assert len(made.services._groups) == 1


def test_service_can_take_ports_of_a_node_address() -> None:
    """Its host takes what comes to it, no other's; the older of two Services has it."""
    made = inventory(
        service("s", externalIPs=["172.30.1.3", "172.30.1.4"], created="2026-01-01T00:00:00Z")
    )
    services = made.services
    assert len(services.hosts.wanted("node3").addresses) == 2
    before = services.hosts.revision("node3"), services.hosts.changes
    node = node_object("node3", "10.244.3.0/24", "172.30.1.3", others=("172.30.1.4",))
    touched = put(made, node)
    assert {Key(scope, "service", "default/s") for scope in (CLUSTER_SCOPE, "node3")} <= touched
    ours, further = (IPv4Address(f"172.30.1.{number}") for number in (3, 4))
    host_dnat = names.HOST_DNAT_RANGE[0], names.HOST_DNAT_RANGE[1]
    assert only_port(made).frontends[1:] == (
        Frontend(ours, 80, True, node="node3", host_dnat=(HostDnatAddress("node3", host_dnat[0]),)),
        Frontend(
            further, 80, True, node="node3", host_dnat=(HostDnatAddress("node3", host_dnat[1]),)
        ),
    )
    assert not made.problems
    both = (
        OwnAddress(ours, 6, 80, host_dnat[0], "default/s"),
        OwnAddress(further, 6, 80, host_dnat[1], "default/s"),
    )
    found = services.hosts.wanted("node3")
    assert (found.addresses, found.own_addresses) == ((), both)
    assert services.hosts.wanted("node1").own_addresses == ()
    assert services.hosts.revision("node3") != before[0]
    assert services.hosts.changes > before[1]
    # Somebody else wants one of them, and gets it when the older one lets go.
    put(made, service("t", clusterIP="10.96.0.2", externalIPs=["172.30.1.3"]))
    assert (
        "port 80/TCP of 172.30.1.3 is Service default/s's already"
        in made.problems.texts()["Service default/t"]
    )
    assert services.hosts.wanted("node3").own_addresses == both
    drop(made, "Service", "s")
    assert services.hosts.wanted("node3").own_addresses == (both[0]._replace(service="default/t"),)
    assert made.view.local_services == {"node3": {"default/t"}}
    # The node goes: its address is anybody's.
    drop(made, "Node", "node3")
    assert [str(each) for each in services.hosts.wanted("node1").addresses] == ["172.30.1.3"]
    assert services.hosts.wanted("node3").own_addresses == ()


def test_node_with_too_many_addresses_is_bounded() -> None:
    made = inventory(service("s", externalIPs=["172.30.9.15", "172.30.9.16"]))
    others = tuple(f"172.30.9.{number}" for number in range(1, 20))
    put(made, node_object("node3", "10.244.3.0/24", "172.30.9.0", others=others))
    assert frontends(made) == ["10.96.0.1:80/6", "172.30.9.15:80/6e"]
    assert made.problems.texts()["Service default/s"] == (
        "spec.externalIPs[1]: 172.30.9.16 is one of Node node3's own addresses, of which only the"
        " first 16 can be a Service's"
    )


def test_cluster_ip_outside_the_service_range_is_served() -> None:
    """As the API server gives it where there are ServiceCIDR objects."""
    fields = {"clusterIP": "10.97.0.1", "clusterIPs": ["10.97.0.1"]}
    made = inventory(
        service(
            "s", externalIPs=["10.97.0.1", "198.51.100.1"], internalTrafficPolicy="Local", **fields
        )
    )
    # It is that, though it is named as an external address too.
    assert frontends(made) == ["10.97.0.1:80/6", "198.51.100.1:80/6e"]
    assert only_port(made).internal_local
    assert not made.problems
    # Hosts know of no range that it is in.
    found = made.services.hosts.wanted("node1").addresses
    assert [str(address) for address in found] == ["10.97.0.1", "198.51.100.1"]
    # A node takes the address: as with external ones.
    put(made, service("s", **fields))
    put(made, node_object("node3", "10.244.3.0/24", "10.97.0.1"))
    assert frontends(made) == []
    assert made.services.hosts.wanted("node1").addresses == ()
    drop(made, "Node", "node3")
    assert frontends(made) == ["10.97.0.1:80/6"]
