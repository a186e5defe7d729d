"""What an agent's host does for Services, on a node with a real switch."""

import asyncio
import json
import os
import socket
from contextlib import closing
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, cast

from node_agent import host_ports
from node_agent.cni_call import Code
from node_agent.services import LocalServices, _merged
from settings import Agent
from tests.namespaces import inside
from wire.documents import NodeProblems, NodeServices, decode_services, encode

from .conftest import (
    ADDRESS,
    NODE,
    NOTHING_LEFT,
    ScratchNode,
    controlled,
    needs_root,
    until,
)

EXTERNAL = IPv4Address("198.51.100.7")
TCP, UDP = 6, 17
EPHEMERAL = 40000
FIXED = {"10.98.0.0/16", "10.99.0.0/16", "169.254.1.2/31", "169.254.1.16/28"}


def said(revision: str, *ports: tuple[int, int, str], **more: Any) -> NodeServices:
    fields = {"external_addresses": (), "health_checks": (), **more}
    return NodeServices(NODE, ports, revision=revision, **fields)


def listening(node: ScratchNode, port: int, kind: int = socket.SOCK_STREAM) -> socket.socket:
    def steps() -> socket.socket:
        made = socket.socket(socket.AF_INET, kind)
        made.bind(("0.0.0.0", port))
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    return inside(node.name, steps)


def test_an_egress_address_that_the_host_needs_leads_into_no_switch(tmp_path: Path) -> None:
    router, own = IPv4Address("172.30.0.254"), IPv4Address("192.0.2.9")

    class OneRouter:
        async def addresses(self, *_: object) -> dict[IPv4Address, str]:
            return {router: "a gateway of this host"}

    agent = Agent(controllers=("192.0.2.1",), plain_tcp=True, node=NODE, state=tmp_path)
    made = LocalServices(agent, cast("Any", None), cast("Any", None))
    made._protected = cast("Any", OneRouter())
    made.route(frozenset((router, own)))
    assert asyncio.run(made._leave_out(said("1"))) == {router: "a gateway of this host"}


@needs_root
def test_a_service_takes_its_own_ports_and_no_address_that_the_host_needs(
    scratch: ScratchNode,
) -> None:
    """Not what it says on disk either, where a controller of an older version said it."""
    router, server = "172.30.0.254", "198.51.100.53"
    external = (EXTERNAL, IPv4Address(router), IPv4Address("192.0.2.88"))

    def rule() -> bool:
        return "fwmark 0x4000000/0x4000000 lookup 21356" in scratch.run("ip", "rule")

    def ports() -> list[str]:
        shown = json.loads(
            scratch.run("nft", "-j", "list", "set", "ip", "sluice", "external-ports")
        )
        (found,) = [entry["set"] for entry in shown["nftables"] if "set" in entry]
        return sorted(" ".join(map(str, each["concat"])) for each in found.get("elem", ()))

    async def main() -> None:
        scratch.run("ip", "route", "add", "default", "via", router)
        async with controlled(scratch, controllers=["127.0.0.1", server]) as controller:
            controller.services = said(
                "1", external_addresses=external,
                external_ports=((external, ((TCP, 80), (UDP, 53)), "default/web"),),
                protected_addresses=(IPv4Address("192.0.2.88"),),
            )  # fmt: skip
            await until(
                lambda: ports() == [f"{EXTERNAL} tcp 80", f"{EXTERNAL} udp 53"], scratch.log
            )
            assert rule()
            assert routes(scratch) == FIXED
            await until(
                lambda: (
                    controller.problems.services.get("default/web")
                    == f"{router} is not served: it is a gateway of this host; 192.0.2.88 is not "
                    "served: it is an address that the cluster needs"
                ),
                scratch.log,
            )
            controller.services = said("2")
            await until(lambda: not rule() and ports() == [], scratch.log)
        # The node has been cut off, and its agent is started after the Service is gone.
        scratch.stop_agent()
        old = said("3", external_addresses=(IPv4Address(server), IPv4Address(router), EXTERNAL))
        (scratch.home / "state" / "services.json").write_bytes(encode(old))
        for address in (server, router):
            scratch.run("ip", "route", "add", address, "via", "169.254.1.1", "dev", "sluice-gw",
                        "onlink")  # fmt: skip
        scratch.start_agent()
        await until(lambda: routes(scratch) == FIXED | {str(EXTERNAL)}, scratch.log)
        # Nor without any document.
        scratch.stop_agent()
        (scratch.home / "state" / "services.json").unlink()
        scratch.run("ip", "route", "add", server, "via", "169.254.1.1", "dev", "sluice-gw",
                    "onlink")  # fmt: skip
        scratch.start_agent()
        await until(lambda: routes(scratch) == FIXED | {str(EXTERNAL)}, scratch.log)

    asyncio.run(main())


