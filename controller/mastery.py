"""The role of this controller at one switch (OpenFlow 1.5.1, 6.3.6): master, or one that follows.

Open vSwitch compares the generation of each role request with the newest one that it was sent, and
refuses older ones. It forgets that when it restarts. Therefore:

- The generation also stands in a flow, next to the seals (`flows.features.state`). The node's agent
  puts it back before the restarted switch connects to anybody.
- A master writes only after a renewal of the Lease that began after it became master has succeeded.
  So it was master while it held the Lease, and whoever holds it later has to become master, which
  ends its own role. This holds whatever generations say: docs/election.md.

Nobody writes in the role EQUAL, which every connection has at first.
"""

from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from typing import Final

import structlog

from controller.leadership import Leadership
from flows.features import state
from openflow.batch import Batch, GenerationSet
from openflow.errors import NotWriter
from openflow.messages import Role
from openflow.switch import RequestRejected, Switch

log = structlog.get_logger()

NEVER: Final = 0
"""No controller with an election has written: elections begin with 1."""


class Superseded(NotWriter):
    """The switch refuses the generation of this controller: it knows a newer one."""

    def __init__(self, generation: int, known: int | None) -> None:
        """`known`: the generation that the switch says it knows; None: it does not say."""
        super().__init__(f"the switch refuses generation {generation}: it knows {known or 'more'}")
        self.generation = generation
        self.known = known


class Mastery:
    """The role at one switch."""

    def __init__(self, switch: Switch, leadership: Leadership) -> None:
        self._switch = switch
        self._leadership = leadership
        self._master_as: int | None = None
        """The generation as which this controller is master; None: it is not, or not for sure."""
        self._taking: int | None = None
        """The generation as which this controller is becoming master."""
        self.is_told = False
        """Whether the switch was told that this controller follows."""
        switch.may_write = self.may_write

    def may_write(self) -> bool:
        """Whether this controller is master, in a term that goes on."""
        return self._master_as is not None and self._is_of_term(self._master_as)

    def lose(self) -> None:
        """Another controller may be its master."""
        self._master_as, self._taking, self.is_told = None, None, False

    async def become(self, turn: AbstractAsyncContextManager[object] | None = None) -> None:
        """Become the only writer of the switch. `turn`: entered for the request.

        Raises `ConnectionLost`, `NotWriter`, and `Superseded`.
        """
        leadership = self._leadership
        # Without an election it is the only controller, whoever was there before.
        elected = leadership.elected
        if self.may_write():
            return
        generation = leadership.generation if elected else _generation(await self._state())
        self._taking = generation
        self._check_term()
        async with turn or nullcontext():
            generation = await self._request(generation)
        if not await leadership.confirmed(leadership.now()):
            raise NotWriter("it is not certain that this controller leads")
        self._check_term()
        self._master_as = generation

    async def take_over(self) -> set[int]:
        """Become the only writer, and say so in table `State`; returns its cookies.

        Raises as `become` does.
        """
        await self.become()
        held = await self._state()
        generation = self._master_as
        if generation is None:
            raise NotWriter("the term of this controller is over")
        newest = _generation(held)
        if newest > generation:
            # The Lease says that this controller leads, so the number is what is wrong: the Lease
            # was restored from a backup, or somebody has written to the switch.
            log.warning("a newer generation is overwritten", was=newest, generation=generation)
        if newest != generation <= state.MOST_GENERATIONS:
            await self._switch.apply(Batch.of(first=[GenerationSet(generation)]))
        return held

    async def _request(self, generation: int) -> int:
        """Become master; the generation as which."""
        try:
            await self._switch.request_role(Role.MASTER, generation)
        except RequestRejected:
            known: int | None = None
            with suppress(RequestRejected):
                _, known = await self._switch.request_role(Role.NOCHANGE, 0)
            if self._leadership.elected or known is None:
                raise Superseded(generation, known) from None
            # The flow that says it was deleted.
            with suppress(RequestRejected):
                await self._switch.request_role(Role.MASTER, known)
                return known
            raise Superseded(known, None) from None
        return generation

    def _is_of_term(self, generation: int) -> bool:
        leadership = self._leadership
        is_current = not leadership.elected or leadership.generation == generation
        return is_current and leadership.holds()

    def _check_term(self) -> None:
        """Raise `NotWriter` if the term in which `become` began is over."""
        if self._taking is None or not self._is_of_term(self._taking):
            raise NotWriter("the term of this controller is over")

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
