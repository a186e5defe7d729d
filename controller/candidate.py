"""The part of this controller in the election: wiring only."""

import asyncio
import os
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from controller.election import Election
from controller.kubernetes_api import connect
from controller.leader_link import LeaderLink
from controller.lease_loop import LeaseLoop
from controller.problems import ELECTION
from controller.reconciler import Reconciler
from controller.usefulness import Usefulness, Watched
from flows.refs import ObjectRef
from settings import Controller

_ANY: Final = ("0.0.0.0", "[::]")  # noqa: S104  no address that is listened at


class Candidate:
    """A replica that may lead."""

    def __init__(
        self,
        own: Controller,
        identity: str,
        reconciler: Reconciler,
        source: Watched,
        context: Callable[[], ssl.SSLContext] | None,
    ) -> None:
        """`context`: for a TLS client of another controller; None: plain TCP."""
        election = Election(identity, address_for_others(own))
        leadership = reconciler.leadership
        self._lease = ObjectRef("Lease", own.election.namespace, own.election.name)
        self._problems, self._source = reconciler.problems, source
        self._usefulness = Usefulness(reconciler, source)
        self._loop = LeaseLoop(
            own.election, partial(connect, own.kubernetes.kubeconfig), election, leadership,
            self._usefulness, self._report,
        )  # fmt: skip
        self._link = LeaderLink(election, leadership, context)

    async def run(self) -> None:
        """Take part; until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._usefulness.run())
            tasks.create_task(self._loop.run())
            tasks.create_task(self._link.run())

    def _report(self, problem: str) -> None:
        """The election has this problem; empty: it has none any more."""
        self._problems.set(ELECTION, self._lease, problem)
        if not problem:
            self._source.retry()

    async def release(self) -> None:
        """Stop writing, and let another one lead at once."""
        await self._loop.release()


def address_for_others(own: Controller) -> str:
    """Where other controllers reach the API of this one, as HOST:PORT; empty: unknown."""
    if own.election.address is not None:
        return own.election.address
    host, _, port = own.api.rpartition(":")
    named = own.enrolment.addresses if own.enrolment else ()
    # The addresses in its certificate may be those of several controllers.
    known = [host, os.environ.get("HOST_IP", ""), *named]
    return next((f"{each}:{port}" for each in known if each and each not in _ANY), "")