@needs_root
def test_host_ports_that_each_node_needs_are_refused(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch):
            netns = scratch.netns()
            for port, protocol in ((22, "tcp"), (10250, "tcp"), (6081, "udp")):
                conf = {"portMappings": [
                    {"hostPort": port, "containerPort": 80, "protocol": protocol}
                ]}  # fmt: skip
                code, error = await scratch.add("a", netns, runtimeConfig=conf)
                assert (code, error["code"]) == (1, Code.HOST_PORT)
                assert f"host port 0.0.0.0:{port}/{protocol} is " in error["details"]
                assert scratch.left_over() == NOTHING_LEFT
            conf = {"portMappings": [{"hostPort": 22, "containerPort": 80, "protocol": "udp"}]}
            assert (await scratch.add("a", netns, runtimeConfig=conf))[0] == 0

    asyncio.run(main())


def own_addresses(node: ScratchNode) -> list[str]:
    shown = json.loads(node.run("nft", "-j", "list", "map", "ip", "sluice", "own-addresses"))
    (found,) = [entry["map"] for entry in shown["nftables"] if "map" in entry]
    return [" ".join(map(str, [*key["concat"], to])) for key, to in found.get("elem", ())]


def node_ports(node: ScratchNode) -> set[str]:
    shown = json.loads(node.run("nft", "-j", "list", "set", "ip", "sluice", "node-ports"))
    (found,) = [entry["set"] for entry in shown["nftables"] if "set" in entry]
    return {" ".join(map(str, element["concat"])) for element in found.get("elem", ())}


def routes(node: ScratchNode) -> set[str]:
    shown = node.run("ip", "-j", "route", "show", "dev", "sluice-gw", check=False)
    return {route["dst"] for route in json.loads(shown or "[]")}


@needs_root
def test_the_document_is_followed_and_kept(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch) as controller:

            async def until_so(ports: set[str], external: set[str]) -> None:
                await until(lambda: node_ports(scratch) == ports, scratch.log)
                await until(lambda: routes(scratch) == FIXED | external, scratch.log)

            controller.services = said(
                "1", (TCP, 30080, "default/web"), external_addresses=(EXTERNAL, ADDRESS)
            )
            await until_so({"tcp 30080"}, {str(EXTERNAL)})
            # It may not be all yet: nothing is taken away.
            controller.services = said("2", (UDP, 30053, "default/dns"), source_complete=False)
            await until_so({"tcp 30080", "udp 30053"}, {str(EXTERNAL)})
            controller.services = said("3", (UDP, 30053, "default/dns"))
            await until_so({"udp 30053"}, set())
            controller.services = said(
                "4", (UDP, 30053, "default/dns"), external_addresses=(EXTERNAL,)
            )
            await until_so({"udp 30053"}, {str(EXTERNAL)})
            # Set down, the gateway has no routes; and they are not missed for a minute.
            scratch.run("ip", "link", "set", "sluice-gw", "down")
            await until_so({"udp 30053"}, {str(EXTERNAL)})
        # Started with the controller away, as after a reboot.
        scratch.stop_agent()
        scratch.run("nft", "flush", "ruleset")
        scratch.run("ip", "route", "flush", "dev", "sluice-gw")
        scratch.start_agent()
        await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
        assert node_ports(scratch) == {"udp 30053"}
        assert routes(scratch) == {*FIXED, str(EXTERNAL)}

    asyncio.run(main())


