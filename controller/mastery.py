"""The role of this controller at one switch (OpenFlow 1.5.1, 6.3.6): master, or one that follows.

Open vSwitch compares the generation of each role request with the newest one that it was sent, and
refuses older ones. It forgets that when it restarts. Therefore:

- The generation also stands in a flow, next to the seals (`flows.features.state`). The node's agent
  puts it back before the restarted switch connects to anybody.
- Nobody becomes master before a renewal of the Lease that began after the connection was made has
  succeeded. A leader that was replaced while the switch was away finds that out.

Nobody writes in the role EQUAL, which every connection has at first.
"""

from contextlib import suppress
from typing import Final

from controller.leadership import Leadership
from flows.features import state
from openflow.batch import Batch, GenerationSet
from openflow.errors import NotWriter
from openflow.messages import Role
from openflow.switch import RequestRejected, Switch

NEVER: Final = 0
"""No controller with an election has written: elections begin with 1."""


class Superseded(NotWriter):
    """The switch knows a newer generation than this controller's."""

    def __init__(self, newest: int | None, generation: int) -> None:
        """`newest`: None if the switch does not say which one it knows."""
        known = f"generation {newest}" if newest is not None else "a newer generation"
        super().__init__(
            f"a controller of {known} has written to the switch, and this one is of generation"
            f" {generation}"
        )


class Mastery:
    """The role at one switch."""

    def __init__(self, switch: Switch, leadership: Leadership) -> None:
        self._switch = switch
        self._leadership = leadership
        self._connected_at = leadership.now()
        self._master_as: int | None = None
        """The generation as which this controller is master; None: it is not, or not for sure."""
        self.is_told = False
        """Whether the switch was told that this controller follows."""
        switch.may_write = leadership.holds

    def lose(self) -> None:
        """Another controller may be its master."""
        self._master_as, self.is_told = None, False

    async def take(self) -> set[int]:
        """Become the only writer of the switch; the cookies of its table `State`.

        Raises `ConnectionLost`, `NotWriter`, and `Superseded` if the switch knows a newer
        generation.
        """
        leadership = self._leadership
        if not await leadership.confirmed(self._connected_at):
            raise NotWriter("it is not certain that this controller leads")
        if leadership.elected:
            generation = leadership.generation
        else:
            # It is the only controller, whoever was there before.
            generation = _generation(await self._state())
        if self._master_as == generation:
            return await self._state()
        try:
            await self._switch.request_role(Role.MASTER, generation)
        except RequestRejected as refused:
            raise Superseded(None, generation) from refused
        held = await self._state()
        if (newest := _generation(held)) > generation:
            await self.follow()
            raise Superseded(newest, generation)
        if newest < generation:
            await self._switch.apply(Batch.of(first=[GenerationSet(generation)]))
        self._master_as = generation
        return held

    async def follow(self) -> None:
        """Tell the switch that this controller does not write. Raises `ConnectionLost`."""
        self.is_told = True
        # It refuses an older generation than it knows. Once we know it, we will tell it again.
        with suppress(RequestRejected):
            await self._switch.request_role(Role.SLAVE, self._leadership.generation)

    async def _state(self) -> set[int]:
        return {flow.cookie for flow in await self._switch.dump_flows(state.TABLE)}


def _generation(cookies: set[int]) -> int:
    """The newest one among the flows of the table."""
    said = (state.generation_of(state.TABLE, cookie) for cookie in cookies)
    return max((each for each in said if each is not None), default=NEVER)
