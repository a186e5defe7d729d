"""The bytes of an API server with a large cluster: pages of lists, watches, and writes taken.

It stores nothing but what follows from numbers (`bench.large_cluster`), and makes each page when it
is asked for, so what it costs is not the controller's.

    python -m bench.api_server PORT NODES PODS SERVICES ENDPOINTS < orders

Each order is a line of JSON, {"events": [[PATH, TYPE, OBJECT], ...]}: told to the watches of this
path. Each is answered by a line {"at": MONOTONIC SECONDS}. The end of the orders is the end.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import count, islice
from typing import Any, Final

import msgspec
from aiohttp import web

from bench.large_cluster import LargeCluster

BOOKMARK_SECONDS: Final = 30.0
LEASES: Final = "/apis/coordination.k8s.io/"
_PAGE: Final = 500


class BytesOfApiServer:
    """Answers GET by what `LargeCluster` gives, and remembers Leases."""

    def __init__(self, cluster: LargeCluster) -> None:
        self._cluster = cluster
        self._version = count(1_000_000)
        self._watches: dict[str, list[asyncio.Queue[bytes]]] = {}
        self._leases: dict[str, Any] = {}
        self._lists: dict[str, tuple[int, Iterator[bytes]]] = {}

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """One request."""
        path = request.path
        if path.startswith(LEASES):
            return await self._lease(request)
        if request.method != "GET":
            await request.read()
            return web.json_response({})
        if path not in self._cluster.objects:
            return web.json_response({"code": 404, "message": "not found"}, status=404)
        if request.query.get("watch"):
            return await self._watch(request)
        return self._list(path, request.query)

    def tell(self, events: Sequence[tuple[str, str, dict[str, Any]]]) -> None:
        """Tell the watches of these objects."""
        for path, kind, given in events:
            given["metadata"]["resourceVersion"] = str(next(self._version))
            line = json.dumps({"type": kind, "object": given}).encode() + b"\n"
            for queue in self._watches.get(path, ()):
                queue.put_nowait(line)

    def _list(self, path: str, query: Any) -> web.Response:
        page = int(query.get("limit") or _PAGE)
        begin = int(query.get("continue") or 0)
        number, source = self._lists.pop(path, (0, iter(())))
        if number != begin or not begin:
            source = islice(self._cluster.objects[path](), begin, None)
        found = list(islice(source, page))
        end = begin + len(found)
        metadata = {"resourceVersion": str(next(self._version))}
        if len(found) == page:
            metadata["continue"] = str(end)
            self._lists[path] = end, source
        body = b'{"kind":"List","apiVersion":"v1","metadata":%s,"items":[%s]}' % (
            json.dumps(metadata).encode(),
            b",".join(found),
        )
        return web.Response(body=body, content_type="application/json")

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        response.enable_chunked_encoding()
        await response.prepare(request)
        queue: asyncio.Queue[bytes] = asyncio.Queue()
        watches = self._watches.setdefault(request.path, [])
        watches.append(queue)
        try:
            while True:
                try:
                    async with asyncio.timeout(BOOKMARK_SECONDS):
                        line = await queue.get()
                except TimeoutError:
                    version = {"metadata": {"resourceVersion": str(next(self._version))}}
                    line = json.dumps({"type": "BOOKMARK", "object": version}).encode() + b"\n"
                while not queue.empty():
                    line += queue.get_nowait()
                await response.write(line)
        except ConnectionError:
            pass
        finally:
            watches.remove(queue)
        return response

    async def _lease(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if request.method == "GET":
            if path not in self._leases:
                return web.json_response({"code": 404, "message": "not found"}, status=404)
            return web.json_response(self._leases[path])
        given = msgspec.json.decode(await request.read())
        given.setdefault("metadata", {})["resourceVersion"] = str(next(self._version))
        if request.method == "POST":
            path = f"{path}/{given['metadata']['name']}"
        self._leases[path] = given
        return web.json_response(given)


async def _run(port: int, cluster: LargeCluster) -> None:
    server = BytesOfApiServer(cluster)
    application = web.Application(client_max_size=1 << 26)
    application.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(application, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    sys.stdout.write(json.dumps({"at": time.monotonic()}) + "\n")
    sys.stdout.flush()
    orders = asyncio.StreamReader(limit=1 << 26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(orders), sys.stdin
    )
    while line := await orders.readline():
        at = time.monotonic()
        server.tell(json.loads(line)["events"])
        sys.stdout.write(json.dumps({"at": at}) + "\n")
        sys.stdout.flush()
    await runner.cleanup()


if __name__ == "__main__":
    port, *numbers = map(int, sys.argv[1:])
    asyncio.run(_run(port, LargeCluster(*numbers)))
