"""Questions that nobody means well: each gets one sentence, and the controller goes on."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller.api import Api
from controller.reconciler import Reconciler
from tests.controller.explained_cluster import explained_cluster
from tests.controller.world import SETTINGS

LONG = "x" * 4_000
ODD = (
    "", " ", "\0", "/", "//", "a/b/c/d", "..", "%", "\u202e", "'\"<script>", "-1", "1e999",
    "0x" + "f" * 17, "9" * 3_900, "cookie=", "cookie=0x", "cookie=" * 500, "table=,priority=",
    "table=0,priority=" + "9" * 3_000, 'in_port="' * 300, "actions=" * 400, "::1%" + "x" * 100,
    "fe80::1%eth0", "0.0.0.0", "255.255.255.255", "pod//", "pod/shop/", "node/\0", LONG,
    "nan", "inf", "-inf", "\u0663\u0663", "\u00b2", "1_0", " 80 ", "svc/", "svc/a/b/c", "-w/etc/x",
    "10.244.1.8/32", "10.244.1.8,actions=drop", "010.244.1.8", "1:2:3", "[::1]:80", ":", "outside/",
)  # fmt: skip
QUESTIONS = (
    ("/v1/explain", "what"), ("/v1/explain?what=node/n1", "node"), ("/v1/wait", "object"),
    ("/v1/wait?object=node/n1", "id"), ("/v1/flows", "node"), ("/v1/flows?node=n1", "table"),
    ("/v1/flows?node=n1", "pod"), ("/v1/flows?node=n1", "service"),
    ("/v1/flows?node=n1", "policy"), ("/v1/flows?node=n1", "cookie"), ("/v1/counters", "node"),
    ("/v1/trace?to=10.244.1.8", "from"), ("/v1/trace?from=shop/api", "to"),
    ("/v1/trace?from=shop/api&to=svc/shop/api", "port"),
    ("/v1/trace?from=shop/api&to=10.244.1.8&port=80", "protocol"),
    ("/v1/trace?from=shop/api&to=10.244.1.8&port=80", "sourcePort"),
    ("/v1/trace?from=shop/api&to=svc/shop/api&port=a", "endpoint"),
    ("/v1/trace?from=outside&to=svc/shop/api&port=a", "node"),
    ("/v1/capture", "pod"), ("/v1/capture?pod=shop/api", "filter"),
    ("/v1/capture?pod=shop/api", "packets"), ("/v1/capture?pod=shop/api", "seconds"),
    ("/v1/check", "node"), ("/v1/policy", "pod"), ("/v1/policy?to=shop/api&port=80", "from"),
    ("/v1/policy?from=shop/api&port=80", "to"), ("/v1/policy?from=shop/api&to=shop/api", "port"),
    ("/v1/policy?from=shop/api&to=shop/api&port=80", "protocol"),
    ("/v1/services/shop/api", "node"), ("/v1/counters", "after"), ("/v1/counters", "what"),
    ("/v1/denials", "since"),
)  # fmt: skip


@pytest.mark.parametrize(("path", "name"), QUESTIONS, ids=lambda value: value)
def test_odd_question_gets_one_sentence(tmp_path: Path, path: str, name: str) -> None:
    async def story() -> None:
        reconciler = Reconciler(explained_cluster(tmp_path))
        reconciler.source_complete(True)
        async with asyncio.timeout(60):
            await reconciler.listed.wait()
            api = Api(reconciler, SETTINGS).application(local=True)
            async with TestClient(TestServer(api)) as client:
                for odd in ODD:
                    async with client.get(path, params={name: odd}) as response:
                        answer = msgspec.json.decode(await response.read())
                    assert response.status in {200, 400, 404, 503, 504}, (odd, answer)
                    if response.status != 200:
                        assert "\n" not in answer["error"]

    asyncio.run(story())
