"""Writes addresses to the status of Services, while this controller leads."""

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final, Protocol
from urllib.parse import quote

import aiohttp
import msgspec
import structlog
from kubernetes.aio import client

from controller import metrics
from controller.api_writes import BACKOFF, PACE
from controller.kubernetes_api import STRATEGIC, UNREACHABLE, ApiError, ask, connect, sentence
from controller.load_balancers.assignments import Assignments, Change
from controller.load_balancers.balancers import LoadBalancers
from controller.load_balancers.requests import ASSIGNED
from controller.reconciler import Reconciler
from controller.sources.feed import in_slices
from controller.sources.objects import ServiceObject
from controller.work_budget import in_turns
from settings import SettingsError

LOOK: Final = 0.3
"""Seconds between two looks at what is due."""
TICK: Final = 0.1
"""Seconds in which changes are collected before their effect is computed."""
PAUSES: Final = 4
"""Times that a computation took are waited before the next one."""
WRITE_SECONDS: Final = 2
"""Within these the API server answers a write, or gives it up (`timeout` of a request)."""
BEFORE_TERM: Final = 2.5 * WRITE_SECONDS
"""Seconds after which no write of an earlier leader can succeed any more: it sends none after its
term, gives up after `WRITE_SECONDS`, and so does the API server from when it has the request."""
PAGE: Final = 500
_TIMEOUT: Final = aiohttp.ClientTimeout(total=WRITE_SECONDS)
_LIST_TIMEOUT: Final = aiohttp.ClientTimeout(total=60, connect=10)
_SERVICES: Final = "/api/v1/services"
_NOT_READABLE: Final = (*UNREACHABLE, ApiError, SettingsError, ValueError, RecursionError)

log = structlog.get_logger()


class Status(Protocol):
    """Where the status of Services is kept."""

    async def first_list(self) -> list[ServiceObject]:
        """All Services of type LoadBalancer as they are now, for a term that begins."""

    async def write(self, change: Change) -> None:
        """Write. Raises one of `_NOT_READABLE` if the outcome is not known, or it may pass later.

        A refusal that is about this Service alone is only logged.
        """


class StatusAtServer:
    """The API server keeps it."""

    def __init__(self, kubeconfig: Path | None) -> None:
        """`kubeconfig` as `kubernetes_api.connect` has it."""
        self._kubeconfig = kubeconfig

    async def first_list(self) -> list[ServiceObject]:
        """As `Status.first_list`."""
        found: list[ServiceObject] = []
        query = [("limit", PAGE), ("fieldSelector", "spec.type=LoadBalancer")]
        following = ""
        async with await connect(self._kubeconfig) as api:
            while True:
                asked = [*query, ("continue", following)] if following else query
                async with await ask(api, "GET", _SERVICES, _LIST_TIMEOUT, query=asked) as answer:
                    page = msgspec.json.decode(await answer.read(), type=_List)
                async for items in in_slices(page.items):
                    found += [msgspec.json.decode(item, type=ServiceObject) for item in items]
                if not (following := page.metadata.continue_):
                    return found

    async def write(self, change: Change) -> None:
        """As `Status.write`."""
        # A connection for each: there are few, and credentials are read again.
        async with await connect(self._kubeconfig) as api:
            await _patch(api, change)


async def _patch(api: client.ApiClient, change: Change) -> None:
    metadata = change.given.metadata
    path = f"/api/v1/namespaces/{quote(metadata.namespace)}/services/{quote(metadata.name)}/status"
    try:
        answer = await ask(
            api,
            "PATCH",
            path,
            _TIMEOUT,
            query=[("timeout", f"{WRITE_SECONDS}s")],
            body=body_of(change),
            content_type=STRATEGIC,
        )
    except ApiError as error:
        if error.may_pass:
            raise
        metrics.ADDRESSES_WRITTEN.labels("refused").inc()
        # 409: the Service has changed, and the source is about to show it.
        log.info("address not written", service=change.service, problem=str(error))
    else:
        answer.release()
        metrics.ADDRESSES_WRITTEN.labels("written").inc()
        log.info("address written", service=change.service, **_shown(change))


