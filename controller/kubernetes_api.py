"""Requests to the API server: their credentials, and the errors of answers.

The client does authentication, TLS and connections; what is sent and read is ours.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import yaml
from kubernetes.aio import client, config

from controller.faults import ControllerFault
from settings import SettingsError

LONGEST_WAIT = 30.0
"""Seconds. If the server asks us to wait longer than this, we ask again after this time."""

_USELESS = (
    *(config.ConfigException, OSError, ValueError, yaml.YAMLError),
    # The client uses the content of the YAML file without checking its type.
    *(TypeError, KeyError, AttributeError),
)

UNREACHABLE = (aiohttp.ClientError, OSError, config.ConfigException)
"""What `ask` raises if there is no answer; `TimeoutError` is an `OSError`."""
LONGEST_ANSWER: Final = 10.0
"""Seconds until `read` has an answer."""


class ApiError(ControllerFault):
    """The API server refused; `code` is the HTTP status, `wait` the seconds it asked us to wait."""

    def __init__(
        self, code: int, message: str, wait: float = 0.0, causes: Collection[str] = ()
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.wait = wait
        self._causes = causes

    @property
    def may_pass(self) -> bool:
        """Whether the same request may succeed later, or with other credentials."""
        # A server that has just started and has not read its roles yet also answers 403.
        if "NamespaceTerminating" in self._causes:
            return False
        return self.code in {401, 403, 429} or self.code >= 500


MERGE: Final = "application/merge-patch+json"
STRATEGIC: Final = "application/strategic-merge-patch+json"


@dataclass(frozen=True, slots=True)
class Write:
    """A request that changes something."""

    method: str
    path: str
    body: Mapping[str, object]
    content_type: str = "application/json"


class _Cause(msgspec.Struct, frozen=True):
    reason: str = ""


class _Details(msgspec.Struct, frozen=True):
    causes: tuple[_Cause, ...] = ()


class _Status(msgspec.Struct, frozen=True):
    message: str = ""
    details: _Details = _Details()


async def connect(kubeconfig: Path | None) -> client.ApiClient:
    """A client with the credentials as they are on disk now. Raises `SettingsError`.

    Without a kubeconfig: the ServiceAccount of the pod this runs in.
    """
    configuration = client.Configuration()
    try:
        if kubeconfig is None:
            config.load_incluster_config(client_configuration=configuration)
        else:
            kubeconfig.open("rb").close()  # the client names no file that is missing
            await config.load_kube_config(
                str(kubeconfig), client_configuration=configuration, persist_config=False
            )
        return client.ApiClient(configuration)
    except _USELESS as error:
        where = kubeconfig or "the pod's ServiceAccount"
        raise SettingsError(f"{where}: no credentials for the API server: {error}") from error


async def ask(
    api: client.ApiClient,
    method: str,
    path: str,
    timeout: aiohttp.ClientTimeout,  # noqa: ASYNC109  one for each phase
    *,
    query: Iterable[tuple[str, Any]] = (),
    body: object = None,
    content_type: str = "application/json",
) -> aiohttp.ClientResponse:
    """Ask; the answer's body, which is the caller's to close, is not read yet.

    Raises `ApiError` for any answer but a 2xx, and `UNREACHABLE` where there is none.
    """
    request = await api.param_serialize(
        method=method,
        resource_path=path,
        query_params=list(query),
        header_params={"Accept": "application/json", "Content-Type": content_type},
        body=body,
        auth_settings=["BearerToken"],
    )
    answer = await api.call_api(*request, _request_timeout=timeout)
    response: aiohttp.ClientResponse = answer.response
    if 200 <= response.status < 300:
        return response
    async with response:
        text = (await response.read()).decode(errors="replace")
    try:
        status = msgspec.json.decode(text, type=_Status)
    except (ValueError, RecursionError):
        status = _Status(text[:200])
    wait = response.headers.get("Retry-After", "")
    raise ApiError(
        response.status,
        status.message or response.reason or "",
        min(float(wait), LONGEST_WAIT) if wait.isdecimal() else 0.0,
        [cause.reason for cause in status.details.causes],
    )


async def read(api: client.ApiClient, method: str, path: str, body: object = None) -> bytes:
    """Ask, and read the whole answer. Raises one of `FAULTS`, as decoding the answer may."""
    timeout = aiohttp.ClientTimeout(total=LONGEST_ANSWER)
    async with await ask(api, method, path, timeout, body=body) as response:
        return await response.read()


FAULTS: Final = (*UNREACHABLE, ApiError, ValueError, RecursionError)
"""What `read` raises, and decoding what it returns."""


def sentence(error: Exception) -> str:
    """One of `FAULTS`, for people."""
    return str(error) or type(error).__name__
