"""What an agent does with questions: how many at a time, and what bounds each."""

import asyncio
from typing import Any

import pytest

from node_agent import questions
from node_agent.checks.local import CheckError
from node_agent.questions import answerer
from wire.questions import CheckNode

NOBODY: Any = None


def test_checks_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(questions, "_TURN", 0.01)

    async def story() -> None:
        gate = asyncio.Event()

        async def check(*_: object) -> str:
            await gate.wait()
            return "checked"

        monkeypatch.setattr(questions, "answer_check", check)
        answer: Any = answerer(NOBODY, NOBODY, NOBODY, NOBODY, lambda: None)
        async with asyncio.timeout(30):
            first = asyncio.create_task(answer(CheckNode()))
            await asyncio.sleep(0)
            for _ in range(3):
                with pytest.raises(CheckError, match="another check runs on this node"):
                    await answer(CheckNode())
            gate.set()
            assert await first == "checked"
            # A check that failed to get its turn has left nothing.
            assert await answer(CheckNode()) == "checked"

    asyncio.run(story())