@needs_root
def test_a_port_of_a_process_is_left_to_it_while_it_has_it(scratch: ScratchNode) -> None:
    async def main() -> None:
        async with controlled(scratch) as controller:
            with (
                closing(listening(scratch, 30080)),
                closing(listening(scratch, 30053, socket.SOCK_DGRAM)),
                closing(listening(scratch, 32000)),
            ):
                controller.services = said(
                    "1",
                    (TCP, 30080, "default/web"),
                    (UDP, 30053, "default/dns"),
                    (TCP, 30053, "default/dns"),
                    health_checks=((32000, "default/lb", 1),),
                )
                await until(lambda: node_ports(scratch) == {"tcp 30053"}, scratch.log)

                def told() -> bool:
                    services = controller.problems.services
                    return (
                        services.keys() == {"default/web", "default/dns", "default/lb"}
                        and "NodePort 30080/TCP is not served: process" in services["default/web"]
                        and f"process {os.getpid()} (" in services["default/web"]
                        and "NodePort 30053/UDP is not served" in services["default/dns"]
                        and "health check port 32000" in services["default/lb"]
                    )

                await until(told, lambda: f"{controller.problems}\n{scratch.log()}", 30)
            every = {"tcp 30080", "udp 30053", "tcp 30053"}
            await until(lambda: node_ports(scratch) == every, scratch.log, 30)
            await until(lambda: controller.problems == NodeProblems(), scratch.log, 30)
            # Who comes later gets nothing; and that is told too.
            with closing(listening(scratch, 30080)):
                await until(
                    lambda: "gets nothing" in controller.problems.services.get("default/web", ""),
                    lambda: f"{controller.problems}\n{scratch.log()}",
                    30,
                )
                assert node_ports(scratch) == every

    asyncio.run(main())


@needs_root
def test_a_port_of_an_own_address(scratch: ScratchNode) -> None:
    """As with NodePorts: what a process has stays its own, and is told."""
    dnat_address = IPv4Address("169.254.1.16")

    async def main() -> None:
        async with controlled(scratch) as controller:
            with closing(listening(scratch, 22)):
                own = tuple((ADDRESS, TCP, port, dnat_address, "default/web") for port in (22, 80))
                controller.services = said("1", own_addresses=own)
                await until(
                    lambda: own_addresses(scratch) == [f"{ADDRESS} tcp 80 {dnat_address}"],
                    scratch.log,
                )

                def told() -> bool:
                    sentence = controller.problems.services.get("default/web", "")
                    who = f"process {os.getpid()} ("
                    return sentence.startswith(
                        f"port 22/TCP of {ADDRESS} is not served: {who}"
                    ) and ("80/TCP" not in sentence)

                await until(told, lambda: f"{controller.problems}\n{scratch.log()}", 30)
            await until(lambda: len(own_addresses(scratch)) == 2, scratch.log, 30)
            await until(lambda: controller.problems == NodeProblems(), scratch.log, 30)
        # Started with the controller away, as after a reboot.
        scratch.stop_agent()
        scratch.run("nft", "flush", "ruleset")
        scratch.start_agent()
        await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
        assert len(own_addresses(scratch)) == 2

    asyncio.run(main())


@needs_root
def test_a_pods_host_port_from_add_to_del(scratch: ScratchNode) -> None:
    def host_ports() -> str:
        return scratch.run("nft", "list", "map", "ip", "sluice", "host-ports")

    mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}
    conf = {"runtimeConfig": {"portMappings": [mapping, {**mapping, "hostIP": "127.0.0.1"}]}}

    async def main() -> None:
        async with controlled(scratch):
            spaces = [scratch.netns() for _ in range(2)]
            code, result = await scratch.add("a", spaces[0], **conf)
            assert code == 0, result
            assert "tcp . 8080 : 10.99.1.2 . 80" in host_ports()
            check = {**scratch.attachment("a", spaces[0]), "conf": {"prevResult": result}}
            assert await scratch.cni("CHECK", **check) == (0, {})
            code, error = await scratch.add("b", spaces[1], **conf)
            assert (code, error["code"]) == (1, Code.HOST_PORT)
            assert (
                "default/b wants host port 0.0.0.0:8080/tcp, which default/a has"
                in (error["details"])
            )
            # All is lost but OVSDB.
            scratch.stop_agent(kill=True)
            scratch.run("nft", "flush", "ruleset")
            for file in (scratch.home / "state").iterdir():
                file.unlink()
            scratch.start_agent()
            await until(lambda: scratch.log().count("node set up") == 2, scratch.log)
            assert "tcp . 8080 : 10.99.1.2 . 80" in host_ports()
            assert (await scratch.add("b", spaces[1], **conf))[1]["code"] == Code.HOST_PORT

            async def differs() -> bool:
                nonlocal error
                # What the agent hears from the controller at its start may still come, and mend it.
                scratch.run("nft", "flush", "map", "ip", "sluice", "host-ports")
                code, error = await scratch.cni("CHECK", **check)
                return code != 0

            await until(differs, scratch.log)
            assert error["code"] == Code.DIFFERS
            assert "does not send 6 8080 to 10.99.1.2 80" in error["details"]
            assert await scratch.cni("DEL", **scratch.attachment("a", spaces[0])) == (0, {})
            assert "8080" not in scratch.run("nft", "list", "table", "ip", "sluice")
            assert (await scratch.add("b", spaces[1], **conf))[0] == 0
            assert await scratch.cni("GC", conf={"cni.dev/valid-attachments": []}) == (0, {})
            assert "8080" not in scratch.run("nft", "list", "table", "ip", "sluice")

    asyncio.run(main())


