"""Captures of a pod's port, for those who may see what pods send: see `wire.viewing.CAPTURER`."""

from collections.abc import Callable
from typing import Final

import structlog
from aiohttp import web

from controller.answers import refusal
from controller.policy_reports.pods import attached, why_not_attached
from controller.questions import NoAnswerError, Questions
from controller.reconciler import Reconciler
from wire.questions import (
    MAX_CAPTURE_PACKETS,
    MAX_CAPTURE_SECONDS,
    MAX_FILTER,
    Captured,
    CapturePod,
)
from wire.sentences import readable
from wire.viewing import CAPTURE

log = structlog.get_logger()

_MARGIN: Final = 10.0
"""Seconds beyond those of the capture until its answer has come."""


class CaptureApi:
    """Routes and answers; see `routes`."""

    def __init__(self, reconciler: Reconciler, questions: Questions) -> None:
        self._reconciler = reconciler
        self._questions = questions

    def routes(self) -> list[web.RouteDef]:
        """They show what pods send and get."""
        return [web.get(CAPTURE, self._capture)]

    async def _capture(self, request: web.Request) -> web.Response:
        """With `?pod=&filter=&packets=&seconds=`: a pcap file."""
        try:
            packets, seconds, text, pod = _asked(request.query.get)
        except ValueError as error:
            return refusal(400, str(error))
        found = attached(self._reconciler.inventory, pod)
        if found is None:
            return refusal(404, why_not_attached(self._reconciler.inventory, pod))
        question = CapturePod(found.attachment.port, text, packets, seconds)
        log.info("a pod's port is captured", pod=pod, packets=packets, filter=readable(text))
        try:
            answer = await self._questions.ask(found.node, question, seconds + _MARGIN)
        except NoAnswerError as error:
            return refusal(504, str(error))
        if not isinstance(answer, Captured):
            return refusal(504, f"Node {found.node}: its agent answers something else")
        headers = {"Sluice-Cut": "1"} if answer.is_cut else {}
        return web.Response(
            body=answer.pcap, content_type="application/vnd.tcpdump.pcap", headers=headers
        )


def _asked(query: Callable[[str, str], str]) -> tuple[int, int, str, str]:
    """Packets, seconds, filter and pod. Raises `ValueError`."""
    packets = _number(query("packets", "100"), MAX_CAPTURE_PACKETS)
    seconds = _number(query("seconds", "10"), MAX_CAPTURE_SECONDS)
    text, pod = query("filter", ""), query("pod", "")
    if packets is None:
        raise ValueError(f"packets: not from 1 to {MAX_CAPTURE_PACKETS}")
    if seconds is None:
        raise ValueError(f"seconds: not from 1 to {MAX_CAPTURE_SECONDS}")
    if len(text) > MAX_FILTER or not text.isprintable():
        raise ValueError(f"filter: not a text of at most {MAX_FILTER} characters")
    if pod.count("/") != 1:
        raise ValueError(f"pod: {readable(pod)!r} is not of the form NAMESPACE/NAME")
    return packets, seconds, text, pod


def _number(text: str, most: int) -> int | None:
    return int(text) if text.isdecimal() and len(text) < 6 and 1 <= int(text) <= most else None
