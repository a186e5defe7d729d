"""What a tenant who may create Services and EndpointSlices can do to others."""

from typing import Any

import pytest

from lab import Lab
from lab.layout import CONTROL_ADDRESS, OUTSIDE_ADDRESS
from tests.hostile.harness import Hostile
from tests.waiting import wait_until

NAME = "default/taker"


def service(addresses: list[str], ports: list[int]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "taker", "namespace": "default"},
        "spec": {
            "clusterIP": "10.96.0.66",
            "externalIPs": addresses,
            "ports": [{"name": f"p{port}", "port": port} for port in ports],
        },
    }


def endpoints(address: str, ports: list[int], to: int) -> dict[str, Any]:
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": "taker-1",
            "namespace": "default",
            "labels": {"kubernetes.io/service-name": "taker"},
        },
        "addressType": "IPv4",
        "ports": [{"name": f"p{port}", "port": to} for port in ports],
        "endpoints": [{"addresses": [address]}],
    }


def answers_pings(lab: Lab, where: str, address: str) -> bool:
    command = ["ping", "-n", "-q", "-c", "3", "-i", "0.1", "-W", "1", address]
    return lab.exec(where, command, timeout=20, check=False).returncode == 0


def connects(lab: Lab, where: str, address: str, port: int) -> bool:
    program = f"import socket; socket.create_connection(({address!r}, {port}), 3)"
    return lab.exec(where, ["python3", "-c", program], timeout=20, check=False).returncode == 0


def problem(lab: Lab) -> str:
    found: str = lab.status()["problems"].get(f"Service {NAME}", "")
    return found


@pytest.mark.hostile
def test_addresses_of_the_controller_and_of_another_machine(hostile: Hostile) -> None:
    """A Service gets its own ports of a machine's address, and nothing of the controller's."""
    lab, ports = hostile.lab, [80]
    outside, control = str(OUTSIDE_ADDRESS), str(CONTROL_ADDRESS)
    clients = ("node1", "node2", "default/far", "default/victim")
    assert all(answers_pings(lab, client, outside) for client in clients)
    with hostile.attack("tenant", "externalIPs: a controller, a machine outside") as attack:
        attack.until(lambda: lab.delete("Service", "default", "taker"))
        attack.until(lambda: lab.delete("EndpointSlice", "default", "taker-1"))
        lab.apply(endpoints(hostile.address("default/server"), ports, 7100))
        lab.apply(service([control, outside], ports))
        wait_until(lambda: connects(lab, "default/far", outside, 80))
        wait_until(lambda: connects(lab, "node2", outside, 80))
        assert problem(lab) == f"spec.externalIPs[0]: {control} is the address of a controller"
        for client in clients:
            assert answers_pings(lab, client, outside), client
        during = attack.measure()
    assert during.add is not None
    assert during.ping_lost == 0
    assert all(answers_pings(lab, client, outside) for client in clients)
    assert not problem(lab)


@pytest.mark.hostile
def test_a_thousand_addresses_and_ports(hostile: Hostile) -> None:
    """They add up in the switch, and what is more than the limit is refused by name."""
    lab = hostile.lab
    ports = list(range(1, 1_001))
    addresses = [f"198.18.{n >> 8}.{n & 255}" for n in range(1_000)]
    before = flow_count(lab)
    with hostile.attack("tenant", "1,000 externalIPs times 1,000 ports") as attack:
        attack.until(lambda: lab.delete("Service", "default", "taker"))
        lab.apply(service(addresses, ports))
        wait_until(lambda: "spec.externalIPs[4]" in problem(lab))
        during = attack.measure()
        assert flow_count(lab) - before < 4 * len(ports)
    assert during.add is not None
    assert during.healthz is not None
    assert during.ping_lost == 0


def flow_count(lab: Lab) -> int:
    dump = lab.exec("node2", ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-int"], timeout=60)
    return len(dump.stdout.splitlines())
