"""The playbooks on a machine of their own, as a node of a lab."""

import json

import pytest

from lab import certificates
from lab.layout import FABRIC_ADDRESS, UNDERLAY
from lab.network import UPLINK, node_mac
from lab.node import PHYSICAL_BRIDGE
from tests.ansible.conftest import Site
from tests.ansible.snapshot import differences, snapshot
from tests.waiting import wait_until

pytestmark = [pytest.mark.ansible, pytest.mark.timeout(1800)]


def plug_in(site: Site, pod: str) -> str:
    """A pod on the machine, as its container runtime would have it; returns its address."""
    uid = site.cluster.add_pod("default", pod, site.node.name, {})
    site.machine.run(["ip", "netns", "add", pod])
    result = json.loads(cni(site, "ADD", pod, uid))
    return str(result["ips"][0]["address"].partition("/")[0])


def cni(site: Site, command: str, pod: str, uid: str = "") -> str:
    conflist = site.machine.json(["cat", "/etc/cni/net.d/10-sluice.conflist"])
    version = {"cniVersion": conflist["cniVersion"], "name": conflist["name"]}
    environment = {
        "CNI_COMMAND": command,
        "CNI_CONTAINERID": pod,
        "CNI_NETNS": f"/run/netns/{pod}",
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
        "CNI_ARGS": f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod};"
        f"K8S_POD_INFRA_CONTAINER_ID={pod};K8S_POD_UID={uid}",
    }
    return site.machine.run(
        ["/opt/cni/bin/sluice"],
        stdin=json.dumps(conflist["plugins"][0] | version),
        environment=environment,
    )


def unplug(site: Site, pod: str) -> None:
    cni(site, "DEL", pod)
    site.machine.run(["ip", "netns", "del", pod])
    site.cluster.delete_pod("default", pod)


def address_behind_the_switch(site: Site, *, there: bool) -> None:
    """The userspace datapath needs the node's address on a bridge of its own; the kernel's not."""
    bridge = ["ovs-vsctl", "add-br", PHYSICAL_BRIDGE, "--", "set", "bridge", PHYSICAL_BRIDGE]
    bridge += ["datapath_type=netdev", f'other_config:hwaddr="{node_mac(site.node)}"']
    bridge += ["--", "add-port", PHYSICAL_BRIDGE, UPLINK]
    # The kernel must not hear what Open vSwitch hears: it would answer a second time.
    table = "netdev uplink"
    hook = f'type filter hook ingress device "{UPLINK}" priority 0; policy drop;'
    deaf = f"add table {table}; add chain {table} in {{ {hook} }}"
    site.machine.run(["nft", deaf if there else f"delete table {table}"])
    old, new = (UPLINK, PHYSICAL_BRIDGE) if there else (PHYSICAL_BRIDGE, UPLINK)
    site.machine.run(["ip", "address", "flush", "dev", old])
    site.machine.run(bridge if there else ["ovs-vsctl", "del-br", PHYSICAL_BRIDGE])
    for command in (
        f"address add {site.node.address}/{UNDERLAY.prefixlen} dev {new}",
        f"link set {new} up",
        f"route add default via {FABRIC_ADDRESS}",
    ):
        site.machine.run(["ip", *command.split()])


def test_a_node_is_set_up_and_taken_down(site: Site) -> None:
    before = snapshot(site.machine)

    refused = site.play("site.yml", sluice_service_range="172.30.0.0/15")
    assert refused.failed == ["Check that they do not overlap"], refused.output
    assert "sluice_service_range 172.30.0.0/15 overlaps the host's address" in refused.output
    assert differences(before, snapshot(site.machine)) == []

    # What is not told of to the controller gets no pods, and the playbook says why.
    unknown = site.play("site.yml", sluice_ready_timeout=5)
    assert unknown.failed[-1] == "Say why not", unknown.output
    assert "node3" in unknown.output.partition("Say why not")[2]

    site.cluster.add_node(site.node)
    first = site.play("site.yml")
    assert first.returncode == 0, first.output
    assert site.play("site.yml").changed == []

    address_behind_the_switch(site, there=True)
    elsewhere = site.lab.pod_add("default", "elsewhere", "node1").address
    here = plug_in(site, "here")
    ping = ["ping", "-c1", "-W1"]
    wait_until(
        lambda: (
            site.machine.call(["ip", "netns", "exec", "here", *ping, str(elsewhere)]).returncode
            == 0
        )
    )
    site.lab.exec("default/elsewhere", [*ping, here])

    refused = site.play("remove.yml")
    assert refused.failed == ["Refuse while pods run"], refused.output
    site.lab.exec("default/elsewhere", [*ping, here])
    unplug(site, "here")
    address_behind_the_switch(site, there=False)

    removed = site.play("remove.yml")
    assert removed.returncode == 0, removed.output
    assert differences(before, snapshot(site.machine)) == []


def test_what_was_there_before_stays(site: Site) -> None:
    """Open vSwitch with a bridge of the user's; and certificates that somebody gives."""
    site.machine.run(["apt-get", "update"])
    site.machine.run(["apt-get", "install", "--yes", "openvswitch-switch"])
    address_behind_the_switch(site, there=True)
    site.cluster.add_node(site.node)
    before = snapshot(site.machine)
    tls = site.lab.layout.directory / "tls"
    certificates.sign(tls, "node3", "clientAuth", "DNS:node3")
    files = {"key": f"{tls}/node3.key", "certificate": f"{tls}/node3.pem", "ca": f"{tls}/ca.pem"}
    trust = {"sluice_tls_authority": {}, "sluice_tls_files": files}

    first = site.play("site.yml", **trust)
    assert first.returncode == 0, first.output
    changed = site.play("site.yml", sluice_log_level="debug", **trust).changed
    assert changed == ["Write the settings", "Restart the agent"]

    removed = site.play("remove.yml", **trust)
    assert removed.returncode == 0, removed.output
    assert differences(before, snapshot(site.machine)) == []
    assert site.play("remove.yml", **trust).changed == []
