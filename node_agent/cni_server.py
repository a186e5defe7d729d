"""The unix socket that the shim connects to: for root only, one call per connection."""

import asyncio
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import structlog

from node_agent.attach import Attachments
from node_agent.cni_call import CniCall, CniError, Code, conf_version, error_json
from node_agent.faults import NodeFault

_LARGEST_REQUEST: Final = 4 << 20
"""Bytes: a GC that names some 30,000 attachments."""
_REQUEST_TIMEOUT: Final = 10.0
_MAX_CONCURRENT_CALLS: Final = 128
"""Each has some ten file descriptors and a veth pair under way. STATUS does not wait for them."""
_BACKLOG: Final = 4096
"""Connections that may wait for accept(2); beyond them the shim is refused at once."""

log = structlog.get_logger()


class SocketInUseError(NodeFault):
    """Another agent answers at this socket."""


@asynccontextmanager
async def serve(path: Path, attachments: Attachments) -> AsyncIterator[None]:
    """Answer CNI calls at `path`. Raises `SocketInUseError` and `OSError`.

    At the end, calls in progress are cancelled and undone; the runtime tries again.
    """
    calls: set[asyncio.Task[None]] = set()
    turns = asyncio.Semaphore(_MAX_CONCURRENT_CALLS)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        call = asyncio.current_task()
        assert call is not None  # noqa: S101  asyncio makes a task of every connection
        calls.add(call)
        try:
            await _connection(reader, writer, attachments, turns)
        finally:
            calls.discard(call)

    server = await asyncio.start_unix_server(connected, sock=_listen_at(path), backlog=_BACKLOG)
    try:
        async with server:
            try:
                yield
            finally:
                server.close()
                # Leaving the block waits for open connections, from Python 3.12.1 on.
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
    finally:
        path.unlink(missing_ok=True)  # noqa: ASYNC240  a directory entry in memory


def _listen_at(path: Path) -> socket.socket:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        try:
            made.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            path.unlink(missing_ok=True)
        else:
            raise SocketInUseError(f"another node agent answers at {path}")
        made.bind(str(path))
        # Before anybody can connect: nobody listens yet.
        path.chmod(0o600)
    except BaseException:
        made.close()
        raise
    return made


async def _connection(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    attachments: Attachments,
    turns: asyncio.Semaphore,
) -> None:
    try:
        if _peer_uid(writer) != 0:
            return
        async with asyncio.timeout(_REQUEST_TIMEOUT):
            request = await _read(reader)
        writer.write(await _answer(request, attachments, turns))
        await writer.drain()
    except (TimeoutError, ConnectionError) as error:
        log.warning("CNI call dropped", error=repr(error))
    finally:
        writer.close()


async def _answer(request: bytes, attachments: Attachments, turns: asyncio.Semaphore) -> bytes:
    """'0' and the result, or '1' and the error: see `cni/sluice_cni.py`."""
    try:
        call = CniCall.parse(request)
        if call.command == "STATUS":
            return b"0" + await attachments.answer(call)
        async with turns:
            return b"0" + await attachments.answer(call)
    except CniError as error:
        refusal = error
        log.warning("CNI call refused", code=int(error.code), error=error.message,
                    details=error.details)  # fmt: skip
    except Exception as fault:
        log.exception("CNI call failed")
        refusal = CniError(Code.INTERNAL, "the node agent has a fault", repr(fault))
    return b"1" + error_json(refusal, conf_version(request))


async def _read(reader: asyncio.StreamReader) -> bytes:
    request = bytearray()
    while chunk := await reader.read(1 << 16):
        request += chunk
        if len(request) > _LARGEST_REQUEST:
            raise ConnectionError("the request is too large")
    return bytes(request)


def _peer_uid(writer: asyncio.StreamWriter) -> int:
    peer: socket.socket = writer.get_extra_info("socket")
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])  # unix(7): pid, uid, gid
