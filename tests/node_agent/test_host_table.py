"""The host's table and routes under real packets: a client, a host, and pods behind `sluice-gw`.

The far end of `sluice-gw` stands in for the switch: it has the address of a pod and those for
NodePorts and own addresses, and what it has no address for it sends back, as the switch does with
what it refuses.
"""

import asyncio
import contextlib
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import msgspec
import pytest
from pyroute2 import AsyncIPRoute

from flows import names
from node_agent import host, nft, routes
from node_agent.cni_call import HostPort, Pod
from node_agent.host_table import HostTable
from node_agent.leases import Leases
from node_agent.protected import Protected
from node_agent.routes import External
from node_agent.sysctl import Sysctls
from tests.namespaces import inside
from tests.waiting import wait_until
from wire.service_ports import ServicePorts

from .conftest import CONFIG, needs_root, run

pytestmark = needs_root

HOST, CLIENT, OTHER = "192.0.2.1", "192.0.2.2", "192.0.2.9"
GATEWAY, POD, NEIGHBOUR = "10.99.1.1", "10.99.1.2", "10.99.1.3"
NODE_PORT = str(names.NODE_PORT_ADDRESS)
HOST_DNAT_RANGE = [str(names.HOST_DNAT_RANGE[number]) for number in range(2)]
TCP, UDP = socket.IPPROTO_TCP, socket.IPPROTO_UDP
_IP_PKTINFO = 8  # ip(7)
KINDS = {TCP: socket.SOCK_STREAM, UDP: socket.SOCK_DGRAM}


