"""What a switch holds, by its seals: the programs as they are now, or as they were a moment ago.

So whoever takes over sends only the changes since then.
"""

import asyncio
from collections.abc import Collection
from typing import Final, NamedTuple

from controller.desired import Desired
from controller.journal import Journal
from flows.diff import Delta
from flows.features import state

LOOK: Final = 0.05
LOOKS: Final = 10
"""So often, each `LOOK` seconds, one that takes over looks whether it knows the state that the
switch is sealed as: it may have had the last changes of the cluster later than the leader."""


class Known(NamedTuple):
    """The state of a switch."""

    shared_version: int
    """Of the shared program."""
    seal: int
    """The cookie of the node's own seal; 0: it is that of an older program."""
    steps: list[Delta]
    """The changes of the node's own program since then, which `journal` has too."""


async def find(
    desired: Desired, node: str, journal: Journal, held: Collection[int]
) -> Known | None:
    """The state that seals among these cookies say; None: none that is known."""
    is_sealed = any(state.is_seal(state.TABLE, cookie) for cookie in held)
    for _ in range(LOOKS):
        if (known := _find(desired, node, journal, held)) is not None:
            return known
        if not is_sealed or not journal.remembers:
            return None
        await asyncio.sleep(LOOK)
    return None


def _find(desired: Desired, node: str, journal: Journal, held: Collection[int]) -> Known | None:
    version = desired.sealed_version(held)
    if version is None:
        return None
    own = desired.program(node)
    if own.seal.cookie in held:
        journal.lose()
        return Known(version, own.seal.cookie, [])
    steps = journal.resume(lambda content: state.seal(node, *content).cookie in held)
    return None if steps is None else Known(version, 0, steps)
