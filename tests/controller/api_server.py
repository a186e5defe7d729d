"""A scripted API server: lists and watches like kube-apiserver, and misbehaves on demand."""

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from controller.sources.kubernetes import CLUSTER_POLICY_PATHS
from controller.sources.objects import CLUSTER_SCOPED, KINDS, Object
from controller.sources.routed_objects import ROUTED_PATHS

Manifest = dict[str, Any]
Fault = Callable[["Resource", web.Request], Awaitable[web.StreamResponse]]
"""Answers one request in place of the server."""


class Resource:
    """One collection of an API server: its objects, and the history that watches are told."""

    def __init__(self, kind: str, clock: "ApiServer") -> None:
        self.kind = kind
        self.objects: dict[str, Manifest] = {}
        self.requests: list[dict[str, str]] = []
        self.faults: dict[str, deque[Fault]] = {
            verb: deque() for verb in ("list", "continue", "watch")
        }
        self.piece = 1 << 20
        """How many bytes of a watch are written at once."""
        self.absent_paths: set[str] = set()
        """Paths at which the server does not know this kind."""
        self._clock = clock
        self._history: list[tuple[int, str, Manifest]] = []
        self._oldest = 0
        self._snapshots: dict[str, list[Manifest]] = {}
        self._news = asyncio.Condition()
        self._watches = 0

    def set(self, name: str, **fields: Any) -> None:
        """Create or change an object."""
        metadata = {"name": name, "uid": f"uid-{name}"} | fields.pop("metadata", {})
        if self.kind not in CLUSTER_SCOPED:
            metadata = {"namespace": "default"} | metadata
        event = "MODIFIED" if name in self.objects else "ADDED"
        self._record(event, {"metadata": metadata, **fields})

    def delete(self, name: str) -> None:
        self._record("DELETED", self.objects.pop(name))

    def forget_history(self) -> None:
        """From now on, whoever comes with an older version gets a 410."""
        self._oldest = self._clock.version
        self._history.clear()

    def _record(self, event: str, manifest: Manifest) -> None:
        self._clock.version += 1
        manifest = manifest | {
            "metadata": manifest["metadata"] | {"resourceVersion": str(self._clock.version)}
        }
        self._history.append((self._clock.version, event, manifest))
        if event != "DELETED":
            self.objects[manifest["metadata"]["name"]] = manifest

    async def tell(self) -> None:
        """Wake the watches."""
        async with self._news:
            self._news.notify_all()

    async def end_watches(self) -> None:
        """End all watches in good order, as a server does after some minutes."""
        self._watches += 1
        async with self._news:
            self._news.notify_all()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        query = dict(request.query)
        self.requests.append(query)
        if request.headers.get("Authorization") != f"Bearer {self._clock.token}":
            return status(401, "Unauthorized")
        if request.path in self.absent_paths:
            self._clock.asked()
            return status(404, "the server could not find the requested resource")
        verb = "watch" if "watch" in query else "continue" if "continue" in query else "list"
        fault = self.faults[verb].popleft() if self.faults[verb] else None
        self._clock.asked()
        if fault:
            return await fault(self, request)
        if verb == "watch":
            return await self._watch(request, int(query["resourceVersion"]))
        return self._list(query)

    def _list(self, query: dict[str, str]) -> web.Response:
        at, _, start = query.get("continue", f"{self._clock.version}/0").partition("/")
        snapshot = self._snapshots.setdefault(at, list(self.objects.values()))
        end = int(start) + int(query.get("limit", "1000000"))
        metadata = {"resourceVersion": at}
        if end < len(snapshot):
            metadata["continue"] = f"{at}/{end}"
        return web.json_response({"metadata": metadata, "items": snapshot[int(start) : end]})

    async def _watch(self, request: web.Request, version: int) -> web.StreamResponse:
        if version < self._oldest:
            return status(410, f"too old resource version: {version}")
        response = web.StreamResponse()
        await response.prepare(request)
        watches = self._watches
        while watches == self._watches:
            for at, event, manifest in list(self._history):
                if at > version:
                    await self.write(response, line(event, manifest))
                    version = at
            async with self._news:
                await self._news.wait()
        return response

    async def write(self, response: web.StreamResponse, data: bytes) -> None:
        for start in range(0, len(data), self.piece):
            await response.write(data[start : start + self.piece])
            # Lets the client read this piece before the next one comes.
            await asyncio.sleep(0)