@dataclass
class World:
    """Three namespaces; `pods` is what is behind the gateway."""

    home: Path
    name: str = field(default_factory=lambda: f"sluice-host-{os.getpid()}")

    def __post_init__(self) -> None:
        self.host, self.client, self.pods = (f"{self.name}-{part}" for part in "hcp")
        self.leases = Leases(self.home / "leases.sqlite", "node1", 0.0)
        self.leases.use(CONFIG.pod_cidr)
        found = self.home / "found"
        self.table = HostTable(self.leases, Sysctls(Path("/proc/sys/net"), found))
        self.table.use(CONFIG.pod_cidr, CONFIG.pod_range, CONFIG.tunnel_port)

    def ip(self, where: str, *lines: str) -> None:
        for line in lines:
            run("ip", "-n", where, *line.split())

    def make(self) -> None:
        for name in (self.host, self.client, self.pods):
            run("ip", "netns", "add", name)
            self.ip(name, "link set lo up")
        self.ip(
            self.host,
            f"link add eth0 type veth peer name eth0 netns {self.client}",
            f"link add {names.GATEWAY_PORT} type veth peer name gw netns {self.pods}",
            f"addr add {HOST}/24 dev eth0", "link set eth0 up",
        )  # fmt: skip
        self.ip(
            self.client,
            f"addr add {CLIENT}/24 dev eth0", "link set eth0 up",
            # What is to be forwarded goes by the host.
            f"route add 10.96.0.0/11 via {HOST}", f"route add 198.51.100.0/24 via {HOST}",
        )  # fmt: skip
        self.ip(
            self.pods,
            f"link set gw address {names.ROUTER_MAC} up",
            *(f"addr add {address}/32 dev gw"
              for address in (POD, NEIGHBOUR, NODE_PORT, *HOST_DNAT_RANGE)),
            f"neigh add {GATEWAY} lladdr {names.GATEWAY_MAC} dev gw",
            f"route add default via {GATEWAY} dev gw onlink",
        )  # fmt: skip
        for what in ("ip_forward=1", "conf.gw.rp_filter=0", "conf.all.rp_filter=0",
                     "conf.gw.send_redirects=0", "conf.all.send_redirects=0",
                     "conf.gw.accept_local=1"):  # fmt: skip
            run("ip", "netns", "exec", self.pods, "sysctl", "-qw", f"net.ipv4.{what}")

    def remove(self) -> None:
        self.leases.close()
        for name in (self.host, self.client, self.pods):
            run("ip", "netns", "del", name, check=False)

    def on_host(self, function: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        return inside(self.host, lambda: asyncio.run(function()))

    def set_up(self, *whole: str, by_port: tuple[str, ...] = ()) -> None:
        """The gateway, routes to external addresses, and the table."""

        async def steps() -> None:
            sysctls = Sysctls(Path("/proc/sys/net"), self.home / "found")
            async with AsyncIPRoute() as netlink:
                await host.set_up_gateway(netlink, sysctls, CONFIG, 1450)
                gateway = await host.find_gateway(netlink)
                external = External(
                    frozenset(map(IPv4Address, whole)), frozenset(map(IPv4Address, by_port))
                )
                await routes.set_up(netlink, gateway, CONFIG, external)
            await self.table.converge()

        self.on_host(steps)

    def want(
        self,
        *ports: tuple[int, int],
        own: Mapping[tuple[str, int, int], str] | None = None,
        busy: tuple[tuple[int, int], ...] = (),
        external: tuple[tuple[str, int, int], ...] = (),
        host_endpoints: Any = None,
        balancers: tuple[str, ...] = (),
    ) -> None:
        own_ports = {(IPv4Address(a), p, n): IPv4Address(v) for (a, p, n), v in (own or {}).items()}
        external_ports = {(IPv4Address(a), p, n) for a, p, n in external}
        wanted = ServicePorts(
            set(ports), own_ports, external_ports, host_endpoints or {},
            {IPv4Address(address) for address in balancers},
        )  # fmt: skip
        self.table.want(wanted, set(busy))
        self.on_host(self.table.converge)

    def add_pod(self, name: str, *ports: HostPort) -> str:
        lease = self.leases.take(
            name, "eth0", name, now=0.0, ofports=(), pod=Pod("default", name, "u"),
            host_ports=ports,
        )  # fmt: skip
        self.on_host(self.table.converge)
        return str(lease.address)

    def rules(self) -> str:
        return run("ip", "netns", "exec", self.host, "nft", "-a", "list", "table", "ip", "sluice")

    def nft(self, rules: str) -> str:
        return run("ip", "netns", "exec", self.host, "nft", rules)

    def counted(self) -> list[int]:
        """The packets of all counters of the test's own table."""
        return [
            int(n) for n in re.findall(r"counter packets (\d+)", self.nft("list table ip counted"))
        ]

    def routes(self) -> set[str]:
        shown = run("ip", "-n", self.host, "route", "show", "dev", names.GATEWAY_PORT)
        return {line.split()[0] for line in shown.splitlines()}

    @contextlib.contextmanager
    def server(self, port: int, protocol: int = TCP, where: str = "") -> Iterator[None]:
        """Answers with the address it was asked at, the port, and the address of who asks."""
        made = inside(where or self.pods, lambda: _socket(protocol, ("0.0.0.0", port)))
        made.settimeout(0.05)
        over = threading.Event()

        def serve() -> None:
            while not over.is_set():
                with contextlib.suppress(TimeoutError):
                    if protocol == UDP:
                        _, [(*_, info)], _, peer = made.recvmsg(100, 100)
                        own = socket.inet_ntoa(info[-4:])
                        # in_pktinfo: by the interface 0, from the address it was asked at.
                        source = (
                            socket.IPPROTO_IP,
                            _IP_PKTINFO,
                            struct.pack("i4s4x", 0, info[-4:]),
                        )
                        made.sendmsg([f"{own} {port} {peer[0]}".encode()], [source], 0, peer)
                    else:
                        connection, peer = made.accept()
                        with connection:
                            own = connection.getsockname()[0]
                            connection.sendall(f"{own} {port} {peer[0]}".encode())

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join(timeout=60)
            made.close()

    def ask(
        self, where: str, address: str, port: int, protocol: int = TCP, source: str = "0.0.0.0"
    ) -> str:
        def steps() -> str:
            with _socket(protocol, (source, 0)) as asking:
                asking.settimeout(2)
                asking.connect((address, port))
                asking.send(b"?") if protocol == UDP else None
                return asking.recv(100).decode()

        return inside(where, steps)

    def refused(self, *args: Any, **kwargs: Any) -> bool:
        """At once, not by silence."""
        try:
            self.ask(*args, **kwargs)
        except ConnectionRefusedError:
            return True
        return False


def _socket(protocol: int, address: tuple[str, int]) -> socket.socket:
    made = socket.socket(socket.AF_INET, KINDS[protocol])
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if protocol == UDP:
        made.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
    made.bind(address)
    if protocol == TCP:
        made.listen() if address[1] else None
    return made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    try:
        made.make()
        yield made
    finally:
        made.remove()


def test_only_packets_of_the_tunnel_are_not_tracked(world: World) -> None:
    port = CONFIG.tunnel_port
    world.set_up()
    # After conntrack; one counter for what it has not tracked, one for what it has.
    chains = "".join(
        f"chain {hook} {{ type filter hook {hook} priority -150;"
        f" udp dport {port} ct state untracked counter; udp dport {port} ct state new counter; }}; "
        for hook in ("prerouting", "output")
    )
    world.nft(f"table ip counted {{ {chains}}}")
    with world.server(port, UDP, world.host), world.server(port, UDP, world.client):
        assert world.ask(world.client, HOST, port, UDP) == f"{HOST} {port} {CLIENT}"
        assert world.ask(world.host, CLIENT, port, UDP) == f"{CLIENT} {port} {HOST}"
        assert world.counted() == [1, 0, 1, 0]
        # A pod's packet to that port of another machine is masqueraded, and so it is tracked.
        assert world.ask(world.pods, CLIENT, port, UDP, POD) == f"{CLIENT} {port} {HOST}"
        assert world.counted() == [1, 1, 1, 0]
    with world.server(port, UDP):
        assert world.ask(world.host, POD, port, UDP) == f"{POD} {port} {GATEWAY}"
        assert world.counted() == [1, 1, 1, 1]


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_node_ports(world: World, protocol: int) -> None:
    world.set_up()
    world.want((protocol, 30080))
    with world.server(30080, protocol), world.server(30081, protocol):
        # The source is kept, whoever asks.
        assert world.ask(world.client, HOST, 30080, protocol) == f"{NODE_PORT} 30080 {CLIENT}"
        assert world.ask(world.host, HOST, 30080, protocol) == f"{NODE_PORT} 30080 {HOST}"
        assert world.ask(world.host, GATEWAY, 30080, protocol) == f"{NODE_PORT} 30080 {GATEWAY}"
        assert world.refused(world.client, HOST, 30081, protocol)
        assert world.refused(world.host, "127.0.0.1", 30080, protocol)
        # The switch does that for its pods.
        assert world.refused(world.pods, HOST, 30080, protocol, POD)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_own_addresses(world: World, protocol: int) -> None:
    """A Service has a port of this address, and not of the others; also where a NodePort is."""
    second = "192.0.2.77"
    world.ip(world.host, f"addr add {second}/32 dev eth0")
    world.ip(world.client, f"route add {second} via {HOST}")
    world.set_up()
    own = {(HOST, protocol, 80): HOST_DNAT_RANGE[0], (second, protocol, 81): HOST_DNAT_RANGE[1],
           (HOST, protocol, 30080): HOST_DNAT_RANGE[0]}  # fmt: skip
    world.want((protocol, 30080), own=own)
    with world.server(80, protocol), world.server(81, protocol), world.server(30080, protocol):
        assert world.ask(world.client, HOST, 80, protocol) == f"{HOST_DNAT_RANGE[0]} 80 {CLIENT}"
        assert world.ask(world.host, HOST, 80, protocol) == f"{HOST_DNAT_RANGE[0]} 80 {HOST}"
        assert world.ask(world.client, second, 81, protocol) == f"{HOST_DNAT_RANGE[1]} 81 {CLIENT}"
        for address, port in ((second, 80), (HOST, 81), (GATEWAY, 80)):
            assert world.refused(world.client, address, port, protocol), (address, port)
        assert world.refused(world.host, "127.0.0.1", 80, protocol)
        assert world.refused(world.pods, HOST, 80, protocol, POD)
        assert (
            world.ask(world.client, HOST, 30080, protocol) == f"{HOST_DNAT_RANGE[0]} 30080 {CLIENT}"
        )
        assert world.ask(world.client, second, 30080, protocol) == f"{NODE_PORT} 30080 {CLIENT}"
        world.want((protocol, 30080))
        assert world.ask(world.client, HOST, 30080, protocol) == f"{NODE_PORT} 30080 {CLIENT}"
        assert world.refused(world.client, HOST, 80, protocol)


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_what_the_switch_sends_back_is_refused(world: World, protocol: int) -> None:
    """From outside and from the host itself, by each kind of address of a Service."""
    world.set_up("198.51.100.7")
    world.want((protocol, 30080))
    world.ip(world.pods, f"addr del {NODE_PORT}/32 dev gw")
    for where in (world.client, world.host):
        for address, port in ((HOST, 30080), ("10.98.0.9", 80), ("198.51.100.7", 80)):
            assert world.refused(where, address, port, protocol), (where, address)
    # Bound to another of its addresses.
    assert world.refused(world.host, "10.98.0.9", 80, protocol, HOST)


def test_sources_of_services_do_not_leave_the_node(world: World) -> None:
    """The switch gave it the source HAIRPIN_ADDRESS, which only this node knows."""
    world.set_up()
    hairpin = str(names.HAIRPIN_ADDRESS)
    world.ip(world.pods, f"addr add {hairpin}/32 dev gw")
    with world.server(80, where=world.client):
        assert world.ask(world.pods, CLIENT, 80, source=hairpin) == f"{CLIENT} 80 {HOST}"
        assert world.ask(world.pods, CLIENT, 80, source=POD) == f"{CLIENT} 80 {HOST}"
    with world.server(80, where=world.host):
        assert world.ask(world.pods, HOST, 80, source=hairpin) == f"{HOST} 80 {hairpin}"


def test_addresses_of_pods_come_only_from_where_the_hosts_route_leads(world: World) -> None:
    """A pod of a peer behind `eth0`. Neither direction is tracked."""
    remote, another = "10.99.7.5", "10.99.8.5"
    world.set_up()
    world.ip(world.client, f"addr add {remote}/32 dev lo", f"addr add {another}/32 dev lo")
    with world.server(80), world.server(80, where=world.client):
        for source in (remote, another):
            with pytest.raises(TimeoutError):
                world.ask(world.client, POD, 80, source=source)
        with pytest.raises(TimeoutError):  # without a route: not refused
            world.ask(world.pods, remote, 80, source=POD)
        world.ip(world.host, f"route add 10.99.7.0/24 via {CLIENT} proto 213 src {GATEWAY}")
        world.nft(
            "table ip counted { chain forward { type filter hook forward priority 10;"
            " ip saddr 10.99.0.0/16 ct state untracked counter;"
            " ip saddr 10.99.0.0/16 ct state != untracked counter; }; }"
        )
        assert world.ask(world.client, POD, 80, source=remote) == f"{POD} 80 {remote}"
        assert world.ask(world.pods, remote, 80, source=POD) == f"{remote} 80 {POD}"
        untracked, tracked = world.counted()
        assert (untracked > 0, tracked) == (True, 0)
        with pytest.raises(TimeoutError):
            world.ask(world.client, POD, 80, source=another)
        # The host's own connections are tracked: its replies are let in by state.
        assert world.ask(world.host, remote, 80) == f"{remote} 80 {GATEWAY}"


def test_host_ports(world: World) -> None:
    world.set_up()
    for address in ("127.0.0.1", OTHER):
        if address == OTHER:
            world.ip(world.host, f"addr add {OTHER}/24 dev eth0")
    anywhere = HostPort(TCP, None, 8080, 80)
    one = HostPort(TCP, IPv4Address(OTHER), 8081, 80)
    loopback = HostPort(TCP, IPv4Address("127.0.0.1"), 8082, 80)
    datagrams = HostPort(UDP, None, 8080, 53)
    assert world.add_pod("a", anywhere, one, loopback, datagrams) == POD
    with world.server(80), world.server(53, UDP):
        for address in (HOST, OTHER):
            assert world.ask(world.client, address, 8080) == f"{POD} 80 {CLIENT}"
            assert world.ask(world.client, address, 8080, UDP) == f"{POD} 53 {CLIENT}"
            assert world.ask(world.host, address, 8080) == f"{POD} 80 {HOST}"
        assert world.ask(world.host, "127.0.0.1", 8080) == f"{POD} 80 {GATEWAY}"
        assert world.ask(world.client, OTHER, 8081) == f"{POD} 80 {CLIENT}"
        assert world.refused(world.client, HOST, 8081)
        assert world.ask(world.host, "127.0.0.1", 8082) == f"{POD} 80 {GATEWAY}"
        assert world.refused(world.client, HOST, 8082)
        # Another pod of this node, and the pod itself.
        for source in (NEIGHBOUR, POD):
            assert world.ask(world.pods, HOST, 8080, source=source) == f"{POD} 80 {GATEWAY}"
        world.leases.release("a", "eth0", now=0.0)
        world.on_host(world.table.converge)
        assert world.refused(world.client, HOST, 8080)
        assert world.refused(world.client, HOST, 8080, UDP)


def test_pods_do_not_reach_the_hosts_loopback(world: World) -> None:
    """Not even now, when the gateway routes it."""
    world.set_up()
    world.add_pod("a", HostPort(TCP, None, 8080, 80))
    run("ip", "netns", "exec", world.pods, "sysctl", "-qw", "net.ipv4.conf.gw.route_localnet=1")
    world.ip(
        world.pods,
        "addr del 127.0.0.1/8 dev lo",
        f"route add 127.0.0.1 via {GATEWAY} dev gw onlink src {POD}",
    )
    with world.server(9000, where=world.host), pytest.raises(TimeoutError):
        world.ask(world.pods, "127.0.0.1", 9000, source=POD)
    assert "ip daddr 127.0.0.0/8 counter packets 0" not in world.rules()


def test_datagrams_follow_a_host_port_to_its_new_pod(world: World) -> None:
    """A client that never stops would otherwise reach the old one, or nobody, for ever."""
    world.set_up()
    with (
        world.server(53, UDP),
        world.server(54, UDP),
        inside(world.client, lambda: _socket(UDP, (CLIENT, 5000))) as client,
    ):
        client.settimeout(2)
        client.connect((HOST, 8053))

        def ask() -> str:
            client.send(b"?")
            return client.recv(100).decode()

        with pytest.raises(ConnectionRefusedError):
            ask()
        world.add_pod("a", HostPort(UDP, None, 8053, 53))
        assert ask() == f"{POD} 53 {CLIENT}"
        world.leases.release("a", "eth0", now=0.0)
        world.add_pod("b", HostPort(UDP, None, 8053, 54))
        assert ask() == f"{NEIGHBOUR} 54 {CLIENT}"
        world.leases.release("b", "eth0", now=0.0)
        world.on_host(world.table.converge)
        with pytest.raises(ConnectionRefusedError):
            ask()
        world.want((UDP, 8053))
        with world.server(8053, UDP):
            assert ask() == f"{NODE_PORT} 8053 {CLIENT}"


def test_what_is_so_is_left_and_what_changes_is_an_element(world: World) -> None:
    world.set_up()
    ports = {(TCP, port) for port in range(30000, 32000)}
    world.want(*ports)
    before = world.rules()
    world.on_host(world.table.converge)
    assert world.rules() == before
    world.want(*ports, (UDP, 53))

    def handles(rules: str) -> list[str]:
        return [line for line in rules.splitlines() if "handle" in line]

    after = world.rules()
    assert handles(after) == handles(before)
    assert "udp . 53" in after
    assert world.table.served.node_ports == {*ports, (UDP, 53)}
    # With what is in it, as one: somebody took a rule away.
    run("ip", "netns", "exec", world.host, "nft", "flush", "chain", "ip", "sluice", "prerouting")
    world.on_host(world.table.converge)
    again = world.rules()
    assert handles(again) != handles(before)
    assert "udp . 53" in again
    world.on_host(nft.remove)
    world.on_host(world.table.converge)
    assert "udp . 53" in world.rules()


def test_before_anybody_says_which_node_ports_there_are_they_stay(world: World) -> None:
    world.set_up()
    world.want((TCP, 30080), own={(HOST, TCP, 80): HOST_DNAT_RANGE[0]})
    restarted = HostTable(world.leases, Sysctls(Path("/proc/sys/net"), world.home / "found"))
    restarted.use(IPv4Network("10.99.2.0/24"), CONFIG.pod_range, CONFIG.tunnel_port)
    world.on_host(restarted.converge)
    assert "tcp . 30080" in world.rules()
    assert f"{HOST} . tcp . 80 : {HOST_DNAT_RANGE[0]}" in world.rules()
    assert "10.99.2.0/24" in world.rules()


def test_a_port_is_whose_it_was_first(world: World) -> None:
    world.set_up()
    world.want((TCP, 30080), (TCP, 30081), busy=((TCP, 30080),))
    assert world.table.served.node_ports == {(TCP, 30081)}
    world.want((TCP, 30080), (TCP, 30081), busy=((TCP, 30081),))
    assert world.table.served.node_ports == {(TCP, 30080), (TCP, 30081)}
    world.want((TCP, 30080), busy=((TCP, 30081),))
    world.want((TCP, 30080), (TCP, 30081), busy=((TCP, 30081),))
    assert world.table.served.node_ports == {(TCP, 30080)}
    own = {(HOST, TCP, 80): HOST_DNAT_RANGE[0], (HOST, TCP, 22): HOST_DNAT_RANGE[0]}
    world.want(own=own, busy=((TCP, 22),))
    assert world.table.served.own.keys() == {(IPv4Address(HOST), TCP, 80)}
    assert f"{HOST} . tcp . 22" not in world.rules()
    world.want(own=own, busy=((TCP, 80),))
    assert {port for _, _, port in world.table.served.own} == {22, 80}


def test_routes_come_and_go_and_the_hosts_own_stay(world: World) -> None:
    world.ip(world.host, f"route add default via {CLIENT}")
    fixed = {"10.99.0.0/16", "10.98.0.0/16", "169.254.1.2/31", "169.254.1.16/28"}
    world.set_up("198.51.100.7", "198.51.100.8")
    assert world.routes() == {*fixed, "198.51.100.7", "198.51.100.8"}
    # Set down, an interface loses its routes; and one of somebody else's.
    world.ip(world.host, f"link set {names.GATEWAY_PORT} down")
    world.ip(world.host, f"link set {names.GATEWAY_PORT} up")
    world.ip(world.host, f"route add 203.0.113.0/24 dev {names.GATEWAY_PORT}")
    world.set_up("198.51.100.8", "198.51.100.9")
    assert world.routes() == {*fixed, "198.51.100.8", "198.51.100.9"}

    async def nobody_knows() -> None:
        async with AsyncIPRoute() as netlink:
            # The node's own check does not take ours for another's.
            config = msgspec.structs.replace(CONFIG, address=IPv4Address(HOST))
            assert (await host.check(netlink, config)).problems == ()
            gateway = await host.find_gateway(netlink)
            await routes.set_up(netlink, gateway, CONFIG, None, {IPv4Address("198.51.100.9")})

    world.on_host(nobody_knows)
    assert world.routes() == {*fixed, "198.51.100.8"}, "a protected address is always given up"


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_only_ports_of_a_service_are_taken_of_an_external_address(
    world: World, protocol: int
) -> None:
    """Everything else goes where it went before: from outside, from the host and from pods."""
    external, far = "198.51.100.7", "198.51.100.0/24"
    # The address is that of a machine behind the client.
    world.ip(world.client, f"addr add {external}/32 dev lo", f"route del {far}")
    world.ip(world.host, f"route add {far} via {CLIENT}")
    world.ip(world.pods, f"addr add {external}/32 dev gw")
    world.set_up(by_port=(external,))
    world.want(external=((external, protocol, 80),))
    with world.server(80, protocol), world.server(81, protocol, world.client):
        assert world.ask(world.host, external, 80, protocol) == f"{external} 80 {HOST}"
        assert world.ask(world.host, external, 81, protocol) == f"{external} 81 {HOST}"
        world.ip(world.pods, f"addr del {external}/32 dev gw")
        # The switch lets it out again, or sends it back because there is no endpoint.
        assert world.ask(world.pods, external, 81, protocol, POD) == f"{external} 81 {HOST}"
        assert world.refused(world.host, external, 80, protocol)
        # Without the Service, nothing of it is left.
        world.want()
        world.set_up()
        with world.server(80, protocol, world.client):
            assert world.ask(world.host, external, 80, protocol) == f"{external} 80 {HOST}"
    rules = run("ip", "-n", world.host, "rule")
    assert str(routes.TABLE) not in rules
    assert run("ip", "-n", world.host, "route", "show", "table", "all").count(external) == 0


def test_a_client_outside_reaches_a_service_by_an_external_address(world: World) -> None:
    external = "198.51.100.7"
    world.ip(world.pods, f"addr add {external}/32 dev gw")
    world.set_up(by_port=(external,))
    world.want(external=((external, TCP, 80),))
    with world.server(80), world.server(81):
        assert world.ask(world.client, external, 80) == f"{external} 80 {CLIENT}"
        # No route leads to the address but ours, so the host can use no other port of it.
        assert world.ask(world.host, external, 80) == f"{external} 80 {GATEWAY}"


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_other_ports_of_an_address_of_services_alone_are_refused(
    world: World, protocol: int
) -> None:
    """The host would send their packets back to where they came from, again and again."""
    external = "198.51.100.7"
    world.ip(world.host, f"route add default via {CLIENT}")
    world.ip(world.pods, f"addr add {external}/32 dev gw")
    world.set_up(by_port=(external,))
    world.want(external=((external, protocol, 80),), balancers=(external,))
    with world.server(80, protocol):
        assert world.ask(world.client, external, 80, protocol) == f"{external} 80 {CLIENT}"
        assert world.refused(world.client, external, 81, protocol)
        assert world.ask(world.client, external, 80, protocol) == f"{external} 80 {CLIENT}"


def test_an_endpoint_on_the_host_sees_the_clients_address(world: World) -> None:
    """`externalTrafficPolicy: Local`, and the only endpoint here is the host's own stack."""
    external = "198.51.100.7"
    world.set_up(by_port=(external,))
    to = IPv4Address(HOST), 9090
    at = {(None, TCP, 30080): to, (IPv4Address(external), TCP, 80): to}
    # That a process has port 80 of the host says nothing about this address.
    busy = ((TCP, 80),)
    world.want((TCP, 30080), busy=busy, external=((external, TCP, 80),), host_endpoints=at)
    with world.server(9090, where=world.host), world.server(30080):
        for address, port in ((HOST, 30080), (external, 80)):
            assert world.ask(world.client, address, port) == f"{HOST} 9090 {CLIENT}"
        # The host's own connections are the switch's, as before.
        assert world.ask(world.host, HOST, 30080) == f"{NODE_PORT} 30080 {HOST}"


def test_a_path_mtu_for_an_external_address_reaches_the_switch(world: World) -> None:
    """An ICMP error of a router outside about an answer of the Service."""
    external = "198.51.100.7"
    world.ip(world.pods, f"addr add {external}/32 dev gw")
    world.ip(world.host, f"route add {external} via {OTHER}")
    world.set_up(by_port=(external,))
    world.want(external=((external, UDP, 80),))
    with world.server(80, UDP), inside(world.client, lambda: _socket(UDP, (CLIENT, 5000))) as one:
        one.settimeout(2)
        one.connect((external, 80))
        one.send(b"?")
        assert one.recv(100)
        datagram = struct.pack("!BBHHHBBH4s4sHHHH", 0x45, 0, 1028, 1, 0x4000, 64, UDP, 0,
                               socket.inet_aton(external), socket.inet_aton(CLIENT),
                               80, 5000, 1008, 0)  # fmt: skip
        error = _icmp(3, 4, struct.pack("!HH", 0, 600) + datagram)

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
                raw.sendto(error, (external, 0))

        with inside(world.pods, _listen_to_icmp) as heard:
            heard.settimeout(5)
            inside(world.client, send)
            packet = heard.recv(1000)
            assert packet[12:20] == socket.inet_aton(CLIENT) + socket.inet_aton(external)


def _listen_to_icmp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)


