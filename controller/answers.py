"""Answers to people's questions: a report, or one sentence that says why there is none."""

import msgspec
from aiohttp import web

from controller.reports.report import encoded
from controller.work_budget import in_turns
from wire.documents import Refusal, encode

NOT_READ = "the controller has not read the cluster yet"


async def answer(report: msgspec.Struct) -> web.Response:
    """A report as JSON, encoded in several turns of the event loop."""
    body = await in_turns(encoded(report))
    return web.Response(body=body, content_type="application/json")


def refusal(status: int, sentence: str) -> web.Response:
    """Why there is no report."""
    body = encode(Refusal(sentence))
    return web.Response(status=status, body=body, content_type="application/json")