class ApiServer:
    """What the controller watches, over HTTP, on a port of 127.0.0.1 that was free."""

    def __init__(self, kubeconfig: Path) -> None:
        self.version = 100
        self.token = "one"  # noqa: S105 - nobody else's
        self.nodes = Resource("Node", self)
        self.pods = Resource("Pod", self)
        self.services = Resource("Service", self)
        self.slices = Resource("EndpointSlice", self)
        self.namespaces = Resource("Namespace", self)
        self.policies = Resource("NetworkPolicy", self)
        self.cluster_policies = Resource("ClusterNetworkPolicy", self)
        self.cluster_policies.absent_paths |= {*CLUSTER_POLICY_PATHS}
        self.resources = {
            "/api/v1/nodes": self.nodes,
            "/api/v1/pods": self.pods,
            "/api/v1/services": self.services,
            "/apis/discovery.k8s.io/v1/endpointslices": self.slices,
            "/api/v1/namespaces": self.namespaces,
            "/apis/networking.k8s.io/v1/networkpolicies": self.policies,
            **dict.fromkeys(CLUSTER_POLICY_PATHS, self.cluster_policies),
            **{path: Resource(kind, self) for kind, path in ROUTED_PATHS.items()},
        }
        self.kubeconfig = kubeconfig
        self._port = 0
        self.asked: Callable[[], None] = lambda: None
        """Is called for each request."""

    def identities(self) -> set[tuple[str, str, str]]:
        return {
            (resource.kind, manifest["metadata"].get("namespace", ""), name)
            for resource in self.resources.values()
            for name, manifest in resource.objects.items()
        }

    def objects(self) -> dict[tuple[str, str, str], Object]:
        """What the feed should hold."""
        resources = {resource.kind: resource for resource in self.resources.values()}
        return {
            (kind, namespace, name): msgspec.convert(resources[kind].objects[name], KINDS[kind])
            for kind, namespace, name in self.identities()
        }

    def write_kubeconfig(self) -> None:
        self.kubeconfig.write_text(json.dumps(kubeconfig(self._port, self.token)))

    async def serve(self) -> web.AppRunner:
        application = web.Application()
        for path, resource in self.resources.items():
            application.router.add_get(path, resource.answer)
        runner = web.AppRunner(
            application, access_log=None, handler_cancellation=True, shutdown_timeout=0
        )
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self._port = runner.addresses[0][1]
        self.write_kubeconfig()
        return runner


def line(event: str, manifest: Any) -> bytes:
    return json.dumps({"type": event, "object": manifest}).encode() + b"\n"


def bookmark(version: int) -> bytes:
    return line("BOOKMARK", {"kind": "Pod", "metadata": {"resourceVersion": str(version)}})


def status(code: int, message: str, headers: dict[str, str] | None = None) -> web.Response:
    body = {"kind": "Status", "code": code, "message": message}
    return web.json_response(body, status=code, headers=headers)


# Faults. In a fault the cluster changes: what is found afterwards is not what was there before.


def change(pods: Resource) -> None:
    pods.delete("a")
    pods.set("b", spec={"nodeName": "n2"})
    pods.set("f", spec={"nodeName": "n1"})


def refusing(code: int, body: bytes = b"") -> Fault:
    async def fault(pods: Resource, _: web.Request) -> web.StreamResponse:
        change(pods)
        if code == 410:
            pods.forget_history()
        return web.Response(status=code, body=body) if body else status(code, "because")

    return fault


def saying(data: bytes, *, then: str) -> Fault:
    """A 200 with this body; the connection then ends, is reset, or stays silent."""

    async def fault(pods: Resource, request: web.Request) -> web.StreamResponse:
        change(pods)
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(data)
        if then == "reset":
            await asyncio.sleep(0)
            assert request.transport
            request.transport.abort()
        elif then == "silence":
            await asyncio.Event().wait()
        return response

    return fault


async def hang_up(pods: Resource, request: web.Request) -> web.StreamResponse:
    change(pods)
    assert request.transport
    request.transport.abort()
    return web.Response()


def kubeconfig(port: int, token: str = "t") -> dict[str, Any]:  # noqa: S107  nobody looks at it
    """For a server at this port of loopback."""
    return {
        "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }


def kubeconfig_of(directory: Path, port: int) -> Path:
    """Its file."""
    file = directory / "kubeconfig"
    file.write_text(json.dumps(kubeconfig(port)))
    return file
