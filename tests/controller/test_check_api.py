"""What the controller makes of its agents' answers to `sluice check`."""

import asyncio
from typing import Any

import msgspec
from aiohttp.test_utils import TestClient, TestServer

from controller.api import Api
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from tests.controller.world import NODE, PEER, SETTINGS
from tests.flows.worlds import CLUSTER
from wire.findings import MAX_NODES, Finding, NodeFindings, Severity
from wire.questions import Answer, Checked, Failure, encode


async def served(client: TestClient[Any, Any], answers: dict[str, Answer | bytes]) -> None:
    """Be the agents: fetch one question each, and answer it."""

    async def serve(node: str, answer: Answer | bytes) -> None:
        response = await client.get(f"/v1/nodes/{node}/questions?wait=20")
        (asked,) = (await response.json())["questions"]
        body = answer if isinstance(answer, bytes) else encode(answer)
        sent = await client.post(f"/v1/nodes/{node}/answers/{asked['id']}", data=body)
        assert sent.status == 204

    await asyncio.gather(*(serve(*each) for each in answers.items()))


def ask(answers: dict[str, Answer | bytes], *nodes: str) -> tuple[int, Any]:
    async def story() -> tuple[int, Any]:
        reconciler = Reconciler(Inventory(CLUSTER))
        reconciler.update([NODE, PEER], [])
        reconciler.source_complete(True)
        api = Api(reconciler, SETTINGS)
        async with TestClient(TestServer(api.application(local=True))) as client:
            agents = asyncio.create_task(served(client, answers))
            while not all(map(api.questions.takes, answers)):
                await asyncio.sleep(0.01)
            query = "&".join(f"node={node}" for node in nodes)
            response = await client.get(f"/v1/check?{query}")
            await agents
            return response.status, await response.json()

    return asyncio.run(asyncio.wait_for(story(), 60))


def test_answers_of_agents_are_one_report() -> None:
    finding = Finding(Severity.ERROR, "clock", "it is wrong", "set it")
    status, report = ask(
        {
            # An agent speaks of its own node only.
            "node1": Checked(NodeFindings("node2", (finding,))),
            "node2": Failure("the disk is full"),
        },
        "node1", "node2", "node9",
    )  # fmt: skip
    assert status == 200
    (node,) = report["nodes"]
    assert node["node"] == "node1"
    assert node["findings"] == [msgspec.to_builtins(finding)]
    assert report["unanswered"] == {
        "node2": "Node node2: the disk is full",
        "node9": "Node node9 is unknown, or refused",
    }


def test_agent_that_answers_nonsense_is_named() -> None:
    hidden = b'{"type":"checked","found":{"node":"a","unchecked":["\\u001b[2J"]}}'
    for answer in (hidden, b"x" * (1 << 19), b'{"type":"checked","found":{"node":7}}'):
        _, report = ask({"node1": answer}, "node1")
        assert report["nodes"] == []
        assert "its answer cannot be read" in report["unanswered"]["node1"]


def test_number_of_nodes_is_bounded() -> None:
    status, refusal = ask({}, *(f"n{number}" for number in range(MAX_NODES + 1)))
    assert (status, refusal) == (400, {"error": "node: 65 nodes, and 64 are the most at a time"})
    assert ask({})[0] == 400


def test_agent_that_takes_no_questions_is_named() -> None:
    _, report = ask({}, "node1")
    assert "its agent takes no questions" in report["unanswered"]["node1"]
