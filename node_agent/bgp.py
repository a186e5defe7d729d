"""The node's own BGP speaker, for BGPPeers with `from: Nodes`. The controller says what it tells.

While no controller answers, the peers keep what they were told last.
"""

import asyncio
import random
from typing import Final

from bgp.speaker import Speaker
from node_agent.controller_link import NodeRefused, Unreachable, bgp_documents
from node_agent.controllers import TAKEN_OR_UNKNOWN, ControllerApi, Controllers, Told
from wire import paths
from wire.bgp import NodeSessions

_LOOK: Final = 2.0
"""Seconds between two looks at whether sessions have changed."""
_REPEAT: Final = 30.0
"""Seconds after which they are told again."""


class NodeSpeaker:
    """Follows the controllers, and tells them how it stands with the peers."""

    def __init__(self) -> None:
        self._speaker = Speaker()
        self._had_peers = False

    async def run(self, controllers: Controllers) -> None:
        """Until cancelled: then the sessions end, and peers with graceful restart keep routes."""
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(self._follow(controllers))
                for controller in controllers.each:
                    tasks.create_task(self._report_to(controller))
        finally:
            await self._speaker.close()

    async def _follow(self, controllers: Controllers) -> None:
        async for answer in bgp_documents(controllers):
            if not isinstance(answer, NodeRefused | Unreachable):
                self._had_peers |= bool(answer.peers)
                self._speaker.want(answer.peers, answer.own_ranges)

    async def _report_to(self, controller: ControllerApi) -> None:
        told = Told(controller, paths.BGP_SESSIONS, TAKEN_OR_UNKNOWN, _REPEAT)
        while True:
            await asyncio.sleep(_LOOK * random.uniform(0.8, 1.2))  # noqa: S311  no secret
            # A node that never had a peer has nothing to say.
            if self._had_peers:
                await told.update(NodeSessions(tuple(self._speaker.sessions())))
