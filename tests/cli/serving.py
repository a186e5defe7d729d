"""A controller without switches on a unix socket, in a thread of the tests' process."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from aiohttp import web

from controller.api import Api
from controller.inventory import Inventory
from controller.reconciler import Reconciler
from controller.sources.objects import UnknownKindError, from_manifest
from flows.view import Cluster
from settings import ClusterSettings
from settings.plain_yaml import documents


@contextlib.contextmanager
def serving(path: Path, manifests: str, settings: ClusterSettings) -> Iterator[None]:
    """With the objects of some manifests; kinds that no flow depends on are ignored."""
    loop, ready = asyncio.new_event_loop(), threading.Event()
    stop = asyncio.Event()

    async def serve() -> None:
        cluster = Cluster(
            settings.pod_range, settings.service_range, settings.tunnel_port,
            settings.new_connections_per_second,
        )  # fmt: skip
        reconciler = Reconciler(Inventory(cluster))
        for content in documents(manifests):
            with contextlib.suppress(UnknownKindError):
                reconciler.update([from_manifest(content)], [])
        reconciler.source_complete(True)
        runner = web.AppRunner(Api(reconciler, settings).application(local=True))
        await runner.setup()
        await web.UnixSite(runner, str(path)).start()
        ready.set()
        await stop.wait()
        await runner.cleanup()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
    thread.start()
    try:
        assert ready.wait(30)
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
