"""File descriptors: as many as we may have, and what happens when there are no more.

What strangers can make the agent open is bounded far below the limit (`answers`), so the rest is
reserved for its own work.
"""

import asyncio
import errno
import resource
import time
from collections.abc import Callable
from typing import Any, Final

import structlog

WANTED: Final = 65_536
_SILENCE: Final = 60.0
"""Seconds between two log lines about the same shortage."""
_SHORTAGES: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}

log = structlog.get_logger()


def raise_limit() -> int:
    """Raise the soft limit of this process; the limit after that.

    systemd starts everything with 1,024, because of programs that use select(2).
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        return wanted
    return soft


def exception_handler(
    monotonic: Callable[[], float] = time.monotonic,
) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """For the event loop, which reports a failed accept(2) with a traceback every second."""
    last = float("-inf")

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        nonlocal last
        error = context.get("exception")
        if not (isinstance(error, OSError) and error.errno in _SHORTAGES):
            loop.default_exception_handler(context)
        elif monotonic() - last >= _SILENCE:
            last = monotonic()
            log.error("connections have to wait", reason=error.strerror)

    return handle
