"""Who presents a ServiceAccount token: the API server says it (TokenReview).

Whoever asks the controller for something that not everybody may have shows such a token. Its
audience is one of Sluice's own, so that the token is worth nothing to others, and tokens for others
are worth nothing here.
"""

from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

import msgspec
from aiohttp import web
from kubernetes.aio import client

from controller.kubernetes_api import FAULTS, read, sentence

_PATH: Final = "/apis/authentication.k8s.io/v1/tokenreviews"

Account: TypeAlias = tuple[str, str]
"""Namespace and name of a ServiceAccount."""
Connect: TypeAlias = Callable[[], Awaitable[client.ApiClient]]
"""Makes a client of the API server. Raises `SettingsError`."""


class User(msgspec.Struct, frozen=True):
    """Whom a token names."""

    username: str = ""
    extra: dict[str, list[str]] = {}


class _Verdict(msgspec.Struct, frozen=True):
    authenticated: bool = False
    audiences: list[str] = []
    user: User = User()
    error: str = ""


class _Review(msgspec.Struct, frozen=True):
    """`TokenReview` of authentication.k8s.io/v1."""

    status: _Verdict = _Verdict()


class Refused(Exception):  # noqa: N818  no error of ours
    """The answer to a request is this HTTP status and this sentence."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status = status


def bearer(request: web.Request) -> str:
    """The token of a request (RFC 6750, 2.1). Raises `Refused`."""
    kind, _, token = request.headers.get("Authorization", "").partition(" ")
    if kind.lower() != "bearer" or not token or not token.isascii():
        raise Refused(401, "a ServiceAccount token is needed (Authorization: Bearer)")
    return token


def name_of(account: Account) -> str:
    """The name of a ServiceAccount's user."""
    return ":".join(("system:serviceaccount", *account))


async def review(connect: Connect, token: str, audience: str, accounts: Sequence[Account]) -> User:
    """The user of a token that is for `audience` and of one of these accounts.

    Raises `Refused` for every other token, and if the API server does not answer. Its sentence
    names the first account.
    """
    asked = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "TokenReview",
        "spec": {"token": token, "audiences": [audience]},
    }
    try:
        async with await connect() as api:
            answer = await read(api, "POST", _PATH, asked)
        status = msgspec.json.decode(answer, type=_Review).status
    except FAULTS as error:
        why = sentence(error)
        raise Refused(503, f"the API server cannot review the token: {why}") from error
    # The API server does not authenticate a token for other audiences.
    if not status.authenticated or audience not in status.audiences:
        why = status.error or "it is for another audience"
        raise Refused(401, f"the token is not for {audience!r} or not good: {why}")
    if status.user.username not in map(name_of, accounts):
        raise Refused(403, f"the token is {status.user.username}'s, not {name_of(accounts[0])}'s")
    return status.user
