"""Keeps one replica's part in the election: reads, takes and renews the Lease.

Every request has a time within which it must be answered, so a silent API server ends a term as a
dead one does. `controller.election` decides, this loop only asks.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Protocol

import msgspec
import structlog
from kubernetes.aio import client
from msgspec import Meta

from controller.election import DURATION, LONGEST_DURATION, MOST_TRANSITIONS, Election, Lease
from controller.kubernetes_api import FAULTS, ApiError, read, sentence
from controller.leadership import Leadership
from controller.token_review import Connect
from settings import Election as Settings

log = structlog.get_logger()

PERIOD: Final = 1.0
"""Seconds from one request to the next one."""
SHORTEST_PERIOD: Final = 0.05
"""The same, when somebody wants to be sure at once."""
TIMEOUT: Final = 2.0
"""Seconds in which a request must be answered. A second one still fits into a term."""
LONGEST_USE: Final = 60.0
"""Seconds for which credentials are used before they are read from disk again."""
ADDRESS: Final = "sluice.dev/address"
"""The annotation that says where the other controllers reach the leader."""


class Judge(Protocol):
    """Says whether this replica should lead: `controller.usefulness`."""

    def delay(self) -> float | None:
        """As `Election.due` has it."""

    def should_step_down(self) -> str:
        """Why; empty: it should not."""


class LeaseLoop:
    """Tells a `Leadership` when this replica may write."""

    def __init__(
        self,
        settings: Settings,
        connect: Connect,
        election: Election,
        leadership: Leadership,
        usefulness: Judge,
        report: Callable[[str], None] = lambda _: None,
    ) -> None:
        """`connect` makes a client. `report` is told what is wrong; empty: nothing any more."""
        self._path = f"/apis/coordination.k8s.io/v1/namespaces/{settings.namespace}/leases"
        self._name = settings.name
        self._connect = connect
        self.election = election
        self._leadership = leadership
        self._usefulness = usefulness
        self._report = report
        self._object: dict[str, Any] = {}
        """The Lease as it was read, with all that others have written into it."""
        self._api: client.ApiClient | None = None
        self._connected_at = 0.0
        self._problem = ""
        self._turn = asyncio.Lock()
        """One request at a time."""
        self._gives_back = False
        """Whether the Lease, if it is ours, is to be given back instead of renewed."""
        self._is_over = False

    async def run(self) -> None:
        """Take part; until cancelled."""
        try:
            while True:
                began = self._leadership.now()
                if self._leadership.holds() and (why := self._usefulness.should_step_down()):
                    log.warning("stepping down", reason=why)
                    await self._release()
                async with self._turn:
                    if not self._is_over:
                        await self._step()
                spent = self._leadership.now() - began
                await asyncio.sleep(SHORTEST_PERIOD - spent)
                await self._leadership.doubted(PERIOD - max(spent, SHORTEST_PERIOD))
        finally:
            await self._disconnect()

    async def release(self) -> None:
        """Stop writing for good, and give the Lease back, so that nobody has to wait for it."""
        self._is_over = True
        await self._release()

    async def _release(self) -> None:
        self._leadership.withdraw()
        self._gives_back = True
        async with self._turn:
            await self._step()

    async def _step(self) -> None:
        """Read the Lease if it is not known, and write it if that is due."""
        election = self.election
        try:
            async with asyncio.timeout(TIMEOUT):
                try:
                    await self._read_and_write()
                except ApiError as error:
                    # Somebody was faster, or has deleted it. Perhaps it is ours nevertheless.
                    if error.code not in {404, 409}:
                        raise
                    election.refused()
                    await self._read_and_write()
            self._note(election.problem)
        except FAULTS as error:
            election.refused()
            await self._disconnect()
            self._note(sentence(error))
        self._tell()

    async def _read_and_write(self) -> None:
        election, leadership = self.election, self._leadership
        # A leader knows it from its last renewal, and others look at each step.
        if not election.known or not election.holds(leadership.now()):
            await self._get()
        if self._gives_back:
            await self._give_back()
            return
        now = leadership.now()
        wanted = election.due(now, wall=time.time(), delay=self._usefulness.delay())
        if wanted is not None and leadership.wanted_generation:
            wanted = election.raised(leadership.wanted_generation) or wanted
            leadership.wanted_generation = 0
        if wanted is not None:
            await self._put(wanted, now)

    async def _give_back(self) -> None:
        if (wanted := self.election.release()) is not None:
            await self._put(wanted, self._leadership.now())
            log.info("the Lease is given back")
        self._gives_back = False

    def _tell(self) -> None:
        """Tell what follows from what is known."""
        election, leadership = self.election, self._leadership
        leadership.follows(election.leader(leadership.now()))
        term = election.term
        if term is None or self._gives_back:
            leadership.withdraw()
        elif election.holds(leadership.now()):
            leadership.others_until = election.others_until
            leadership.grant(term.generation, term.until, term.renewed)
        leadership.learn(election.generation)

    async def _get(self) -> None:
        try:
            answer = await read(await self._client(), "GET", f"{self._path}/{self._name}")
        except ApiError as error:
            if error.code != 404:
                raise
            self._object = {}
            self.election.seen(None, self._leadership.now())
            return
        self.election.seen(self._take(answer), self._leadership.now())

    async def _put(self, wanted: Lease, asked: float) -> None:
        body = _written(self._object, self._name, wanted, self.election.lease)
        api = await self._client()
        if wanted.version:
            answer = await read(api, "PUT", f"{self._path}/{self._name}", body)
        else:
            answer = await read(api, "POST", self._path, body)
        self.election.written(self._take(answer), asked, self._leadership.now())

    def _take(self, answer: bytes) -> Lease:
        found = json.loads(answer)
        lease = lease_of(found)
        self._object = found
        return lease

    async def _client(self) -> client.ApiClient:
        now = self._leadership.now()
        if self._api is not None and now - self._connected_at > LONGEST_USE:
            await self._disconnect()
        if self._api is None:
            self._api, self._connected_at = await self._connect(), now
        return self._api

    async def _disconnect(self) -> None:
        api, self._api = self._api, None
        if api is not None:
            await api.close()

    def _note(self, problem: str) -> None:
        if problem != self._problem:
            self._report(problem)
        self._problem = problem


class _Metadata(msgspec.Struct):
    resourceVersion: str  # noqa: N815  as all names here: Kubernetes has them
    annotations: dict[str, str] | None = None


class _Spec(msgspec.Struct):
    holderIdentity: str | None = None  # noqa: N815
    leaseTransitions: Annotated[int, Meta(ge=0, le=MOST_TRANSITIONS)] | None = None  # noqa: N815
    leaseDurationSeconds: Annotated[int, Meta(ge=0)] | None = None  # noqa: N815


class _Lease(msgspec.Struct):
    metadata: _Metadata
    spec: _Spec | None = None


def lease_of(given: object) -> Lease:
    """What matters of a decoded object. Raises `ValueError` if it is no Lease."""
    found = msgspec.convert(given, _Lease)
    spec = found.spec or _Spec()
    return Lease(
        holder=spec.holderIdentity or "",
        transitions=spec.leaseTransitions or 0,
        version=found.metadata.resourceVersion,
        duration=min(spec.leaseDurationSeconds or DURATION, LONGEST_DURATION),
        address=(found.metadata.annotations or {}).get(ADDRESS, ""),
    )


def _written(
    given: Mapping[str, Any], name: str, wanted: Lease, before: Lease | None
) -> dict[str, Any]:
    """The object with what is wanted, and everything else as it is.

    Times are for people: nobody compares them with a clock.
    """
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    metadata = dict(given.get("metadata") or {"name": name})
    metadata["annotations"] = {**(metadata.get("annotations") or {}), ADDRESS: wanted.address}
    spec = {
        **(given.get("spec") or {}),
        "holderIdentity": wanted.holder,
        "leaseDurationSeconds": DURATION,
        "leaseTransitions": wanted.transitions,
        "renewTime": now,
    }
    if before is None or wanted.holder != before.holder:
        spec["acquireTime"] = now
    return {
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": metadata,
        "spec": spec,
    }
