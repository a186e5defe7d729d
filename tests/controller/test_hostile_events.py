"""Watch events changed at random: taken or refused, and never anything else."""

import asyncio
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from controller.sources import kubernetes as source
from controller.sources.objects import Object, PodObject
from tests.controller.api_server import bookmark, line
from tests.controller.test_directory import Recorder

EVENTS = b"".join(
    [
        line("ADDED", {"metadata": {"name": "x", "namespace": "default", "uid": "u",
                                    "resourceVersion": "107"}, "spec": {"nodeName": "n1"}}),
        line("MODIFIED", {"metadata": {"name": "a", "namespace": "default", "uid": "uid-a",
                                       "resourceVersion": "108"}, "spec": {"nodeName": "n9"}}),
        line("DELETED", {"metadata": {"name": "a", "namespace": "default",
                                      "resourceVersion": "109"}}),
        bookmark(110),
        line("ERROR", {"code": 410, "message": "expired"}),
    ]
)  # fmt: skip


@given(
    st.lists(
        st.tuples(
            st.integers(0, len(EVENTS)),
            st.integers(0, 12),
            st.binary(max_size=6)
            | st.sampled_from([b"null", b"[]", b"{}", b"7", b'""', b"1e999", b'"\\ud800"', b"\n"]),
        ),
        min_size=1,
        max_size=5,
    ),
    st.integers(1, 7),
)
def test_mutated_events_are_followed_or_refused(changes, pieces) -> None:
    """Whatever a watch says, the reflector takes it or gives up in one of its own ways."""
    data = bytearray(EVENTS)
    for at, removed, put_in in changes:
        data[at : at + removed] = put_in
    told: dict[tuple[str, str, str], Object] = {}

    class Said(Recorder):
        def update(self, changed: Iterable[Object], gone: Iterable[tuple[str, str, str]]) -> None:
            for each in changed:
                told["Pod", each.metadata.namespace, each.metadata.name] = each
            for identity in gone:
                del told[identity]

    async def main() -> None:
        async def chunks() -> AsyncIterator[bytes]:
            size = max(1, len(data) // pieces)
            for start in range(0, len(data), size):
                yield bytes(data[start : start + size])

        @asynccontextmanager
        async def answer() -> AsyncIterator[Any]:
            yield SimpleNamespace(content=SimpleNamespace(iter_any=chunks))

        async def get(*_: Any) -> Any:
            return answer()

        reflector = source.Reflector(
            cast("Any", None), "/api/v1/pods", PodObject, Said(), lambda: None
        )
        reflector._get = get  # type: ignore[method-assign]
        reflector._version = "106"
        with suppress(source.ApiError, source.UnreadableError):
            await reflector._watch(cast("Any", None))
        assert {(namespace, name) for _, namespace, name in told} == reflector._known
        assert reflector._version

    asyncio.run(main())
