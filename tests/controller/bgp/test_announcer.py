"""The announcer: what it has the speakers tell, and what it says of BGPPeers."""

import asyncio
from base64 import b64encode
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from controller.bgp import Announcer
from controller.bgp import announcer as announcing
from controller.bgp.passwords import Passwords
from controller.bgp.report import reported
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from controller.work_budget import in_turns
from flows.refs import ObjectRef
from tests.controller.api_server import kubeconfig_of
from tests.controller.bgp.test_peers import bgp_peer
from tests.controller.events import node_object
from tests.flows.worlds import CLUSTER
from wire.bgp import NodeSessions, PeerAnnouncements, Session

SECRET = {"passwordSecret": {"name": "sluice-bgp", "key": "leaf"}}
NODE = node_object("node1", "10.244.1.0/24", "172.30.1.1")


class Spoken:
    """In place of the speaker: what it is told."""

    def __init__(self) -> None:
        self.wanted: list[PeerAnnouncements] = []
        self.found: list[Session] = []

    def want(self, wanted: Sequence[PeerAnnouncements], _: Sequence[IPv4Network]) -> None:
        self.wanted = list(wanted)

    def sessions(self) -> list[Session]:
        return self.found

    async def close(self) -> None:
        pass

    def prefixes(self) -> dict[str, list[str]]:
        return {each.peer.name: [str(r.prefix) for r in each.routes] for each in self.wanted}


def run(
    test: Callable[[Reconciler, Announcer, Spoken], Awaitable[None]],
    passwords: Passwords | None = None,
) -> None:
    async def scenario() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        given = passwords or Passwords(None, "net", has_api_server=False)
        announcer, spoken = Announcer(reconciler, given), Spoken()
        announcer.speaker = spoken  # type: ignore[assignment,misc]
        reconciler.update([NODE], [])
        reconciler.source_complete(whole=True)
        task = asyncio.create_task(announcer.run())
        try:
            async with asyncio.timeout(30):
                await test(reconciler, announcer, spoken)
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    asyncio.run(scenario())


async def until(holds: Callable[[], Any]) -> None:
    while not holds():
        await asyncio.sleep(0.01)


def problem(reconciler: Reconciler, name: str = "one") -> str:
    found = reconciler.problems.of_subject(ObjectRef("BGPPeer", "", name))
    return "; ".join(each.text for each in found)


def test_a_peer_is_told_what_changes() -> None:
    async def test(reconciler: Reconciler, _: Announcer, spoken: Spoken) -> None:
        reconciler.update([bgp_peer()], [])
        await until(lambda: spoken.prefixes() == {"one": ["10.244.1.0/24"]})
        reconciler.update([node_object("node2", "10.244.2.0/24", "172.30.1.2")], [])
        await until(lambda: len(spoken.prefixes()["one"]) == 2)
        reconciler.update([], [ObjectRef.node("node1")])
        await until(lambda: spoken.prefixes() == {"one": ["10.244.2.0/24"]})
        reconciler.update([], [ObjectRef("BGPPeer", "", "one")])
        await until(lambda: spoken.prefixes() == {})

    run(test)


def test_a_refused_peer_is_reported_and_others_are_told() -> None:
    async def test(reconciler: Reconciler, _: Announcer, spoken: Spoken) -> None:
        reconciler.update([bgp_peer(asn=0), bgp_peer("two", address="172.30.0.2")], [])
        await until(lambda: "spec.asn: 0" in problem(reconciler))
        assert spoken.prefixes().keys() == {"two"}
        assert problem(reconciler, "two") == ""
        reconciler.update([bgp_peer()], [])
        await until(lambda: problem(reconciler) == "")
        await until(lambda: spoken.prefixes().keys() == {"one", "two"})

    run(test)


def test_a_session_that_is_down_is_reported_on_its_peer() -> None:
    async def test(reconciler: Reconciler, _: Announcer, spoken: Spoken) -> None:
        spoken.found = [Session("one", "Connect", 0.0)]
        reconciler.update([bgp_peer()], [])
        await until(lambda: "no session: 172.30.0.1" in problem(reconciler))

    run(test)


def test_what_a_node_gets_costs_no_look_at_other_nodes(monkeypatch: pytest.MonkeyPatch) -> None:
    # All agents ask again at once after each change.
    async def test(reconciler: Reconciler, announcer: Announcer, _: Spoken) -> None:
        chosen = {
            "from": "Nodes",
            "nodeSelector": {"matchLabels": {"topology.kubernetes.io/zone": "a"}},
        }
        reconciler.update([bgp_peer(**chosen)], [])
        reconciler.update([node_object("node2", "10.244.2.0/24", "172.30.1.2", zone="a")], [])
        await until(lambda: announcer.announced.get("one"))
        monkeypatch.setattr(announcing, "selected_nodes", None)
        found = [announcer.document(name) for name in ("node1", "node2")]
        assert [each and len(each.peers) for each in found] == [0, 1]
        # A node that is not selected has nothing to say of the peer.
        lie = Session("one", "Established", 0.0, claimed=("10.244.0.0/16",))
        for name in ("node1", "node2"):
            announcer.take_sessions(name, NodeSessions((lie,)))
        assert [node for node, _ in announcer.sessions()] == ["node2"]

    run(test)