@needs_root
def test_who_holds_a_port(scratch: ScratchNode) -> None:
    def make(family: int, kind: int, *address: Any, v6only: bool = False) -> socket.socket:
        made = socket.socket(family, kind)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
        made.bind(address)
        if kind == socket.SOCK_STREAM:
            made.listen()
        return made

    v4, v6, stream, datagram = (
        socket.AF_INET, socket.AF_INET6, socket.SOCK_STREAM, socket.SOCK_DGRAM
    )  # fmt: skip

    def steps() -> dict[tuple[int, int], str]:
        made = [
            make(v4, stream, "0.0.0.0", 1),
            make(v4, stream, str(ADDRESS), 2),
            make(v4, stream, "127.0.0.1", 3),
            make(v6, stream, "::", 4),
            make(v6, stream, "::", 5, v6only=True),
            make(v6, stream, "::1", 6),
            make(v6, datagram, "::", 7),
            make(v4, datagram, "0.0.0.0", 8),
            make(v4, datagram, "0.0.0.0", 9),
            make(v4, stream, "0.0.0.0", 10),
            # Ports that the kernel may have chosen, for clients; one that it may not.
            make(v4, datagram, "0.0.0.0", EPHEMERAL),
            make(v4, stream, "0.0.0.0", EPHEMERAL),
            make(v4, datagram, "0.0.0.0", EPHEMERAL + 1),
        ]
        made[8].connect((str(ADDRESS), 53))
        try:
            numbers = [*range(1, 10), EPHEMERAL, EPHEMERAL + 1]
            return host_ports.held([(p, n) for n in numbers for p in (TCP, UDP)])
        finally:
            for one in made:
                one.close()

    reserved = f"net.ipv4.ip_local_reserved_ports={EPHEMERAL + 1}"
    scratch.run("sysctl", "-qw", "net.ipv4.ip_local_port_range=32768 60999", reserved)
    found = inside(scratch.name, steps)
    assert found.keys() == {
        (TCP, 1), (TCP, 2), (TCP, 4), (UDP, 7), (UDP, 8), (TCP, EPHEMERAL), (UDP, EPHEMERAL + 1)
    }  # fmt: skip
    assert {title.split()[0] for title in found.values()} == {"process"}


def test_a_document_that_is_not_whole_adds_only() -> None:
    first, second = (ADDRESS, TCP, 1, EXTERNAL, "a/a"), (ADDRESS, TCP, 2)
    old = said(
        "1", (TCP, 1, "a/a"), (TCP, 2, "a/b"), external_addresses=(EXTERNAL,),
        health_checks=((7, "a/a", 1),), own_addresses=(first, (*second, EXTERNAL, "a/a")),
    )  # fmt: skip
    new = said(
        "2", (TCP, 2, "a/c"), health_checks=((7, "a/a", 0), (8, "a/b", 1)), source_complete=False,
        own_addresses=((*second, EXTERNAL, "a/b"),),
    )  # fmt: skip
    assert _merged(None, new) == new
    both = _merged(old, new)
    assert both.node_ports == ((TCP, 1, "a/a"), (TCP, 2, "a/c"))
    assert both.external_addresses == (EXTERNAL,)
    assert both.health_checks == ((7, "a/a", 0), (8, "a/b", 1))
    assert both.own_addresses == (first, (*second, EXTERNAL, "a/b"))
    assert both.revision == "2"
    assert decode_services(encode(both)) == both