def test_a_route_exception_is_not_taken_for_a_route(world: World) -> None:
    """A pod pings the host, and tells it of a smaller path MTU."""
    world.set_up()
    inside(world.pods, lambda: _forge_path_mtu(POD, GATEWAY))
    assert "cache" in run("ip", "-n", world.host, "route", "get", POD, "from", GATEWAY)
    exceptions = run("ip", "-n", world.host, "route", "show", "cache")
    assert POD in exceptions
    world.set_up()
    world.set_up("198.51.100.8")
    assert "198.51.100.8" in world.routes()
    assert IPv4Network(POD) not in world.on_host(_destinations)
    found = world.on_host(lambda: _protected(("172.30.9.9",)))
    assert found[IPv4Address("172.30.9.9")] == "a Sluice controller"
    assert IPv4Address(POD) not in found


def _forge_path_mtu(source: str, target: str) -> None:
    """An ICMP echo, and an ICMP error about the answer to it (RFC 792, RFC 1191)."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        raw.bind((source, 0))
        raw.settimeout(2)
        raw.sendto(_icmp(8, 0, struct.pack("!HH", 7, 1)), (target, 0))
        answer = b""
        while answer[20:21] != b"\0":
            answer, _ = raw.recvfrom(1000)
        raw.sendto(_icmp(3, 4, struct.pack("!HH", 0, 600) + answer[:28]), (target, 0))


def _icmp(kind: int, code: int, rest: bytes) -> bytes:
    message = struct.pack("!BBH", kind, code, 0) + rest
    words = struct.unpack(f"!{len(message) // 2}H", message)
    total = sum(words)
    total = (total & 0xFFFF) + (total >> 16)
    checksum = ~(total + (total >> 16)) & 0xFFFF
    return struct.pack("!BBH", kind, code, checksum) + rest


async def _destinations() -> set[IPv4Network]:
    async with AsyncIPRoute() as netlink:
        return {routes.destination_of(route) for route in await routes.dump(netlink)}


async def _protected(controllers: tuple[str, ...]) -> dict[IPv4Address, str]:
    async with AsyncIPRoute() as netlink:
        return await Protected(controllers).addresses(netlink)


def test_icmp_errors_of_pods_about_no_connection_are_dropped(world: World) -> None:
    world.set_up()
    inner = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0,
                        socket.inet_aton(HOST), socket.inet_aton("203.0.113.9"))  # fmt: skip
    error = _icmp(3, 4, struct.pack("!HH", 0, 600) + inner + struct.pack("!HHI", 443, 5000, 9))

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            raw.bind((POD, 0))
            raw.sendto(error, (GATEWAY, 0))

    inside(world.pods, send)
    dropped = 'counter packets 1 bytes 56 drop comment "ICMP errors about no connection"'
    wait_until(lambda: dropped in world.rules(), seconds=5)
    assert "203.0.113.9" not in run("ip", "-n", world.host, "route", "show", "cache")


def test_a_process_bound_to_the_nodes_address_reaches_pods_of_other_nodes(world: World) -> None:
    """Other nodes' switches take only addresses of this node's podCIDR from a tunnel."""
    world.set_up()
    far = "10.99.2.5"
    world.ip(world.pods, f"addr add {far}/32 dev gw")
    with world.server(80), world.server(53, UDP):
        for protocol, port in ((TCP, 80), (UDP, 53)):
            assert world.ask(world.host, far, port, protocol, HOST) == f"{far} {port} {GATEWAY}"
            # A pod of this node sees who asks.
            assert world.ask(world.host, POD, port, protocol, HOST) == f"{POD} {port} {HOST}"


def test_what_conntrack_does_not_know_does_not_leave_with_a_pods_address(world: World) -> None:
    world.set_up()

    def listen() -> socket.socket:
        return socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x0800))

    with inside(world.client, listen) as heard:
        # The answer to nothing: conntrack calls it invalid, and it is not translated.
        segment = struct.pack("!HHIIBBHHH", 80, 5000, 1, 1, 0x50, 0x12, 1000, 0, 0)

        def send() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_RAW, TCP) as raw:
                raw.bind((POD, 0))
                raw.sendto(segment, (CLIENT, 0))

        inside(world.pods, send)
        wait_until(
            lambda: 'counter packets 1 bytes 40 drop comment "from pods' in world.rules(), seconds=5
        )
        heard.setblocking(False)
        sources = set()
        with contextlib.suppress(BlockingIOError):
            while True:
                sources.add(socket.inet_ntoa(heard.recv(100)[12:16]))
        assert POD not in sources
