"""CHECK names whatever is not as ADD left it; GC takes away what the runtime does not list."""

import asyncio
from ipaddress import IPv4Address
from typing import Any

from flows import names
from node_agent.cni_call import Code

from .conftest import NOTHING_LEFT, ScratchNode, controlled, needs_root, run, until

pytestmark = needs_root

OTHER_MAC = "0a:58:0a:63:01:99"
DAMAGES = {
    "port": ("del-port {port}", "the switch has no port {port} with ofport {ofport}: its row"),
    "ofport": (
        "set interface {port} ofport_request=9999",
        "gave it ofport 9999 instead of {ofport}",
    ),
    "pod interface": ("pod: ip link del eth0", "the container has no interface eth0"),
    "host interface": ("pod: ip link del eth0", "the host has no interface {port}"),
    "pod link": ("pod: ip link set eth0 down", "eth0 is down"),
    "host link": ("host: ip link set {port} down", "{port} is down"),
    "pod MAC": (
        f"pod: ip link set eth0 address {OTHER_MAC}",
        f"eth0 has MAC {OTHER_MAC} instead of {{mac}}",
    ),
    "host MAC": (
        f"host: ip link set {{port}} address {OTHER_MAC}",
        f"{{port}} has MAC {OTHER_MAC} instead of {{mac}}",
    ),
    "pod MTU": ("pod: ip link set eth0 mtu 1400", "eth0 has MTU 1400 instead of 1450"),
    "host MTU": ("host: ip link set {port} mtu 1400", "{port} has MTU 1400 instead of 1450"),
    "address": ("pod: ip addr flush dev eth0 scope global", "eth0 has no address, not {address}"),
    "other address": (
        "pod: ip addr replace 10.99.1.250/32 dev eth0; ip addr del {address}/32 dev eth0",
        "eth0 has 10.99.1.250, not {address}",
    ),
    "default route": (
        "pod: ip route del default",
        "there is no default route by 169.254.1.1 on eth0",
    ),
    "other default route": (
        "pod: ip route replace default dev eth0",
        "there is no default route by 169.254.1.1 on eth0",
    ),
    "route to the router": (
        "pod: ip route del 169.254.1.1",
        "there is no route to 169.254.1.1 on eth0",
    ),
    "neighbour": (
        "pod: ip neigh del 169.254.1.1 dev eth0",
        "eth0 does not know the MAC of 169.254.1.1 for ever",
    ),
    "other neighbour": (
        f"pod: ip neigh replace 169.254.1.1 lladdr {OTHER_MAC} dev eth0 nud permanent",
        "eth0 does not know the MAC of 169.254.1.1 for ever",
    ),
    "neighbour that ages": (
        f"pod: ip neigh replace 169.254.1.1 lladdr {names.ROUTER_MAC} dev eth0 nud stale",
        "eth0 does not know the MAC of 169.254.1.1 for ever",
    ),
    "flow": (
        "flows: del-flows {mgmt} in_port={ofport}",
        "the switch has no flow that lets port {port} in",
    ),
    "nftables chain": (
        "host: nft delete chain netdev sluice {port}",
        "the host's own stack receives what arrives at {port}",
    ),
}


def damage(scratch: ScratchNode, netns: str, command: str) -> None:
    where, _, what = command.rpartition(": ")
    match where:
        case "pod":
            run("nsenter", f"--net={netns}", "sh", "-c", what, check=False)
        case "host":
            scratch.run("sh", "-c", what, check=False)
        case "flows":
            run("ovs-ofctl", "-O", "OpenFlow15", *what.split(), check=False)
        case "":
            scratch.vsctl("--if-exists", *what.split())


