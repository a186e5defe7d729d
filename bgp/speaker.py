"""A speaker: keeps every peer told of its routes, whatever ExaBGP and the peers do."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from ipaddress import IPv4Network
from typing import Any, Final

import structlog

from bgp.commands import (
    ECHO,
    END_OF_RIB,
    SEND_AGAIN,
    Path,
    announce,
    attributes,
    paths,
    withdraw,
)
from bgp.events import Event, Up
from bgp.process import BATCH, Process, SpeakerError
from bgp.session import SessionState
from wire.bgp import MAX_PEERS, Peer, PeerAnnouncements, Route, Session

log = structlog.get_logger()

ECHO_SECONDS: Final = 10.0
"""Between two commands; a process that does not answer is replaced."""
FIRST_PAUSE: Final = 0.5
LONGEST_PAUSE: Final = 30.0
"""Seconds before a process that has ended is started again; each pause is twice the last one."""
SOUND_SECONDS: Final = 60.0
"""A process that has lived for so long is started again after `FIRST_PAUSE`."""
REST_SECONDS: Final = 60.0
"""After too many sessions in a short time."""
FLUSH_SECONDS: Final = 0.3
"""For which a process lives on after its last withdrawal: its answer comes before the message."""


class Conversation:
    """One peer: its process, which is replaced when it ends, and what it was told."""

    def __init__(
        self,
        peer: Peer,
        own_ranges: Sequence[IPv4Network],
        changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.state = SessionState(peer.name, clock())
        self.pid: int | None = None
        """Of ExaBGP."""
        self._connection = peer.connection
        self._own_ranges = own_ranges
        self._changed = changed
        self._clock = clock
        self._routes: tuple[Route, ...] = ()
        self._attributes = ""
        self._made: tuple[bool, dict[Path, str]] | None = None
        """The same as `_told` for what is wanted, for peers with ADD-PATH or without."""
        self._told: dict[Path, str] = {}
        """By path, what was announced: next hop and attributes."""
        self._wake = asyncio.Event()
        self._new_session = False
        """The session has begun, and its routes were not all sent."""
        self._retired = False
        self._lost = False
        """The process will say nothing more."""

    def want(self, wanted: PeerAnnouncements) -> None:
        """What the peer is to be told."""
        self._routes = wanted.routes
        self._attributes = attributes(wanted.peer)
        self._made = None
        self._wake.set()

    def retire(self) -> None:
        """Withdraw everything, then end; `run` returns."""
        self._retired = True
        self._wake.set()

    async def run(self) -> None:
        """Until cancelled, or retired."""
        pause = FIRST_PAUSE
        while not self._retired:
            started = time.monotonic()
            process, self._lost = Process(self._take), False
            rest = 0.0
            try:
                await process.start(self._connection, self._own_ranges)
                self.pid = process.pid
                rest = await self._talk(process)
                why = "its sessions end all the time, so it is left alone for a while"
            except (SpeakerError, OSError) as error:
                why = str(error)
            finally:
                self.pid = None
                await _in_any_case(process.stop())
            if self._retired:
                return
            self._told.clear()
            self.state.stopped(why, self._clock())
            self._changed()
            if time.monotonic() - started > SOUND_SECONDS:
                pause = FIRST_PAUSE
            log.warning("a BGP speaker ended", peer=self._connection.name, problem=why)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(rest or pause):
                    await self._until_retired()
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _until_retired(self) -> None:
        while not self._retired:
            self._wake.clear()
            await self._wake.wait()

    async def _talk(self, process: Process) -> float:
        """Tell what is new. Returns seconds to rest: the peer's sessions end all the time."""
        while True:
            self._wake.clear()
            if self._lost:
                await process.send([ECHO])  # says why
            if self.state.is_restless(self._clock()):
                return REST_SECONDS
            await self._tell(process)
            if self._retired:
                await asyncio.sleep(FLUSH_SECONDS)
                return 0.0
            try:
                async with asyncio.timeout(ECHO_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                await process.send([ECHO])

    async def _tell(self, process: Process) -> None:
        """Bring the peer up to date, in batches; what is wanted may change meanwhile."""
        begins, self._new_session = self._new_session, False
        due = self._due()
        while due:
            await self._send(process, due[:BATCH])
            # What has come meanwhile may have changed what is due.
            due = self._due() if self._wake.is_set() else due[BATCH:]
            self._wake.clear()
        if begins and self.state.is_established:
            # A peer that took several next hops in its last session may have only some of them.
            again = [] if self.state.add_path else [SEND_AGAIN]
            await process.send([*again, END_OF_RIB])  # refused if the session has just ended
        if self.state.told != len(self._told):
            self.state.told = len(self._told)
            self._changed()

    def _due(self) -> list[tuple[Path, str]]:
        """All changes; an empty text withdraws.

        Where one next hop takes the place of another, the prefix is never without one, in whichever
        order ExaBGP sends the changes: the path `FIRST` is replaced, not withdrawn.
        """
        wanted = self._wanted()
        due = [(path, text) for path, text in wanted.items() if self._told.get(path) != text]
        due += [(path, "") for path in self._told if path not in wanted]
        return due

    def _wanted(self) -> dict[Path, str]:
        if self._retired:
            return {}
        # Every session begins with one next hop of each prefix: what the peer takes is not known.
        several = self.state.is_established and bool(self.state.add_path)
        if self._made is None or self._made[0] != several:
            made = paths(self._routes, several=several)
            texts = {path: f"{next_hop} {self._attributes}" for path, next_hop in made.items()}
            self._made = several, texts
        return self._made[1]

    async def _send(self, process: Process, due: Sequence[tuple[Path, str]]) -> None:
        commands = []
        for path, text in due:
            next_hop, _, with_attributes = (text or self._told[path]).partition(" ")
            commands.append(
                announce(path, next_hop, with_attributes) if text else withdraw(path, next_hop)
            )
        answers = await process.send(commands)
        for (path, text), command, done in zip(due, commands, answers, strict=True):
            if not done:
                raise SpeakerError(f"ExaBGP refused the command {command}")
            if text:
                self._told[path] = text
            else:
                del self._told[path]

    def _take(self, event: Event | None) -> None:
        if event is None:
            self._lost = True
        else:
            self.state.take(event, self._clock())
        if isinstance(event, Up):
            self._new_session = True
        self._wake.set()
        self._changed()


async def _in_any_case(work: Coroutine[Any, Any, None]) -> None:
    """Do it to its end, also if that is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        await task
        raise


class Speaker:
    """All peers of one program."""

    def __init__(
        self,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`changed` is called when `sessions` may have changed. `clock`: seconds since 1970."""
        self._changed = changed
        self._clock = clock
        self._own_ranges: tuple[IPv4Network, ...] = ()
        self._conversations: dict[Peer, Conversation] = {}
        """By `Peer.connection`."""
        self._tasks: dict[Peer, asyncio.Task[None]] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def want(self, wanted: Sequence[PeerAnnouncements], own_ranges: Sequence[IPv4Network]) -> None:
        """The peers and their routes, in place of those before. Needs the event loop.

        Of more than `MAX_PEERS` the first ones count. What a peer announces of `own_ranges` is
        reported.
        """
        self._own_ranges = tuple(own_ranges)
        by_connection = {each.peer.connection: each for each in wanted[:MAX_PEERS]}
        places = {(each.address, each.port) for each in by_connection}
        for connection in self._conversations.keys() - by_connection.keys():
            conversation = self._conversations.pop(connection)
            task = self._tasks.pop(connection)
            if (connection.address, connection.port) in places:
                # Only how to speak with it has changed: it keeps the routes if it can.
                task.cancel()
            else:
                conversation.retire()
            self._ending.add(task)
            task.add_done_callback(self._ended)
        for connection, each in by_connection.items():
            if connection not in self._conversations:
                conversation = Conversation(each.peer, self._own_ranges, self._changed, self._clock)
                self._conversations[connection] = conversation
                self._tasks[connection] = asyncio.create_task(conversation.run())
            self._conversations[connection].want(each)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._ending.discard(task)

    def sessions(self) -> list[Session]:
        """How it stands with each peer, by its name."""
        now = self._clock()
        found = [each.state.report(now) for each in self._conversations.values()]
        return sorted(found, key=lambda session: session.peer)

    def pids(self) -> dict[str, int]:
        """By peer, the process id of its ExaBGP."""
        return {
            connection.name: conversation.pid
            for connection, conversation in self._conversations.items()
            if conversation.pid is not None
        }

    async def close(self) -> None:
        """End all processes; peers with graceful restart keep the routes for a while."""
        tasks = [*self._tasks.values(), *self._ending]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._conversations.clear()
        self._tasks.clear()
