"""A few ADDs at a time."""

import asyncio
from contextlib import suppress

from node_agent.turns import Turns

LONG = 3600.0


async def _idle() -> None:
    """Let everybody go as far as they can."""
    for _ in range(20):
        await asyncio.sleep(0)


async def _works(turns: Turns, name: str, began: list[str], end: asyncio.Event) -> None:
    async with turns.turn():
        began.append(name)
        await end.wait()


def test_two_work_and_the_others_follow_in_order() -> None:
    async def main() -> None:
        turns, began = Turns(2, LONG), list[str]()
        ends = {name: asyncio.Event() for name in "abcd"}
        tasks = [asyncio.create_task(_works(turns, n, began, end)) for n, end in ends.items()]
        await _idle()
        assert began == ["a", "b"]
        ends["b"].set()
        await _idle()
        assert began == ["a", "b", "c"]
        for end in ends.values():
            end.set()
        await asyncio.gather(*tasks)
        assert began == ["a", "b", "c", "d"]

    asyncio.run(main())


def test_whoever_waits_for_an_answer_that_never_comes_keeps_nobody_waiting() -> None:
    async def main() -> None:
        turns, began = Turns(1, 0.01), list[str]()
        never = asyncio.Event()
        tasks = [asyncio.create_task(_works(turns, name, began, never)) for name in "abc"]
        async with asyncio.timeout(60):
            while len(began) < 3:
                await asyncio.sleep(0.001)
        never.set()
        await asyncio.gather(*tasks)
        assert turns._free._value == 1, "each turn is given back once"

    asyncio.run(main())


def test_a_failed_and_a_cancelled_turn_are_given_back() -> None:
    async def main() -> None:
        turns, began = Turns(1, LONG), list[str]()
        with suppress(ValueError):
            async with turns.turn():
                raise ValueError
        never = asyncio.Event()
        first, second = (
            asyncio.create_task(_works(turns, name, began, never)) for name in ("a", "b")
        )
        await _idle()
        for task in (first, second):
            task.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        assert began == ["a"]
        async with asyncio.timeout(60), turns.turn():
            pass
        assert turns._free._value == 1

    asyncio.run(main())