def test_every_damage_is_named(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            for what, (command, sentence) in DAMAGES.items():
                await named(what, command, sentence)

    async def named(what: str, command: str, sentence: str) -> None:
        netns = scratch.netns()
        code, result = await scratch.add("a", netns)
        assert code == 0, result
        known = described(scratch, result)
        call = {**scratch.attachment("a", netns), "conf": {"prevResult": result}}
        assert await scratch.cni("CHECK", **call) == (0, {})
        seen: dict[str, Any] = {}

        async def found() -> bool:
            nonlocal seen
            # Again and again: some of it the agent mends.
            damage(scratch, netns, command.format(**known))
            code, seen = await scratch.cni("CHECK", **call)
            return code == 1

        await until(found, lambda: f"{what} is not found")
        assert seen["code"] == Code.DIFFERS
        assert sentence.format(**known) in seen["details"], (what, seen)
        assert await scratch.cni("DEL", **scratch.attachment("a", netns)) == (0, {})
        assert scratch.left_over() == NOTHING_LEFT, what

    asyncio.run(main())


def described(scratch: ScratchNode, result: dict[str, Any]) -> dict[str, str]:
    port = result["interfaces"][0]["name"]
    address = result["ips"][0]["address"].removesuffix("/32")
    return {
        "port": port,
        "address": address,
        "mac": names.mac_of(IPv4Address(address)),
        "ofport": scratch.vsctl("get", "interface", port, "ofport"),
        "mgmt": str(scratch.home / "br-int.mgmt"),
    }


def test_before_mtus_were_told_both_ends_must_agree(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            netns = scratch.netns()
            code, result = await scratch.add("a", netns, cniVersion="1.0.0")
            assert code == 0, result
            conf = {"prevResult": result, "cniVersion": "1.0.0"}
            call = {**scratch.attachment("a", netns), "conf": conf}
            assert await scratch.cni("CHECK", **call) == (0, {})
            damage(scratch, netns, "pod: ip link set eth0 mtu 1400")
            code, error = await scratch.cni("CHECK", **call)
            assert (code, error["code"]) == (1, Code.DIFFERS)
            assert error["details"] == "eth0 has MTU 1400 instead of 1450"

    asyncio.run(main())


def test_check_says_what_it_was_given_is_wrong(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            netns = scratch.netns()
            code, result = await scratch.add("a", netns)
            assert code == 0
            for change, text in (
                ({"ips": [{"address": "10.99.1.9/32"}]}, "does not have the address 10.99.1.2"),
                ({"interfaces": [{"name": "eth0"}]}, "does not have the interfaces"),
                ({"interfaces": 5}, "prevResult cannot be read"),
                ({"interfaces": [{}]}, "prevResult cannot be read"),
                ({"ips": None}, "prevResult cannot be read"),
            ):
                code, error = await scratch.cni(
                    "CHECK", **scratch.attachment("a", netns),
                    conf={"prevResult": {**result, **change}},
                )  # fmt: skip
                assert (code, error["code"]) == (1, Code.DIFFERS), change
                assert text in error["details"], change
            code, error = await scratch.cni("CHECK", **scratch.attachment("a", netns))
            assert (code, error["code"]) == (1, Code.INVALID_CONFIG)

    asyncio.run(main())


def test_gc_takes_exactly_what_is_not_listed(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            ports: dict[tuple[str, str], str] = {}
            # A sandbox with two interfaces is two attachments.
            for name, ifname in (
                ("both", "eth0"), ("both", "net1"), ("kept", "eth0"), ("gone", "eth0"),
                ("torn", "eth0"),
            ):  # fmt: skip
                call = scratch.attachment(name, scratch.netns(), ifname) | {"args": {}}
                code, result = await scratch.cni("ADD", **call)
                assert code == 0, result
                ports[name, ifname] = result["interfaces"][0]["name"]
            scratch.run("ip", "link", "add", "somebodys", "type", "veth", "peer", "name", "x")
            scratch.vsctl("add-port", "br-int", "somebodys")
            torn = ports["torn", "eth0"]
            scratch.vsctl("del-port", torn)
            scratch.run("ip", "link", "del", torn, check=False)

            async def collect(*valid: tuple[str, str]) -> None:
                listed = [{"containerID": f"sandbox-{n}", "ifname": i} for n, i in valid]
                conf = {"cni.dev/valid-attachments": listed}
                assert await scratch.cni("GC", conf=conf) == (0, {})
                left = scratch.left_over()
                rest = {ports[key] for key in valid}
                assert [set(left[kind]) for kind in ("ports", "links", "chains")] == [rest] * 3
                assert sorted(left["leases"]) == sorted((f"sandbox-{n}",) for n, _ in valid)

            await collect(("both", "net1"), ("kept", "eth0"))
            await collect(("both", "net1"), ("kept", "eth0"))
            await collect(("kept", "eth0"))
            await collect()
            assert "somebodys" in scratch.vsctl("list-ports", "br-int").split()

    asyncio.run(main())