def body_of(change: Change) -> dict[str, object]:
    """The patch. With uid and resourceVersion it fails if the Service is not as it was."""
    metadata, shown = change.given.metadata, _shown(change)
    has_one = change.address is not None
    ingress = [{"ip": shown["address"], "ipMode": "VIP"}] if has_one else None
    condition = {
        "type": ASSIGNED,
        "status": "True" if has_one else "False",
        "reason": "Assigned" if has_one else "Released",
        "message": f"{shown['address']} of AddressPool {change.pool}" if has_one else "",
        "lastTransitionTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
    return {
        "metadata": {"uid": metadata.uid, "resourceVersion": metadata.resource_version},
        # Conditions are merged by their type: nobody else's is touched.
        "status": {"loadBalancer": {"ingress": ingress}, "conditions": [condition]},
    }


class AddressWriter:
    """Gives Services their addresses while this controller leads."""

    def __init__(
        self,
        reconciler: Reconciler,
        status: Status,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._reconciler = reconciler
        self._balancers: LoadBalancers = reconciler.inventory.load_balancers
        self._status = status
        self._monotonic = monotonic
        self._assignments = Assignments(self._balancers, monotonic=monotonic)
        self._refreshing = asyncio.Lock()
        self._term: object = None

    async def run(self) -> None:
        """Until cancelled."""
        await self._reconciler.listed.wait()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._follow())
            group.create_task(self._write())

    async def _follow(self) -> None:
        """What every controller does, whether it leads or not."""
        took = 0.0
        while True:
            await self._balancers.changed.wait()
            await asyncio.sleep(max(TICK, PAUSES * took))
            async with self._refreshing:
                began = self._monotonic()
                await in_turns(self._balancers.refreshing())
                took = self._monotonic() - began

    async def _write(self) -> None:
        delay, trouble = BACKOFF[0], ""
        while True:
            await asyncio.sleep(LOOK)
            try:
                await self._look()
            except _NOT_READABLE as error:
                problem = sentence(error)
                if problem != trouble:
                    log.warning("addresses of Services are not written", problem=problem)
                asked = error.wait if isinstance(error, ApiError) else 0.0
                await asyncio.sleep(max(asked, delay))
                delay, trouble = min(delay * 2, BACKOFF[1]), problem
            else:
                delay, trouble = BACKOFF[0], ""

    async def _look(self) -> None:
        leadership = self._reconciler.leadership
        if not leadership.holds():
            if self._term is not None:
                self._assignments.end()
                self._term = None
            return
        # Before everything was read, an address may be somebody's of whom nobody knows.
        if not self._balancers.pools or not self._reconciler.desired.source_complete:
            return
        term = leadership.generation, leadership.began
        if self._term != term:
            self._term = None
            if leadership.elected and time.monotonic() - leadership.began < BEFORE_TERM:
                return
            listed = await self._status.first_list()
            if (leadership.generation, leadership.began) != term:
                return
            self._assignments.begin(listed)
            self._term = term
        async with self._refreshing:
            due = await in_turns(self._assignments.due())
        for change in due:
            if not leadership.holds():
                return
            self._assignments.sent(change)
            try:
                await self._status.write(change)
            except _NOT_READABLE:
                self._assignments.unanswered(change)
                metrics.ADDRESSES_WRITTEN.labels("failed").inc()
                raise
            await asyncio.sleep(PACE)


class _ListMeta(msgspec.Struct, rename="camel"):
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] = []


def _shown(change: Change) -> dict[str, str]:
    if change.address is None:
        return {"address": ""}
    return {"address": str(IPv4Address(change.address)), "pool": change.pool}
