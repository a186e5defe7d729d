"""What all requests of agents have in common: for which node they are, and how long they wait."""

import math

import structlog
from aiohttp import web

from openflow.switch import name_in
from wire import paths
from wire.documents import Refusal, encode
from wire.sentences import readable

log = structlog.get_logger()


def only_own_node(request: web.Request, node: str) -> None:
    """With mutual TLS, hold the name asked for against the certificate's.

    Raises `web.HTTPForbidden`.
    """
    if not request.secure:
        return
    name = name_in(request.get_extra_info("peercert"))
    if name == node:
        return
    log.warning(
        "asked for a node that is not the certificate's",
        node=readable(node),
        certificate=name,
        # Not by what was asked for: that may be another name each time.
        limit_by=name or str(request.remote),
    )
    if name is None:
        sentence = f"a certificate of Node {node} is needed"
    else:
        sentence = f"the certificate is {name or 'nobody'}'s, not Node {node}'s"
    raise refused(web.HTTPForbidden, sentence)


def seconds_to_wait(request: web.Request) -> float:
    """The query `WAIT` of a long poll. Raises `web.HTTPBadRequest`."""
    try:
        wait = float(request.query.get(paths.WAIT, "0"))
    except ValueError:
        wait = math.nan
    if math.isnan(wait):  # also when asked for: the event loop would lose its order over it
        raise refused(web.HTTPBadRequest, "wait: not a number of seconds")
    return min(max(wait, 0.0), paths.MAX_WAIT)


def refused(kind: type[web.HTTPError], sentence: str) -> web.HTTPError:
    """The exception for an answer that is a refusal."""
    return kind(text=encode(Refusal(sentence)).decode(), content_type="application/json")
