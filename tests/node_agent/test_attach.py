"""What is removed when: a lease after all else, and nothing that is just being added."""

import asyncio
import json
from collections.abc import Callable, Iterator
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pyroute2 import NetlinkError

from flows import names
from node_agent import bridge, local_switch, nft, pod_link
from node_agent.attach import Attachments
from node_agent.cni_call import CniCall
from node_agent.generation import NewestGeneration
from node_agent.leases import Leases
from node_agent.local_switch import LocalSwitch
from node_agent.ovsdb import OvsdbError
from settings import Agent

PORT = names.container_port_name("a", "eth0")


class _Ovsdb:
    """Takes every transaction, or refuses each."""

    connected = True

    def __init__(self) -> None:
        self.refuses = False
        self.transactions = 0

    def rows(self, _: str) -> Iterator[Any]:
        return iter(())

    def interfaces_of(self, _: str) -> Iterator[Any]:
        return iter(())

    async def transact(self, _: Callable[[Any], object], **_within: float) -> bool:
        self.transactions += 1
        if self.refuses:
            raise OvsdbError("refused")
        return True


@pytest.fixture
def leases(tmp_path: Path) -> Iterator[Leases]:
    made = Leases(tmp_path / "leases.sqlite", "node1", 0.0)
    made.use(IPv4Network("10.9.0.0/24"))
    made.take("a", "eth0", PORT, now=0.0, ofports=())
    yield made
    made.close()


def attachments(leases: Leases, ovsdb: _Ovsdb) -> Attachments:
    agent = Agent(controllers=("192.0.2.1",), plain_tcp=True, node="node1", datapath="netdev")
    unused: Any = None
    given: Any = ovsdb
    return Attachments(agent, unused, given, unused, leases, unused, unused, unused, unused)


def call(command: str, **conf: Any) -> CniCall:
    variables = {"CNI_COMMAND": command, "CNI_CONTAINERID": "a", "CNI_IFNAME": "eth0"}
    environment = b"".join(f"{key}={value}\0".encode() for key, value in variables.items())
    stdin = json.dumps({"cniVersion": "1.1.0", "name": "sluice", **conf}).encode()
    return CniCall.parse(environment + b"\0" + stdin)


@pytest.mark.parametrize("stuck", ["port", "link", "chain"])
def test_a_lease_stays_while_a_part_of_its_attachment_is_left(
    leases: Leases, monkeypatch: pytest.MonkeyPatch, stuck: str
) -> None:
    ovsdb = _Ovsdb()
    ovsdb.refuses = stuck == "port"

    async def link(_: str) -> None:
        if stuck == "link":
            raise NetlinkError(16, "busy")

    async def chain(_: str) -> None:
        if stuck == "chain":
            raise nft.NftError("busy")

    monkeypatch.setattr(pod_link, "remove", link)
    monkeypatch.setattr(nft, "allow_host_ingress", chain)
    made = attachments(leases, ovsdb)
    assert asyncio.run(made.answer(call("DEL"))) == b"", "DEL never fails"
    assert [lease.port for lease in leases.all()] == [PORT]
    ovsdb.refuses, stuck = False, ""
    asyncio.run(made.answer(call("DEL")))
    assert leases.all() == []


def test_gc_leaves_an_attachment_that_is_being_added(leases: Leases) -> None:
    """The runtime's list may be older."""
    ovsdb = _Ovsdb()

    async def main() -> None:
        made = attachments(leases, ovsdb)
        async with made._lock("a"):
            await made.answer(call("GC", **{"cni.dev/valid-attachments": []}))
        assert leases.all() != []
        assert ovsdb.transactions == 0

    asyncio.run(main())


@pytest.mark.parametrize("ours", [True, False])
def test_uninstall_leaves_the_tls_files_of_others(tmp_path: Path, ours: bool) -> None:
    agent = Agent(controllers=("192.0.2.1",), plain_tcp=True, node="node1", state=tmp_path)
    key = str(tmp_path / "tls" / "key.pem") if ours else "/etc/openvswitch/key.pem"
    row = SimpleNamespace(private_key=key)
    root: Any = SimpleNamespace(
        datapaths={}, bridges=[], external_ids={}, other_config={}, next_cfg=1, ssl=[row]
    )
    transaction: Any = SimpleNamespace(rows=lambda _: iter([root]), row=lambda *_: None)
    bridge.remove(transaction, agent)
    assert root.ssl == ([] if ours else [row])


def test_the_next_process_of_the_switch_is_made_to_wait_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """`ovs-ctl restart` takes the key away that holds it."""
    agent = Agent(controllers=("192.0.2.1",), plain_tcp=True, node="node1", ovs_run=tmp_path)
    given: Any = _Ovsdb()
    switch = LocalSwitch(agent, given, NewestGeneration(tmp_path / "generation"))
    held = [True, False]
    renewed = asyncio.Event()

    async def let_go(_: Any) -> None:
        renewed.set()

    async def never() -> str:
        await asyncio.Event().wait()
        return ""

    monkeypatch.setattr(local_switch, "_LOOK_INTERVAL", 0.001)
    monkeypatch.setattr(bridge, "has_restore_wait", lambda _: held.pop(0) if held else True)
    monkeypatch.setattr(switch, "_release", let_go)
    one: Any = SimpleNamespace(wait_closed=never)

    async def main() -> None:
        looking = asyncio.create_task(switch._keep_restore_wait(one))
        async with asyncio.timeout(60):
            await renewed.wait()
        looking.cancel()

    asyncio.run(main())