def test_a_peer_may_go_while_the_report_is_made() -> None:
    async def test(reconciler: Reconciler, announcer: Announcer, _: Spoken) -> None:
        reconciler.update([bgp_peer("one"), bgp_peer("two", port=1179)], [])
        await until(lambda: len(announcer.announced) == 2)
        work = reported(reconciler.inventory, announcer, None)
        next(work)
        reconciler.update([], [ObjectRef("BGPPeer", "", "two")])
        assert [each.name for each in (await in_turns(work)).peers] == ["one", "two"]

    run(test)


def test_a_node_with_a_speaker_gets_its_own_routes_only() -> None:
    async def test(reconciler: Reconciler, announcer: Announcer, spoken: Spoken) -> None:
        reconciler.update([bgp_peer(**{"from": "Nodes"})], [])
        reconciler.update([node_object("node2", "10.244.2.0/24", "172.30.1.2")], [])
        await until(lambda: len(announcer.announced.get("one", ())) == 2)
        assert spoken.prefixes() == {}
        document = announcer.document("node2")
        assert document is not None
        (only,) = document.peers
        assert [str(route.prefix) for route in only.routes] == ["10.244.2.0/24"]
        assert [str(hop) for hop in only.routes[0].next_hops] == ["172.30.1.2"]
        assert announcer.document("nobody") is None
        again = announcer.document("node2")
        assert again is not None
        assert again.revision == document.revision

        reason = "we sent the notification 2/2: bad peer AS"
        down = Session("one", "Idle", 0.0, reason=reason)
        announcer.take_sessions("node2", NodeSessions((down, Session("unknown", "Idle", 0.0))))
        announcer._due.set()
        await until(lambda: problem(reconciler) == f"from node2: no session: {reason}")
        assert [node for node, _ in announcer.sessions()] == ["node2"]

    run(test)


class Secrets:
    """An API server that has one Secret."""

    def __init__(self) -> None:
        self.status = 200
        self.data = {"leaf": b64encode(b"first").decode()}

    async def answer(self, request: web.Request) -> web.Response:
        assert request.path == "/api/v1/namespaces/net/secrets/sluice-bgp"
        return web.json_response({"data": self.data}, status=self.status)


def with_secrets(directory: Path, test: Callable[[Secrets, Passwords], Awaitable[None]]) -> None:
    async def scenario() -> None:
        secrets = Secrets()
        application = web.Application()
        application.router.add_get("/api/v1/namespaces/net/secrets/{name}", secrets.answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        config = kubeconfig_of(directory, runner.addresses[0][1])
        passwords = Passwords(config, "net")
        try:
            async with asyncio.timeout(30):
                await test(secrets, passwords)
        finally:
            await runner.cleanup()

    asyncio.run(scenario())


KEY = ("sluice-bgp", "leaf")


def test_a_password_is_read_and_a_missing_one_is_explained(tmp_path: Path) -> None:
    async def test(secrets: Secrets, passwords: Passwords) -> None:
        await passwords._read(KEY)
        assert passwords.values == {KEY: "first"}
        await passwords._read(("sluice-bgp", "other"))
        said = passwords.problems["sluice-bgp", "other"]
        assert said == "Secret net/sluice-bgp: it has no key 'other'"
        secrets.data = {"leaf": b64encode(b"x" * 81).decode()}
        await passwords._read(KEY)
        assert "a password has 1 to 80 bytes" in passwords.problems[KEY]
        secrets.data = {"leaf": b64encode(b"\xfe").decode()}
        await passwords._read(KEY)
        assert passwords.problems[KEY].endswith("leaf: a password is text in UTF-8")
        secrets.data = {"leaf": "%"}
        await passwords._read(KEY)
        assert passwords.problems[KEY]
        # The session goes on with the last good one.
        assert passwords.values == {KEY: "first"}
        secrets.status = 403
        await passwords._read(KEY)
        assert "add its name to controller.bgpPasswords" in passwords.problems[KEY]
        assert passwords.values == {}
        secrets.status = 500
        await passwords._read(KEY)
        assert "500" in passwords.problems[KEY]

    with_secrets(tmp_path, test)


def test_a_peer_is_not_used_without_its_password() -> None:
    passwords = Passwords(None, "net", has_api_server=False)

    async def test(reconciler: Reconciler, _: Announcer, spoken: Spoken) -> None:
        reconciler.update([bgp_peer(**SECRET), bgp_peer("two", address="172.30.0.2")], [])
        await until(lambda: "cannot be read without an API server" in problem(reconciler))
        assert spoken.prefixes().keys() == {"two"}
        passwords.values[KEY] = "s"
        passwords.changed()
        await until(lambda: spoken.prefixes().keys() == {"one", "two"})
        assert [each.peer.password for each in spoken.wanted] == ["s", ""]

    run(test, passwords)
