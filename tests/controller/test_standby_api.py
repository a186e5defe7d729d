"""What a controller answers that does not lead: to agents everything, to people where to ask."""

import asyncio

import pytest
from aiohttp.test_utils import TestClient, TestServer

from controller import leadership as of_leadership
from controller.api import Api
from controller.inventory import Inventory
from controller.leadership import Leadership
from controller.reconciler import Reconciler
from controller.usefulness import SILENCE
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER

REPORTS = ("/v1/status", "/v1/services", "/v1/nodes/node1/flows", "/v1/cluster")
OTHERS = ("/healthz", "/readyz", "/metrics", "/v1/leader", "/v1/nodes/node1/config")


class Standby:
    """A controller that has read the cluster, with a clock of the test's own."""

    def __init__(self, silence: float = 0.0) -> None:
        self.now = 1_000.0
        self.leadership = Leadership(elected=True, clock=lambda: self.now)
        self.reconciler = Reconciler(Inventory(CLUSTER), leadership=self.leadership)
        self.reconciler.update([NODE, PEER], [])
        self.reconciler.source_complete(True)
        self.api = Api(self.reconciler, SETTINGS, silence=lambda: silence)

    async def ask(self, *paths: str) -> list[tuple[int, str]]:
        await self.reconciler.listed.wait()
        async with TestClient(TestServer(self.api.application(local=True))) as client:
            return [
                (answer.status, await answer.text())
                for path in paths
                for answer in [await client.get(path)]
            ]


def test_reports_are_the_leaders() -> None:
    async def story() -> None:
        standby = Standby()
        standby.leadership.follows("other_1234")
        for status, text in await standby.ask(*REPORTS):
            assert status == 421
            assert "other_1234 does" in text

    asyncio.run(story())


def test_agents_and_probes_are_answered_by_each() -> None:
    async def story() -> None:
        standby = Standby()
        standby.leadership.follows("other_1234")
        assert {status for status, _ in await standby.ask(*OTHERS)} == {200}

    asyncio.run(story())


def test_who_has_just_started_does_not_answer_for_a_leader_that_it_does_not_know_yet() -> None:
    async def story() -> None:
        standby = Standby()
        ((status, text),) = await standby.ask("/v1/status")
        assert status == 421
        assert "not known yet" in text

    asyncio.run(story())


@pytest.mark.parametrize("before", ["", "other_1234"])
def test_without_a_leader_each_answers_with_what_it_knows(before: str) -> None:
    async def story() -> None:
        standby = Standby()
        standby.leadership.follows(before)
        standby.leadership.follows("")
        standby.now += of_leadership.ALONE + 1
        ((status, text),) = await standby.ask("/v1/status")
        assert status == 200
        assert '"leader":false' in text

    asyncio.run(story())


def test_leader_answers_itself() -> None:
    async def story() -> None:
        standby = Standby()
        standby.leadership.grant(1, standby.now + 3, standby.now)
        ((status, text),) = await standby.ask("/v1/status")
        assert status == 200
        assert '"leader":true' in text

    asyncio.run(story())


def test_standby_without_news_sends_agents_to_another_controller() -> None:
    async def story() -> None:
        standby = Standby(silence=SILENCE + 1)
        ((status, _),) = await standby.ask("/v1/nodes/node1/config")
        # While nobody leads, old news are better than none.
        assert status == 200
        standby.leadership.follows("other_1234")
        ((status, text),) = await standby.ask("/v1/nodes/node1/config")
        assert status == 503
        assert "ask another one" in text

    asyncio.run(story())
