"""A few at a time, but nobody waits long for somebody who waits."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Turns:
    """Lets some callers work at the same time, in the order in which they came.

    Work that shares processors ends sooner one after another: the first is done early, and the last
    not later. But a turn counts for `longest` seconds only. So those who then still wait, for
    somebody else's answer, keep nobody waiting.
    """

    def __init__(self, at_once: int, longest: float) -> None:
        self._free = asyncio.Semaphore(at_once)
        self._longest = longest

    @asynccontextmanager
    async def turn(self) -> AsyncIterator[None]:
        """Wait for a turn, which ends with the context or when its time is over."""
        await self._free.acquire()
        over = asyncio.get_running_loop().call_later(self._longest, self._free.release)
        try:
            yield
        finally:
            # A timer that is not cancelled has fired.
            if over.when() > asyncio.get_running_loop().time():
                over.cancel()
                self._free.release()
