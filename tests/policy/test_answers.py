"""What the controller answers to questions about policies, and the copy that commands work with."""

import asyncio
from typing import Any

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.api import Api
from controller.inventory import Inventory
from controller.offline.cluster_copy import CopyError, copy_of, load
from controller.policy_reports.report import PodPolicies, Verdict
from controller.reconciler import Reconciler
from controller.sources.objects import from_manifest
from tests.controller.world import SETTINGS
from tests.flows.worlds import CLUSTER
from tests.policy.controlled import ports_of
from tests.policy.evaluator import Cluster
from tests.policy.generator import generate
from tests.policy.manifests import allow, client, cluster, labels, server


def fill(inventory: Inventory, given: Cluster) -> Inventory:
    for each in given.objects:
        inventory.set_object(from_manifest(each))
    inventory.settle()
    for node in given.nodes:
        inventory.set_ports(node, ports_of(given, node))
    inventory.settle()
    return inventory


def copied(inventory: Inventory) -> list[bytes]:
    async def lines() -> list[bytes]:
        return [line async for line in copy_of(inventory)]

    return asyncio.run(lines())


@pytest.mark.parametrize("seed", range(12))
def test_copy_has_the_same_policies_in_its_view(seed: int) -> None:
    given = fill(Inventory(CLUSTER), generate(seed))
    view, copy = given.view, load(copied(given)).view
    for part in ("nodes", "attachments", "isolations", "walks", "peer_sets", "port_sets"):
        assert getattr(copy, part) == getattr(view, part)
    members = {name: dict(some) for name, some in view.peer_members.items()}
    assert {name: dict(some) for name, some in copy.peer_members.items()} == members


def test_copy_is_of_one_moment() -> None:
    given = fill(Inventory(CLUSTER), cluster(client(), server(), allow()))

    async def story() -> list[bytes]:
        lines = []
        async for line in copy_of(given):
            lines.append(line)
            given.remove_object("NetworkPolicy", "a", "allow")
            given.settle()
        return lines

    assert len(load(asyncio.run(story())).policies.objects) == 1


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], "the controller's copy cannot be read: Input data was truncated"),
        ([b'{"version": 7}'], "cannot be read: Object missing required field `podRange`"),
        ([b"<html>"], "cannot be read: JSON is malformed"),
    ],
)
def test_copy_that_cannot_be_read_is_refused(lines: list[bytes], sentence: str) -> None:
    with pytest.raises(CopyError, match=sentence):
        load(lines)


def test_copy_of_another_version_is_refused() -> None:
    header, *rest = copied(Inventory(CLUSTER))
    content = msgspec.json.decode(header)
    with pytest.raises(CopyError, match="copy has version 9, and this command knows 1"):
        load([msgspec.json.encode(content | {"version": 9}), *rest])


def test_answers() -> None:
    given = cluster(
        client(), server(), allow(ingress=[{"from": [{"podSelector": labels(app="other")}]}])
    )

    async def story() -> None:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update(map(from_manifest, given.objects), [])
        api = Api(reconciler, SETTINGS)
        async with TestClient(TestServer(api.application(local=True))) as http:

            async def get(path: str, **query: str) -> tuple[int, Any]:
                response = await http.get(path, params=query)
                return response.status, await response.read()

            for path in ("/v1/policy?pod=a/server", "/v1/cluster"):
                assert (await get(path))[0] == 503
            reconciler.source_complete(True)
            for node in given.nodes:
                reconciler.inventory.set_ports(node, ports_of(given, node))
            status, body = await get("/v1/policy", pod="a/server")
            found = msgspec.json.decode(body, type=PodPolicies)
            assert (status, found.node, found.version) == (200, "node2", 1)
            ends = {"from": "a/client", "to": "a/server"}
            status, body = await get("/v1/policy", **ends, port="80")
            verdict = msgspec.json.decode(body, type=Verdict)
            assert (status, verdict.accepted, verdict.protocol) == (200, False, "TCP")
            wrong = (
                ({"pod": "a/nobody"}, 404, "there is no Pod a/nobody"),
                ({"from": "a/client"}, 400, "to: give this, or pod"),
                (ends | {"port": "x"}, 404, "PORT x: a/server has no port of this name for TCP"),
                (ends | {"port": "8", "protocol": "GRE"}, 400, "protocol: none of TCP, UDP, SCTP"),
            )
            for query, status, sentence in wrong:
                answer = await get("/v1/policy", **query)
                assert answer[0] == status
                assert sentence in msgspec.json.decode(answer[1])["error"]
            status, body = await get("/v1/cluster")
            assert load(body.splitlines()).view.walks == reconciler.inventory.view.walks
        # Of the whole cluster: nothing for whoever comes by TCP.
        async with TestClient(TestServer(api.application(local=False))) as http:
            for path in ("/v1/policy?pod=a/server", "/v1/cluster"):
                assert (await http.get(path)).status == 404

    asyncio.run(story())
