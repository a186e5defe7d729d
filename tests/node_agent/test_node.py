"""The node that the agent makes of a host: set up, refused, watched over."""

import asyncio
import json
import ssl
import time
from ipaddress import IPv4Address, IPv4Network

import msgspec
import pytest

from flows import names
from flows.pipeline import TABLES
from node_agent import install
from node_agent.cni_call import Code
from wire.documents import NodeServices

from .conftest import (
    CONFIG,
    NOTHING_LEFT,
    SHIM,
    ScratchNode,
    check_gateway,
    controlled,
    needs_root,
    run,
    until,
)

pytestmark = needs_root


def test_sets_the_node_up_and_changes_nothing_the_second_time(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            show = scratch.vsctl
            assert show("get", "bridge", "br-int", "datapath_type") == "netdev"
            assert show("get", "bridge", "br-int", "fail_mode") == "secure"
            assert show("get", "bridge", "br-int", "protocols") == (
                "[OpenFlow10, OpenFlow13, OpenFlow14, OpenFlow15]"
            )
            dpid = f"{names.datapath_id('node1'):016x}"
            assert show("get", "bridge", "br-int", "datapath_id").strip('"') == dpid
            described = run("ovs-ofctl", "--names", "-O", "OpenFlow15", "dump-flows",
                            f"unix:{scratch.home}/br-int.mgmt")  # fmt: skip
            assert "table=Classifier" in described
            assert show("get", "bridge", "br-int", "flow_tables").count("=") == len(TABLES)
            assert show("get", "interface", "sluice-tun", "type") == "geneve"
            assert show("get", "interface", "sluice-tun", "ofport") == "1"
            assert show("get", "interface", "sluice-gw", "ofport") == "2"
            assert json.loads(show("--format=json", "--columns=type,connection_mode,target",
                                   "list", "controller"))["data"] == [
                ["service", "out-of-band", "tcp:127.0.0.1:6653"]
            ]  # fmt: skip
            check_gateway(scratch)
            assert scratch.run("cat", "/proc/sys/net/ipv4/ip_forward") == "1\n"
            rules = scratch.run("nft", "list", "table", "ip", "sluice")
            assert 'saddr 10.99.1.0/24 ip daddr != 10.99.0.0/16 oifname != "sluice-gw"' in rules
            compiled = install.compiled_shim(SHIM)
            shim = compiled if compiled.exists() else SHIM
            assert scratch.file("bin/sluice") == shim.read_bytes()
            assert scratch.mode("bin/sluice") == 0o755
            conf = json.loads(scratch.file("net.d/10-sluice.conflist"))
            assert conf == {
                "cniVersion": "1.0.0",
                "cniVersions": ["1.0.0", "1.1.0"],
                "name": "sluice",
                "plugins": [
                    {
                        "type": "sluice",
                        "socket": str(scratch.socket),
                        "capabilities": {"portMappings": True},
                    }
                ],
            }
            assert scratch.mode("run/cni.sock") == 0o600
            assert scratch.mode("run") == 0o700
            assert await scratch.cni("STATUS") == (0, {})

            inode = scratch.inode("bin/sluice")
            assert scratch.stop_agent() == 0
            assert not scratch.socket.exists()
            check_gateway(scratch)
            scratch.start_agent()
            await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
            assert scratch.log().count("bridge configured") == 1, "converged rows are left alone"
            assert scratch.inode("bin/sluice") == inode
            assert "error" not in scratch.log().lower()

    asyncio.run(main())


def test_node_that_cannot_be(scratch: ScratchNode) -> None:  # noqa: PLR0915  one node, all its reasons
    """Each reason is named by STATUS and ADD, and nothing is configured."""

    async def refused(*texts: str) -> None:
        async def named() -> bool:
            code, error = await scratch.cni("STATUS")
            return code == 1 and all(text in error.get("details", "") for text in texts)

        await until(named, scratch.log)
        code, error = await scratch.cni("STATUS")
        assert (code, error["code"]) == (1, Code.NOT_AVAILABLE)
        code, error = await scratch.add("a", netns)
        assert (code, error["code"]) == (1, Code.TRY_AGAIN)
        assert all(text in error["details"] for text in texts), error
        assert "br-int" not in scratch.vsctl("list-br")
        assert not (scratch.home / "net.d").exists()

    netns = scratch.netns()

    async def main() -> None:
        controller = scratch.controller
        await scratch.start_controller()
        scratch.start_agent()
        controller.refuse(404, "Node node1 is unknown")
        await refused("Node node1 is unknown")
        controller.refuse(409, "Node node1: spec.podCIDR is missing")
        await refused("Node node1: spec.podCIDR is missing")
        change = msgspec.structs.replace
        controller.say(change(CONFIG, revision="2", address=IPv4Address("172.30.0.9")))
        await refused("Node node1", "172.30.0.9", "on no interface")
        controller.say(change(CONFIG, revision="3", pod_range=IPv4Network("172.0.0.0/8"),
                              pod_cidr=IPv4Network("172.1.0.0/24")))  # fmt: skip
        await refused("its address 172.30.0.1 lies in cluster.podRange 172.0.0.0/8")
        scratch.run("ip", "route", "add", "10.98.7.0/24", "via", "172.30.0.2")
        controller.say(change(CONFIG, revision="4"))
        await refused("cluster.serviceRange 10.98.0.0/16", "10.98.7.0/24 on uplink")
        told = [line for line in scratch.log().splitlines() if "cannot be set up" in line]
        assert sum("10.98.7.0/24 on uplink" in line for line in told) == 1, "once for each change"
        scratch.run("ip", "route", "del", "10.98.7.0/24")
        scratch.run("ip", "addr", "add", "10.99.200.1/32", "dev", "lo")
        await refused("cluster.podRange 10.99.0.0/16", "10.99.200.1/32 on lo")
        scratch.run("ip", "addr", "del", "10.99.200.1/32", "dev", "lo")
        await scratch.until_ready()
        assert (await scratch.add("a", netns))[0] == 0
        # A refusal later takes nothing away, and new pods wait.
        controller.refuse(409, "Node node1: spec.podCIDR overlaps that of Node node2")
        await until(lambda: "overlaps that of Node node2" in scratch.log(), scratch.log)
        code, error = await scratch.add("b", scratch.netns())
        assert (code, error["code"]) == (1, Code.TRY_AGAIN)
        assert len(scratch.left_over()["ports"]) == 1
        check_gateway(scratch)
        # Made anew with another range: the old attachments go first.
        other = IPv4Network("10.99.2.0/24")
        controller.say(change(CONFIG, revision="6", pod_cidr=other))
        await until(lambda: "drain the node first" in scratch.log(), scratch.log)
        code, error = await scratch.add("b", scratch.netns())
        assert "10.99.1.2" in error["details"]
        assert (await scratch.cni("DEL", **scratch.attachment("a", netns)))[0] == 0

        async def added() -> bool:
            code, result = await scratch.add("b", netns)
            return code == 0 and result["ips"][0]["address"] == "10.99.2.2/32"

        await until(added, scratch.log)
        assert "10.99.2.1/32" in scratch.run("ip", "addr", "show", "dev", "sluice-gw")
        assert "10.99.1.1" not in scratch.run("ip", "addr", "show", "dev", "sluice-gw")
        await controller.stop()

    asyncio.run(main())


def test_a_conflict_on_a_running_node_is_reported_and_stops_nothing(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch) as controller:
            scratch.run("ip", "route", "add", "10.98.7.0/24", "via", "172.30.0.2")
            # The agent is told of the change, and does not wait for its next look.
            await until(
                lambda: (
                    "serviceRange 10.98.0.0/16 overlaps the host's route 10.98.7.0/24"
                    in controller.problems.node
                ),
                scratch.log,
            )
            assert (await scratch.add("a", scratch.netns()))[0] == 0
            assert await scratch.cni("STATUS") == (0, {})
            scratch.run("ip", "route", "del", "10.98.7.0/24")
            await until(lambda: controller.problems.node == "", scratch.log)
            # Nor does it when the agent is started anew.
            scratch.run("ip", "route", "add", "10.98.7.0/24", "via", "172.30.0.2")
            scratch.stop_agent()
            scratch.start_agent()
            await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
            assert (await scratch.add("b", scratch.netns()))[0] == 0

    asyncio.run(main())


@pytest.mark.parametrize("missing", ["controller", "ovs-vswitchd"])
def test_status_waits_a_while_before_it_complains(scratch: ScratchNode, missing: str) -> None:
    async def main() -> None:
        async with controlled(scratch, statusGrace=7.0) as controller:
            gone = time.monotonic()
            if missing == "controller":
                await controller.stop()
            else:
                scratch.stop_vswitchd()

            async def complains() -> bool:
                code, error = await scratch.cni("STATUS")
                assert code == 0 or error["code"] == Code.NOT_AVAILABLE
                return code == 1

            await until(complains, scratch.log, seconds=30)
            assert time.monotonic() - gone > 6
            _, error = await scratch.cni("STATUS")
            assert "no controller session" in error["msg"]
            why = "tcp:127.0.0.1:6653" if missing == "controller" else "ovs-vswitchd"
            assert why in error["details"]
            assert (scratch.home / "net.d" / "10-sluice.conflist").exists()

    asyncio.run(main())


def test_second_agent_does_not_take_the_socket(scratch: ScratchNode) -> None:
    async def main() -> None:
        # Open vSwitch tells OVSDB of the session every 5 s only.
        async with controlled(scratch, statusGrace=60.0):
            first = scratch.agent
            scratch.start_agent(state=str(scratch.home / "state-2"))
            assert scratch.agent is not None
            await until(lambda: scratch.agent is not None and scratch.agent.poll() == 1)
            assert f"Error: another node agent answers at {scratch.socket}\n" in scratch.log()
            assert "Traceback" not in scratch.log()
            scratch.agent = first
            assert await scratch.cni("STATUS") == (0, {})

    asyncio.run(main())


def test_what_others_flushed_is_restored_and_what_stands_is_left(scratch: ScratchNode) -> None:
    def rules() -> str:
        return scratch.run("nft", "-a", "list", "ruleset")

    async def converged(revision: str) -> None:
        """A round of `Node._converge`, which comes every minute, has begun and ended."""
        config = msgspec.structs.replace(CONFIG, revision=revision)
        scratch.controller.say(config)
        await until(lambda: f'"revision": "{revision}"' in scratch.log(), scratch.log)
        await asyncio.sleep(0.5)

    async def main() -> None:
        async with controlled(scratch):
            spaces = [scratch.netns() for _ in range(2)]
            for name, netns in zip("ab", spaces, strict=True):
                assert (await scratch.add(name, netns))[0] == 0
            before = rules()
            # Handles tell a rule that was made anew; it would count from zero.
            await converged("2")
            assert rules() == before
            scratch.run("nft", "flush", "ruleset")
            await converged("3")

            def plain(text: str) -> list[str]:
                return sorted(line.partition(" # handle")[0] for line in text.splitlines())

            await until(lambda: plain(rules()) == plain(before), scratch.log)
            (one, _) = scratch.left_over()["links"]
            scratch.run("nft", "delete", "chain", "netdev", "sluice", one)
            await converged("4")
            await until(lambda: plain(rules()) == plain(before), scratch.log)
            for name, netns in zip("ab", spaces, strict=True):
                assert await scratch.cni("DEL", **scratch.attachment(name, netns)) == (0, {})
            assert scratch.left_over() == NOTHING_LEFT

    asyncio.run(main())


def test_what_others_flush_is_restored_at_once(scratch: ScratchNode) -> None:
    """The agent is told of it: its regular repair comes once a minute."""
    shown = ("ip route", "ip rule", "ip -br addr", "nft -s list ruleset")

    def state() -> list[list[str]]:
        return [sorted(scratch.run(*command.split()).splitlines()) for command in shown]

    async def main() -> None:
        async with controlled(scratch) as controller:
            external = IPv4Address("198.51.100.7")
            controller.services = NodeServices(
                scratch.settings["node"], (), (external,), (), "2",
                external_ports=(((external,), ((6, 80),), "default/web"),),
            )  # fmt: skip
            await until(lambda: "198.51.100.7" in str(state()), scratch.log)
            before = state()
            for command in (
                "ip route flush dev sluice-gw",
                "ip route del 10.99.0.0/16",
                "ip rule del table 21356",
                "ip route flush table 21356",
                "ip addr flush dev sluice-gw",
                "nft flush ruleset",
                "nft flush chain ip sluice prerouting",
            ):
                scratch.run(*command.split())
                await until(lambda: state() == before, lambda: f"{state()}{scratch.log()}")

    asyncio.run(main())


@pytest.mark.parametrize(
    ("owner", "commands"),
    [
        ("OVN", "add-br br-int -- br-set-external-id br-int ct-zone-lrp0 5"),
        ("OVN", "set open_vswitch . external_ids:ovn-remote=ssl:192.0.2.1:6642"),
        # OpenStack: neutron-openvswitch-agent.
        ("another system (it has the port int-br-ex)",
         "add-br br-int -- add-port br-int int-br-ex -- set interface int-br-ex type=patch"
         " options:peer=phy-br-ex"),
    ],
)  # fmt: skip
def test_a_bridge_of_another_system_is_refused(
    scratch: ScratchNode, owner: str, commands: str
) -> None:
    async def main() -> None:
        scratch.vsctl("--no-wait", *commands.split())
        before = scratch.vsctl("list", "bridge")
        await scratch.start_controller()
        scratch.start_agent()

        async def refused() -> bool:
            code, error = await scratch.cni("STATUS")
            return code == 1 and f"br-int belongs to {owner}" in error.get("details", "")

        await until(refused, scratch.log)
        assert scratch.vsctl("list", "bridge") == before
        await scratch.controller.stop()

    asyncio.run(main())


def test_what_ovsdb_does_not_say_plainly_is_reported(scratch: ScratchNode) -> None:
    """Corrupt rows of attachments, and a corrupt copy of the configuration."""

    async def main() -> None:
        async with controlled(scratch) as controller:
            assert (await scratch.add("a", scratch.netns()))[0] == 0
            (port,) = scratch.left_over()["ports"]
            scratch.vsctl("remove", "interface", port, "external_ids", "sluice-address")
            # Its lease has everything: the row is written again.
            await until(
                lambda: "10.99.1.2" in scratch.vsctl("get", "interface", port, "external_ids"),
                scratch.log,
            )
            scratch.vsctl("clear", "interface", port, "external_ids", "--", "set", "interface",
                          port, "external_ids:sluice-sandbox=x")  # fmt: skip
            stray = "p" + 14 * "a"
            scratch.vsctl("add-port", "br-int", stray, "--", "set", "interface", stray,
                          "type=internal", "external_ids:sluice-sandbox=y")  # fmt: skip
            await until(lambda: f"cannot be read: {stray}" in controller.problems.node)
            scratch.vsctl("del-port", stray)
            await until(lambda: controller.problems.node == "", scratch.log)
            scratch.stop_agent()
            scratch.vsctl("set", "open_vswitch", ".", "external_ids:sluice-config=nonsense")
            scratch.start_agent()
            await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
            assert "the remembered configuration is not used" in scratch.log()
            assert "nonsense" not in scratch.vsctl("get", "open_vswitch", ".", "external_ids")

    asyncio.run(main())


def test_the_hosts_real_addresses_are_told(scratch: ScratchNode) -> None:
    """Also one that keepalived binds for a while."""

    async def main() -> None:
        scratch.run("ip", "addr", "add", "10.98.0.10/32", "dev", "lo")
        async with controlled(scratch) as controller:

            def told() -> list[str]:
                return list(
                    map(str, controller.addresses.addresses if controller.addresses else ())
                )

            await until(lambda: told() == ["172.30.0.1"], scratch.log)
            assert controller.addresses is not None
            assert controller.addresses.pod_mtu == 1450
            scratch.run("ip", "addr", "add", "172.30.0.77/32", "dev", "uplink")
            await until(lambda: told() == ["172.30.0.1", "172.30.0.77"], scratch.log)
            scratch.run("ip", "addr", "del", "172.30.0.77/32", "dev", "uplink")
            await until(lambda: told() == ["172.30.0.1"], scratch.log)

    asyncio.run(main())


def test_controllers_of_others_are_left_alone(scratch: ScratchNode) -> None:
    def targets() -> list[str]:
        return sorted(scratch.vsctl("--bare", "--columns=target", "list", "controller").split())

    async def main() -> None:
        await scratch.start_controller()
        # Open vSwitch tells OVSDB of the session every 5 s only.
        scratch.start_agent(statusGrace=60.0)
        await scratch.until_ready()
        scratch.stop_agent()
        scratch.vsctl("clear", "bridge", "br-int", "controller")
        # Primary ones, with our own target even: taking them away would flush all flows.
        for target in ("tcp:127.0.0.1:7001", "tcp:127.0.0.1:6653"):
            scratch.vsctl("--id=@c", "create", "controller", f'target="{target}"',
                          "connection_mode=out-of-band",
                          "--", "add", "bridge", "br-int", "controller", "@c")  # fmt: skip
        scratch.start_agent()
        await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
        both = ["tcp:127.0.0.1:6653", "tcp:127.0.0.1:7001"]
        assert targets() == sorted([*both, "tcp:127.0.0.1:6653"])
        assert await scratch.cni("STATUS") == (0, {})
        scratch.stop_agent()
        # Ours follows the configuration.
        scratch.start_agent(openflowPort=7002)
        await until(lambda: scratch.log().count("node set up") == 3, scratch.log)
        assert targets() == [*both, "tcp:127.0.0.1:7002"]
        await scratch.controller.stop()

    asyncio.run(main())


def test_several_controllers(scratch: ScratchNode) -> None:
    """The first that answers is asked; the switch dials all, and rows that stay are not touched."""

    def rows() -> dict[str, str]:
        text = scratch.vsctl("--bare", "--columns=_uuid,target", "list", "controller").split()
        return {target: row for row, target in zip(text[::2], text[1::2], strict=True)}

    async def main() -> None:
        await scratch.start_controller()
        # Nobody is at the first address.
        scratch.start_agent(controllers=["127.0.0.2", "127.0.0.1"])
        await scratch.until_ready()
        first = rows()
        assert first.keys() == {"tcp:127.0.0.1:6653", "tcp:127.0.0.2:6653"}
        assert "no controller answers" not in scratch.log()
        scratch.stop_agent()
        scratch.start_agent(controllers=["127.0.0.1", "127.0.0.3"])
        await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
        second = rows()
        assert second.keys() == {"tcp:127.0.0.1:6653", "tcp:127.0.0.3:6653"}
        assert second["tcp:127.0.0.1:6653"] == first["tcp:127.0.0.1:6653"]
        assert await scratch.cni("STATUS") == (0, {})

        await scratch.controller.stop()
        await until(lambda: "no controller answers" in scratch.log(), scratch.log)
        line = next(x for x in scratch.log().splitlines() if "no controller answers" in x)
        assert "http://127.0.0.1:6654: " in line
        assert "http://127.0.0.3:6654: Cannot connect" in line

    asyncio.run(main())


def test_mutual_tls(scratch: ScratchNode) -> None:
    def certificate(name: str, *more: str) -> tuple[str, str]:
        key, file = f"{scratch.home}/{name}.key", f"{scratch.home}/{name}.pem"
        run("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
            "-nodes", "-days", "1", "-subj", f"/CN={name}", "-keyout", key, "-out", file,
            *more)  # fmt: skip
        return key, file

    ca_key, ca = certificate("ca")
    signed = ("-CA", ca, "-CAkey", ca_key, "-addext", "basicConstraints=critical,CA:FALSE")
    server_key, server = certificate("server", *signed, "-addext", "subjectAltName=IP:127.0.0.1")
    key, own = certificate("node1", *signed)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=ca)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_cert_chain(server, server_key)

    async def main() -> None:
        await scratch.start_controller(tls)
        tls_files = {"key": key, "certificate": own, "ca": ca}
        scratch.start_agent(tls=tls_files, plainTcp=False)
        await scratch.until_ready()
        assert scratch.vsctl("--bare", "--columns=target", "list", "controller") == (
            "ssl:127.0.0.1:6653"
        )
        code, result = await scratch.add("a", scratch.netns())
        assert code == 0, result
        scratch.stop_agent()
        await scratch.controller.stop()

    asyncio.run(main())
