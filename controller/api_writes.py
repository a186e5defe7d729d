"""How the controller writes to the API server: paced, and patient with failures."""

import asyncio
import random
import socket
from collections.abc import Awaitable, Callable
from typing import Final

import aiohttp
import structlog
from kubernetes.aio import client
from prometheus_client import Counter

from controller.events import Telling
from controller.kubernetes_api import UNREACHABLE, ApiError, Write, ask
from controller.leadership import Leadership
from settings import SettingsError

LOOK: Final = 2.0
"""Seconds between two looks at what is due."""
PACE: Final = 0.02
"""Seconds between two requests of one writer: no more than 50 a second, whatever goes wrong."""
BACKOFF: Final = (2.0, 60.0)
"""Seconds after the first failure, and at most."""
_TIMEOUT: Final = aiohttp.ClientTimeout(total=15, connect=10)

log = structlog.get_logger()


async def keep_writing(
    write: Callable[[], Awaitable[None]], failure: str, leadership: Leadership
) -> None:
    """Call `write` again and again while this controller leads, until cancelled.

    It sends what is due, and raises if nothing more can be sent for now. `failure` says so in the
    log.
    """
    delay, trouble = BACKOFF[0], ""
    while True:
        await asyncio.sleep(LOOK)
        if not leadership.holds():
            continue
        try:
            await write()
        except (ApiError, SettingsError, *UNREACHABLE) as error:
            problem = str(error) or repr(error)
            if problem != trouble:
                log.warning(failure, problem=problem)
            asked = error.wait if isinstance(error, ApiError) else 0.0
            # Not for security: it spreads the load.
            await asyncio.sleep(max(asked, delay * random.uniform(0.5, 1)))  # noqa: S311
            delay, trouble = min(delay * 2, BACKOFF[1]), problem
        else:
            delay, trouble = BACKOFF[0], ""


async def send(api: client.ApiClient, write: Write) -> int:
    """Zero, or the HTTP status with which only this write was refused.

    Raises `ApiError` if any other write would fail too, and `UNREACHABLE`.
    """
    await asyncio.sleep(PACE)
    try:
        response = await ask(
            api,
            write.method,
            write.path,
            _TIMEOUT,
            body=write.body,
            content_type=write.content_type,
        )
    except ApiError as error:
        if error.may_pass:
            raise
        log.info("refused by the API server", path=write.path, problem=str(error))
        return error.code
    response.release()
    return 0


async def send_event(api: client.ApiClient, telling: Telling, outcomes: Counter) -> bool:
    """Whether the Event was written, or refused for good; False: the one to repeat is gone.

    The outcome is counted. Raises as `send` does.
    """
    code = await send(api, telling.write(socket.gethostname()))
    if code == 404 and telling.times > 1:
        return False
    outcomes.labels("refused" if code else "told").inc()
    return True
