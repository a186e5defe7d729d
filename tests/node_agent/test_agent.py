"""The agent as a process, on a real Open vSwitch, asked by the real shim."""

import asyncio
import json
import sqlite3
import time
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from flows import names
from node_agent.attach import Attachments
from node_agent.cni_call import Code
from node_agent.cni_server import serve

from .conftest import (
    CONFIG,
    NOTHING_LEFT,
    ScratchNode,
    check_gateway,
    controlled,
    needs_root,
    run,
    until,
)

pytestmark = needs_root


def in_pod(netns: str, *command: str) -> str:
    return run("nsenter", f"--net={netns}", *command)


def test_one_pod_from_add_to_del(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            netns = scratch.netns()
            code, result = await scratch.add("a", netns)
            assert code == 0, result
            port = names.port_name("default", "a", "uid-a", "eth0", "sandbox-a")
            mac = names.mac_of(IPv4Address("10.99.1.2"))
            assert result["ips"][0]["address"] == "10.99.1.2/32"
            assert [entry["name"] for entry in result["interfaces"]] == [port, "eth0"]

            (link,) = json.loads(in_pod(netns, "ip", "-j", "addr", "show", "dev", "eth0"))
            assert (link["address"], link["mtu"]) == (mac, 1450)
            assert [a["local"] for a in link["addr_info"] if a["family"] == "inet"] == ["10.99.1.2"]
            assert in_pod(netns, "ip", "route").split("\n")[:2] == [
                "default via 169.254.1.1 dev eth0 proto static ",
                "169.254.1.1 dev eth0 proto static scope link ",
            ]
            neighbour = f"169.254.1.1 dev eth0 lladdr {names.ROUTER_MAC} PERMANENT"
            assert neighbour in in_pod(netns, "ip", "neigh")
            assert "tx-checksumming: off" in in_pod(netns, "ethtool", "-k", "eth0")
            assert "UP" in in_pod(netns, "ip", "link", "show", "lo")

            (host,) = json.loads(scratch.run("ip", "-j", "addr", "show", "dev", port))
            assert (host["address"], host["mtu"], host["addr_info"]) == (mac, 1450, [])
            assert "policy drop" in scratch.run("nft", "list", "chain", "netdev", "sluice", port)
            ids = scratch.vsctl("get", "interface", port, "external_ids")
            for text in (
                'sluice-pod="default/a"', "sluice-pod-uid=uid-a", "sluice-sandbox=sandbox-a",
                'sluice-address="10.99.1.2"', "sluice-ifname=eth0", 'iface-id="default/a"', netns,
            ):  # fmt: skip
                assert text in ids, ids
            assert scratch.vsctl("get", "interface", port, "ofport") == "16"

            assert await scratch.cni(
                "CHECK", **scratch.attachment("a", netns), conf={"prevResult": result}
            ) == (0, {})
            in_pod(netns, "ip", "addr", "flush", "dev", "eth0", "scope", "global")
            code, error = await scratch.cni(
                "CHECK", **scratch.attachment("a", netns), conf={"prevResult": result}
            )
            assert (code, error["code"]) == (1, Code.DIFFERS)
            assert "not 10.99.1.2" in error["details"]
            assert "default route" in error["details"]

            for _ in range(2):
                assert await scratch.cni("DEL", **scratch.attachment("a", netns)) == (0, {})
            assert scratch.left_over() == NOTHING_LEFT
            code, error = await scratch.cni(
                "CHECK", **scratch.attachment("a", netns), conf={"prevResult": result}
            )
            assert (code, error["code"]) == (1, Code.DIFFERS)

            code, result = await scratch.add("b", netns)
            assert result["ips"][0]["address"] == "10.99.1.3/32", "the other one rests"
            assert scratch.vsctl(
                "get", "interface", result["interfaces"][0]["name"], "ofport"
            ) == "17"  # fmt: skip
            gone: dict[str, Any] = scratch.attachment("b", netns) | {"NETNS": ""}
            assert await scratch.cni("DEL", **gone, conf={"prevResult": {}}) == (0, {})
            assert scratch.left_over() == NOTHING_LEFT

    asyncio.run(main())


def test_adds_that_are_refused_leave_nothing(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch, addTimeout=5.0) as controller:
            netns = scratch.netns()
            for where, code, text in (
                ("/run/netns/none-such", Code.UNKNOWN_CONTAINER, "No such file"),
                ("/dev/null", Code.INVALID_ENVIRONMENT, "not a network namespace"),
                (f"/run/netns/{scratch.name}", Code.INVALID_ENVIRONMENT, "the node's own"),
            ):
                status, error = await scratch.add("a", where)
                assert (status, error["code"]) == (1, code)
                assert "CNI_NETNS" in error["msg"]
                assert text in error["msg"]

            in_pod(netns, "ip", "link", "add", "eth0", "type", "veth", "peer", "name", "x")
            status, error = await scratch.add("a", netns)
            assert (status, error["code"]) == (1, Code.INVALID_ENVIRONMENT)
            assert "has an interface eth0 already" in error["msg"]
            in_pod(netns, "ip", "link", "del", "eth0")
            assert scratch.left_over() == NOTHING_LEFT

            # OVSDB shows the session with a delay of up to 5 s.
            await until(
                lambda: "true" in scratch.vsctl("--columns=is_connected", "list", "controller")
            )
            controller.admits = False
            status, error = await scratch.add("a", netns)
            assert (status, error["code"]) == (1, Code.TRY_AGAIN)
            assert "got no flows" in error["msg"]
            assert "Pod default/a" in error["details"]
            assert scratch.left_over() == NOTHING_LEFT
            assert "eth0" not in in_pod(netns, "ip", "link")
            controller.admits = True

            status, result = await scratch.add("a", netns)
            assert status == 0, result
            status, error = await scratch.add("a", netns)
            assert (status, error["code"]) == (1, Code.INVALID_ENVIRONMENT)
            assert "sandbox-a has eth0 already" in error["msg"]
            status, _ = await scratch.cni(
                "CHECK", **scratch.attachment("a", netns), conf={"prevResult": result}
            )
            assert status == 0, "the second ADD harmed the first"

            status, error = await scratch.cni("ADD", conf={"cniVersion": "7"})
            assert (status, error["code"]) == (1, 1)

            second = scratch.attachment("b", netns, ifname="net1") | {"args": {}}
            status, error = await scratch.cni("ADD", **second)
            assert (status, error["code"]) == (1, Code.INVALID_ENVIRONMENT)
            assert "default route" in error["details"]
            assert scratch.left_over()["leases"] == [("sandbox-a",)]

    asyncio.run(main())


def test_late_del_takes_only_its_own_sandbox(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            old, new = scratch.netns(), scratch.netns()
            first = scratch.attachment("a", old)
            second = scratch.attachment("a", new) | {"CONTAINERID": "sandbox-a-2"}
            assert (await scratch.cni("ADD", **first))[0] == 0
            code, result = await scratch.cni("ADD", **second)
            assert code == 0
            assert (await scratch.cni("DEL", **first))[0] == 0
            assert scratch.left_over()["ports"] == [result["interfaces"][0]["name"]]
            assert (
                await scratch.cni("CHECK", **second, conf={"prevResult": result})
            )[0] == 0  # fmt: skip

    asyncio.run(main())


def test_many_at_once_get_addresses_of_their_own(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch, addTimeout=20):
            spaces = [scratch.netns() for _ in range(30)]
            results = await asyncio.gather(
                *(scratch.add(f"pod-{i}", netns) for i, netns in enumerate(spaces))
            )
            assert [code for code, _ in results] == [0] * 30, results
            assert len({result["ips"][0]["address"] for _, result in results}) == 30
            # The same sandbox twice at one moment: one of the two is refused.
            netns = scratch.netns()
            twice = await asyncio.gather(scratch.add("x", netns), scratch.add("x", netns))
            assert sorted(code for code, _ in twice) == [0, 1]

            spare = [{"containerID": "sandbox-pod-3", "ifname": "eth0"}]
            assert (await scratch.cni("GC"))[0] == 1
            assert len(scratch.left_over()["ports"]) == 31
            assert await scratch.cni("GC", conf={"cni.dev/valid-attachments": spare}) == (0, {})
            left = scratch.left_over()
            assert left["leases"] == [("sandbox-pod-3",)]
            assert [len(left[kind]) for kind in ("ports", "links", "chains")] == [1, 1, 1]

    asyncio.run(main())


def test_full_range(scratch: ScratchNode) -> None:
    async def main() -> None:
        cidr = IPv4Network("10.99.1.0/30")
        scratch.controller.say(msgspec.structs.replace(CONFIG, pod_cidr=cidr))
        async with controlled(scratch):
            assert (await scratch.add("a", scratch.netns()))[0] == 0
            code, error = await scratch.add("b", scratch.netns())
            assert (code, error["code"]) == (1, Code.NO_ADDRESS)
            assert "Node node1: spec.podCIDR 10.99.1.0/30 is full" in error["details"]

    asyncio.run(main())


def test_restarts_of_everything(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch) as controller:
            spaces = [scratch.netns() for _ in range(3)]
            code, result = await scratch.add("a", spaces[0])
            assert code == 0

            # The agent is killed, its lease file lost, and the controller away.
            scratch.stop_agent(kill=True)
            for file in (scratch.home / "state").iterdir():
                file.unlink()
            controller.answer = (503, b"away")
            scratch.start_agent()
            await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
            assert "carrying on with the remembered configuration" in scratch.log()
            check = {**scratch.attachment("a", spaces[0]), "conf": {"prevResult": result}}
            assert await scratch.cni("CHECK", **check) == (0, {})
            code, second = await scratch.add("b", spaces[1])
            assert code == 0, second
            assert second["ips"][0]["address"] == "10.99.1.3/32"

            # Open vSwitch is restarted, and makes its internal ports anew.
            scratch.stop_vswitchd()
            scratch.run("ip", "link", "del", "sluice-gw")
            scratch.start_vswitchd()

            def gateway_is_back() -> bool:
                show = "ip addr show dev sluice-gw; ip route show dev sluice-gw"
                shown = scratch.run("sh", "-c", show, check=False)
                return all(text in shown for text in ("LOWER_UP", "10.99.1.1/32", "10.99.0.0/16"))

            await until(gateway_is_back, scratch.log)
            check_gateway(scratch)
            code, third = await scratch.add("c", spaces[2])
            assert code == 0, third

            # DEL works with the controller away.
            await controller.stop()
            for name, netns in zip("abc", spaces, strict=True):
                assert await scratch.cni("DEL", **scratch.attachment(name, netns)) == (0, {})
            assert scratch.left_over() == NOTHING_LEFT

    asyncio.run(main())


def test_orphans_are_freed_but_not_at_first_sight(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch, addTimeout=30) as controller:
            alive, gone, killed, unplugged = (scratch.netns() for _ in range(4))
            assert (await scratch.add("alive", alive))[0] == 0
            assert (await scratch.add("gone", gone))[0] == 0
            code, result = await scratch.add("unplugged", unplugged)
            assert code == 0
            controller.admits = False
            call = asyncio.create_task(scratch.add("killed", killed))
            await until(lambda: len(scratch.left_over()["ports"]) == 4, scratch.log)
            scratch.stop_agent(kill=True)
            code, error = await call
            assert (code, error["code"]) == (1, 11)
            scratch.vsctl("del-port", result["interfaces"][0]["name"])
            run("ip", "netns", "del", gone.rpartition("/")[2])
            scratch.start_agent()
            begin = time.monotonic()

            # A port without a link is freed. A link without a port has a pod behind it. What was
            # killed halfway is whole, and nobody but the runtime knows better: its DEL comes.
            def leases() -> set[str]:
                return {name for (name,) in scratch.left_over()["leases"]}

            rest = {"sandbox-alive", "sandbox-killed", "sandbox-unplugged"}
            await until(lambda: leases() == rest, scratch.log, seconds=120)
            assert time.monotonic() - begin > 10
            check = {**scratch.attachment("unplugged", unplugged), "conf": {"prevResult": result}}
            controller.admits = True
            assert (await scratch.cni("DEL", **scratch.attachment("killed", killed)))[0] == 0
            left = scratch.left_over()
            assert [len(left[kind]) for kind in ("ports", "links", "chains")] == [2, 2, 2]
            # Unplugged once more, and the agent sees it happen.
            port = result["interfaces"][0]["name"]
            scratch.vsctl("del-port", port)
            await until(lambda: port in scratch.left_over()["ports"], scratch.log)
            assert await scratch.cni("CHECK", **check) == (0, {})
            # Unplugged and gone at once: the lease is all that is left.
            run("ip", "netns", "del", unplugged.rpartition("/")[2])
            scratch.vsctl("--if-exists", "del-port", port)
            await until(lambda: leases() == {"sandbox-alive"}, scratch.log, seconds=120)

    asyncio.run(main())


@pytest.mark.parametrize("lost", ["bridge", "database"])
def test_pods_outlive_their_bridge(scratch: ScratchNode, lost: str) -> None:
    async def main() -> None:
        async with controlled(scratch):
            spaces = {name: scratch.netns() for name in "ab"}
            results = {name: await scratch.add(name, netns) for name, netns in spaces.items()}
            assert [code for code, _ in results.values()] == [0, 0]
            links = {netns: in_pod(netns, "ip", "-4", "addr") for netns in spaces.values()}

            def rows() -> list[str]:
                columns = "--columns=name,ofport,ofport_request,external_ids"
                shown = scratch.vsctl("--format=csv", columns, "list", "interface").splitlines()
                return sorted(row for row in shown if "sluice-sandbox" in row)

            before = rows()
            assert len(before) == 2
            if lost == "bridge":
                scratch.vsctl("del-br", "br-int")
            else:
                scratch.lose_database()
            await until(lambda: rows() == before, scratch.log, seconds=30)
            for name, netns in spaces.items():
                check = {
                    **scratch.attachment(name, netns),
                    "conf": {"prevResult": results[name][1]},
                }
                await until(lambda c=check: _is_well(scratch, c), scratch.log)
            assert {netns: in_pod(netns, "ip", "-4", "addr") for netns in spaces.values()} == links
            for name, netns in spaces.items():
                assert await scratch.cni("DEL", **scratch.attachment(name, netns)) == (0, {})
            assert scratch.left_over() == NOTHING_LEFT

    asyncio.run(main())


async def _is_well(scratch: ScratchNode, check: dict[str, Any]) -> bool:
    return await scratch.cni("CHECK", **check) == (0, {})


def test_locked_lease_file_is_waited_out(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            netns = scratch.netns()
            assert (await scratch.add("a", netns))[0] == 0
            file = scratch.home / "state" / "leases.sqlite"
            other = sqlite3.connect(file, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            code, error = await scratch.add("b", scratch.netns())
            assert (code, error["code"]) == (1, Code.TRY_AGAIN)
            assert f"{file}: database is locked" in error["details"]
            # The pod's end is at hand; its lease is left, and freed when the file is.
            assert await scratch.cni("DEL", **scratch.attachment("a", netns)) == (0, {})
            left = scratch.left_over()
            assert (left["leases"], left["links"]) == ([("sandbox-a",)], [])
            await until(lambda: scratch.log().count("a lease is left") == 2, scratch.log, 40)
            other.execute("ROLLBACK")
            other.close()
            await until(lambda: scratch.left_over() == NOTHING_LEFT, scratch.log, 40)
            assert "Traceback" not in scratch.log()
            assert (await scratch.add("b", scratch.netns()))[0] == 0

    asyncio.run(main())


def test_server_that_ends_cuts_its_calls_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where `wait_closed` waits for open connections: Python 3.12.1 and later."""

    async def wait_closed(server: Any) -> None:
        while server._active_count:
            await asyncio.sleep(0.01)

    monkeypatch.setattr(asyncio.base_events.Server, "wait_closed", wait_closed)
    begun = asyncio.Event()

    class Hanging:
        async def answer(self, _: object) -> bytes:
            begun.set()
            await asyncio.Event().wait()
            return b""

    async def main() -> None:
        path = tmp_path / "s"
        async with asyncio.timeout(60):
            async with serve(path, cast("Attachments", Hanging())):
                reader, writer = await asyncio.open_unix_connection(path)
                writer.write(b'CNI_COMMAND=STATUS\0\0{"cniVersion": "1.1.0", "name": "x"}')
                writer.write_eof()
                await begun.wait()
            assert await reader.read() == b""
            writer.close()

    asyncio.run(main())


def test_agent_that_is_stopped_in_an_add_undoes_it(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch, addTimeout=30) as controller:
            controller.admits = False
            call = asyncio.create_task(scratch.add("a", scratch.netns()))
            await until(lambda: len(scratch.left_over()["ports"]) == 1, scratch.log)
            assert scratch.stop_agent() == 0
            code, error = await call
            assert (code, error["code"]) == (1, Code.TRY_AGAIN)
            assert scratch.left_over() == NOTHING_LEFT

    asyncio.run(main())
