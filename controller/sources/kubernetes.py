"""The API server as a source: one reflector (LIST, then WATCH) per kind.

Written after client-go's reflector. The client does authentication, TLS and connections; the
bytes are decoded straight into trimmed structs, some forty times faster than into its models.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import aiohttp
import msgspec
import structlog
from kubernetes.aio import client

from controller.faults import ControllerFault
from controller.kubernetes_api import UNREACHABLE, ApiError, ask, connect
from controller.problems import ApiPathRef
from controller.sources.endpoint_objects import SliceObject
from controller.sources.feed import Feed, in_slices
from controller.sources.objects import NodeObject, Object, PodObject, ServiceObject
from controller.sources.policy_objects import (
    ClusterNetworkPolicyObject,
    NamespaceObject,
    NetworkPolicyObject,
)
from controller.sources.routed_objects import ROUTED_KINDS, ROUTED_PATHS
from flows.refs import ObjectRef
from settings import SettingsError

log = structlog.get_logger()

CLUSTER_POLICY_PATHS: Final = tuple(
    f"/apis/policy.networking.k8s.io/{version}/clusternetworkpolicies"
    for version in ("v1beta1", "v1alpha2")
)

T = TypeVar("T", bound=Object)
S = TypeVar("S")

PAGE = 500
"""Objects that are asked for at once."""
LARGE_PAGE = 8 << 20
"""Bytes. After a page of more than that, half as many objects are asked for: reading one holds up
everything else, and whoever creates objects decides how large they are."""
WATCH_SECONDS = 300
"""Seconds that the server is asked to keep a watch open; up to twice that, at random."""
SHORTEST_WATCH = 1.0
"""Seconds. A watch that ends sooner is a failure, even if it ends without an error."""
SILENCE_SECONDS = 90
"""Bookmarks come about once a minute; a watch that is silent for longer is dead."""
CONNECT_SECONDS = 10
"""For name, TCP and TLS together."""
FIRST_BACKOFF = 0.4
LONGEST_BACKOFF = 30.0
"""Seconds between tries; each wait is between half and all of what is due."""
ABSENT_SECONDS = 5.0
"""Seconds until a kind without CRD is tried again."""
LONGEST_LINE = 64 << 20
"""Bytes of one event of a watch. etcd takes no object of more than some 1.5 MB."""


class _WatchError(msgspec.Struct):
    code: int = 0
    message: str = ""


class _ListMeta(msgspec.Struct, rename="camel"):
    resource_version: str
    continue_: str = msgspec.field(default="", name="continue")


class _List(msgspec.Struct):
    metadata: _ListMeta
    items: list[msgspec.Raw] | None = None


class _Version(msgspec.Struct, rename="camel"):
    resource_version: str


class _Bookmark(msgspec.Struct):
    metadata: _Version


class _Name(msgspec.Struct):
    name: str
    namespace: str = ""


class _Named(msgspec.Struct):
    """The name of an object of which nothing else can be read."""

    metadata: _Name


class _Event(msgspec.Struct):
    type: str
    object: msgspec.Raw


class UnreadableError(ControllerFault):
    """An answer of the API server cannot be read."""


class ApiServer:
    """All reflectors of one cluster."""

    def __init__(self, kubeconfig: Path | None, feed: Feed) -> None:
        """Without a kubeconfig: the ServiceAccount of the pod this runs in."""
        self._kubeconfig = kubeconfig
        self._feed = feed
        kinds: tuple[tuple[str, type[Object]], ...] = (
            ("/api/v1/nodes", NodeObject),
            ("/api/v1/pods", PodObject),
            ("/api/v1/services", ServiceObject),
            ("/apis/discovery.k8s.io/v1/endpointslices", SliceObject),
            ("/api/v1/namespaces", NamespaceObject),
            ("/apis/networking.k8s.io/v1/networkpolicies", NetworkPolicyObject),
        )
        self._reflectors: tuple[Reflector[Any], ...] = (
            *(Reflector(kubeconfig, path, kind, feed, self._on_progress) for path, kind in kinds),
            OptionalReflector(
                kubeconfig,
                CLUSTER_POLICY_PATHS,
                ClusterNetworkPolicyObject,
                feed,
                self._on_progress,
            ),
            *(
                OptionalReflector(
                    kubeconfig, [ROUTED_PATHS[kind.kind]], kind, feed, self._on_progress
                )
                for kind in ROUTED_KINDS
            ),
        )

    async def run(self) -> None:
        """Until cancelled. Raises `SettingsError` if the credentials are of no use at the start."""
        await (await connect(self._kubeconfig)).close()
        async with asyncio.TaskGroup() as group:
            for reflector in self._reflectors:
                group.create_task(reflector.run())

    @property
    def silence(self) -> float:
        """Seconds since the watch that has been silent longest has said something."""
        now = time.monotonic()
        return max(now - reflector.heard_at for reflector in self._reflectors)

    def retry(self) -> None:
        """The API server answers somebody: whoever waits before the next attempt makes it now."""
        for reflector in self._reflectors:
            reflector.retry()

    def _on_progress(self) -> None:
        if all(reflector.listed for reflector in self._reflectors):
            self._feed.source_complete(
                not any(reflector.unreadable for reflector in self._reflectors)
            )


class Reflector(Generic[T]):
    """Keeps the feed equal to what the server holds of one kind."""

    def __init__(
        self,
        kubeconfig: Path | None,
        path: str,
        kind: type[T],
        feed: Feed,
        on_progress: Callable[[], None],
    ) -> None:
        """`on_progress` is called when `listed` or `unreadable` may have changed."""
        self.listed = False
        self.heard_at = time.monotonic()
        """When the server last said something about this kind."""
        self.unreadable: set[tuple[str, str]] = set()
        """(namespace, name) of what the feed does not have, or not as it is now."""
        self._kubeconfig = kubeconfig
        self._path = path
        self._kind = kind
        self._feed = feed
        self._on_progress = on_progress
        self._known: set[tuple[str, str]] = set()
        self._version = ""
        self._page = PAGE
        self._failures = 0
        self._retry = asyncio.Event()

    def retry(self) -> None:
        """End a wait for a server that could not be reached.

        One that has just started may refuse for a moment (403, 503), so later waits are short, too.
        """
        self._failures = 0
        self._retry.set()

    async def run(self) -> None:
        """Follow the server; after every failure again, with a new connection and a backoff.

        An exception that is not caught here is a programming error. Credentials are read again each
        time, because tokens and certificates are replaced on disk.
        """
        while True:
            wait = 0.0
            is_reachable = True
            self._retry.clear()
            try:
                async with await connect(self._kubeconfig) as api:
                    await self._follow(api)
            except ApiError as error:
                if error.code == 404 and await self._on_absence():
                    continue
                problem = str(error)
                wait = error.wait
                if error.code == 410 and not self._version:
                    # The list's later pages are forgotten sooner than we can ask for them.
                    self._page = 0
                if not error.may_pass:
                    # 410: it has forgotten our version. Else: it may be what is refused.
                    self._version = ""
            except UnreadableError as error:
                problem = f"an answer that cannot be read: {error}"
                # It would make no more sense the next time, from the same version.
                self._version = ""
            except SettingsError as error:
                problem = str(error)
            except aiohttp.SocketTimeoutError:
                problem = f"silent for {SILENCE_SECONDS} s"
                # A dead connection, or a server whose etcd was put back to an earlier state: it
                # sends nothing, not even bookmarks, until it is past the version we came with
                # (cacheWatcher.process in k8s.io/apiserver 0.36).
                self._version = ""
            except UNREACHABLE as error:
                problem = f"{type(error).__name__} {error}".strip()
                is_reachable = False
            self._failures += 1
            self._report(problem)
            await self._back_off(wait, is_reachable=is_reachable)

    async def _back_off(self, least: float, *, is_reachable: bool) -> None:
        """Wait, for `least` s at least; `retry` ends it if the server was not reached."""
        due = min(LONGEST_BACKOFF, FIRST_BACKOFF * 2 ** min(self._failures - 1, 16))
        ends: list[asyncio.Future[Any]] = [
            asyncio.ensure_future(asyncio.sleep(max(least, due * _jitter(0.5, 1.0))))
        ]
        if not is_reachable:
            ends.append(asyncio.ensure_future(self._retry.wait()))
        try:
            await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for each in ends:
                each.cancel()

    async def _on_absence(self) -> bool:
        """The server does not know the path. Returns whether to try again without a backoff."""
        return False

    async def _follow(self, api: client.ApiClient) -> None:
        """LIST unless we know from where to go on, then one WATCH after the other."""
        if not self._version:
            await self._list(api)
        clock = asyncio.get_running_loop().time
        while True:
            began = clock()
            await self._watch(api)
            if clock() - began < SHORTEST_WATCH:
                raise ConnectionError("the watch ends as soon as it begins")

    async def _list(self, api: client.ApiClient) -> None:
        """Read all pages; a known object that is not listed was removed."""
        listed: set[tuple[str, str]] = set()
        page = _ListMeta("")
        while True:
            query: list[tuple[str, Any]] = [("limit", self._page)] if self._page else []
            if page.continue_:
                query.append(("continue", page.continue_))
            async with await self._get(api, query) as response:
                content = await response.read()
            found = _read(content, _List)
            if self._page and len(content) > LARGE_PAGE:
                self._page = max(1, self._page // 2)
            async for items in in_slices(found.items or ()):
                listed |= self._take(items)
            page = found.metadata
            if not page.continue_:
                break
        async for identities in in_slices((self._known | self.unreadable) - listed):
            self._forget(set(identities))
        self._version = page.resource_version
        self._page = PAGE
        self.listed = True
        self.heard_at = time.monotonic()
        self._report("")
        self._on_progress()
        log.info("listed", path=self._path, objects=len(listed), version=self._version)

    async def _watch(self, api: client.ApiClient) -> None:
        query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", self._version),
            ("timeoutSeconds", int(WATCH_SECONDS * _jitter(1.0, 2.0))),
        ]
        async with await self._get(api, query) as response:
            self._report("")
            async for line in _lines(response):
                event = _read(line, _Event)
                if event.type == "ERROR":
                    status = _read(event.object, _WatchError)
                    raise ApiError(status.code, status.message)
                version = _read(event.object, _Bookmark).metadata
                if event.type == "DELETED":
                    name = _read(event.object, _Named).metadata
                    self._forget({(name.namespace, name.name)})
                elif event.type != "BOOKMARK":
                    self._take([event.object])
                self._version = version.resource_version
                self._failures = 0
                self.heard_at = time.monotonic()

    def _take(self, items: Iterable[msgspec.Raw]) -> set[tuple[str, str]]:
        """Feed what can be read; the identities of all objects.

        An unreadable object keeps its last state and does not affect other objects.
        """
        readable: list[T] = []
        taken: set[tuple[str, str]] = set()
        for item in items:
            try:
                made = _read(item, self._kind)
            except UnreadableError as error:
                name = _read(item, _Named).metadata
                identity = name.namespace, name.name
                self._note(identity, str(error))
            else:
                identity = made.metadata.namespace, made.metadata.name
                readable.append(made)
                self._known.add(identity)
                self._note(identity, "")
            taken.add(identity)
        self._feed.update(readable, [])
        return taken

    def _forget(self, identities: set[tuple[str, str]]) -> None:
        gone = self._known & identities
        self._known -= gone
        self._feed.update([], [ObjectRef(self._kind.kind, *identity) for identity in gone])
        for identity in identities:
            self._note(identity, "")

    def _note(self, identity: tuple[str, str], problem: str) -> None:
        """Note whether an object can be read."""
        if not problem and identity not in self.unreadable:
            return
        self._feed.report(ObjectRef(self._kind.kind, *identity), problem)
        if problem:
            self.unreadable.add(identity)
        else:
            self.unreadable.discard(identity)
            self._on_progress()

    async def _get(
        self, api: client.ApiClient, query: list[tuple[str, Any]]
    ) -> aiohttp.ClientResponse:
        """Ask; the answer's body is not read yet. Raises as `kubernetes_api.ask`."""
        timeout = aiohttp.ClientTimeout(
            total=None, connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        return await ask(api, "GET", self._path, timeout, query=query)

    def _report(self, problem: str) -> None:
        if problem:
            log.warning("not following the API server", path=self._path, problem=problem)
        self._feed.report(ApiPathRef(self._path), problem)


class OptionalReflector(Reflector[T]):
    """A reflector of a kind that a CRD defines. Without the CRD there are no objects of the kind.

    The CRD may come and go at any time, and serve any of several versions with one schema.
    """

    def __init__(
        self,
        kubeconfig: Path | None,
        paths: Sequence[str],
        kind: type[T],
        feed: Feed,
        on_progress: Callable[[], None],
    ) -> None:
        """`paths` are those of the versions, the preferred one first."""
        super().__init__(kubeconfig, paths[0], kind, feed, on_progress)
        self._paths = paths

    async def _on_absence(self) -> bool:
        """Try the next version; after the last one, forget all objects and wait for the CRD."""
        self._version = ""
        self._feed.report(ApiPathRef(self._path), "")
        following = self._paths.index(self._path) + 1
        self._path = self._paths[following % len(self._paths)]
        if following < len(self._paths):
            return True
        async for identities in in_slices(self._known | self.unreadable):
            self._forget(set(identities))
        self.listed = True
        self._failures = 0
        self.heard_at = time.monotonic()
        self._on_progress()
        await asyncio.sleep(ABSENT_SECONDS)
        return True


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Lines up to any sensible length; aiohttp's own reader refuses long ones.

    Raises `UnreadableError`.
    """
    rest = bytearray()
    async for chunk in response.content.iter_any():
        rest += chunk
        if b"\n" not in chunk:
            if len(rest) > LONGEST_LINE:
                raise UnreadableError(f"an event of more than {LONGEST_LINE >> 20} MiB")
            continue
        *whole, last = rest.split(b"\n")
        rest = last
        for line in whole:
            yield bytes(line)


def _read(data: str | bytes | msgspec.Raw, kind: type[S]) -> S:
    try:
        return msgspec.json.decode(data, type=kind)
    # UnicodeDecodeError is no DecodeError of msgspec's, and nesting has a limit.
    except (ValueError, RecursionError) as error:
        raise UnreadableError(str(error)) from error


def _jitter(least: float, most: float) -> float:
    return random.uniform(least, most)  # noqa: S311 - spreads load, guards nothing
