"""How commands ask a controller: of a cluster, of a lab, or of this machine by its unix socket."""

import contextlib
import functools
import http.client
import socket as sockets
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeAlias, TypeVar
from urllib.parse import urlencode

import click
import msgspec

from controller.reports import VERSION
from lab.layout import MOST_CONTROLLERS, LabLayout
from wire import viewing

T = TypeVar("T")
Query: TypeAlias = Mapping[str, str | Sequence[str]]
"""A sequence is repeated."""
Completion: TypeAlias = Callable[[click.Context, click.Parameter, str], list[str]]

LONGEST_WAIT: Final = 60.0
"""Seconds without a byte of an answer. A controller that starts may be busy for a while."""


class RequestError(click.ClickException):
    """A controller does not answer, or refuses; the command ends with this one line."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """Which cluster, and the way to its controller."""

    kubeconfig: Path | None = None
    """None: as kubectl, by $KUBECONFIG or at ~/.kube/config."""
    context: str | None = None
    """None: the current one of the kubeconfig."""
    namespace: str = viewing.NAMESPACE
    """Where Sluice runs."""
    address: str | None = None
    """`HOST:PORT` of a controller that is reached without a port-forward."""


@dataclass(frozen=True, slots=True)
class Controller:
    """Which controller to ask: of a lab, at a unix socket, else of a cluster."""

    lab: str | None = None
    socket: Path | None = None
    source: Path | None = None
    """Ask no controller: a support bundle, or manifests."""
    cluster: Cluster = Cluster()


def controller_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which controller to ask; the command gets a `Controller`."""

    @functools.wraps(command)
    def with_controller(**given: Any) -> Any:
        controller = _controller(given, click.get_current_context())
        others = {name: value for name, value in given.items() if name not in _NAMES}
        return command(controller=controller, **others)

    decorated: Callable[..., Any] = with_controller
    for option in reversed(_OPTIONS):
        decorated = option(decorated)
    return decorated


def _controller(given: Mapping[str, Any], context: click.Context) -> Controller:
    """Of the options' values. Raises `click.UsageError` if they name two controllers."""
    source, lab, socket, *of_cluster = (given[name] for name in _NAMES)
    if source is None:
        # `sluice --from FILE VERB`.
        source = context.find_root().params.get("source")
    ways = {
        "--from": source is not None,
        "--lab": lab is not None,
        "--socket": socket is not None,
        "--kubeconfig, --context, --namespace, --address": any(
            each is not None for each in of_cluster
        ),
    }
    chosen = [names for names, is_given in ways.items() if is_given]
    if len(chosen) > 1:
        raise click.UsageError(f"{chosen[0]} does not go with {chosen[1]}")
    kubeconfig, its_context, namespace, address = of_cluster
    cluster = Cluster(kubeconfig, its_context, namespace or viewing.NAMESPACE, address)
    return Controller(lab, socket, source, cluster)


def completion(path: str, names: Callable[[Any], Iterable[str]]) -> Completion:
    """Complete an argument by the cluster's own names: `names` finds them in the report at `path`.

    Where no controller answers there are none.
    """

    def complete(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
        try:
            found = names(ask(_controller(context.params, context), path, {}))
            return sorted(name for name in found if name.startswith(begun))
        except (click.ClickException, AttributeError, KeyError, TypeError):
            return []

    return complete


_NAMES: Final = ("source", "lab", "socket", "kubeconfig", "context", "namespace", "address")
_FILE: Final = click.Path(path_type=Path)
from_option: Final = click.option(
    "--from",
    "source",
    metavar="FILE",
    type=click.Path(path_type=Path, exists=True),
    help="Ask no controller: a support bundle (see `sluice bundle`), or manifests in a file or"
    " directory, for example the output of `kubectl get -A -o json`.",
)
_OPTIONS: Final = (
    from_option,
    click.option(
        "--kubeconfig",
        type=_FILE,
        help="Ask the controller of this cluster.  [default: as kubectl has it]",
    ),
    click.option(
        "--context",
        metavar="NAME",
        help="The context of the kubeconfig.  [default: its current one]",
    ),
    click.option(
        "--namespace",
        "-n",
        metavar="NAME",
        help=f"Where Sluice runs.  [default: {viewing.NAMESPACE}]",
    ),
    click.option(
        "--address",
        metavar="HOST:PORT",
        help="Reach the cluster's controller here, and not by a port-forward.",
    ),
    click.option("--lab", "--name", "lab", metavar="NAME", help="Ask the controller of this lab."),
    click.option("--socket", type=_FILE, help="Ask the controller with this apiSocket."),
)


def ask(controller: Controller, path: str, query: Query) -> Any:
    """Ask for JSON. Raises `RequestError`."""
    if controller.source is not None:
        # Its packages take long to load.
        from cli.offline import answer  # noqa: PLC0415

        return answer(controller.source, path, query)
    try:
        return msgspec.json.decode(_ask(controller, path, query))
    except msgspec.DecodeError as error:
        raise RequestError(f"the controller's answer is no JSON: {error}") from error


def convert(answer: object, kind: type[T]) -> T:
    """An answer as a report; fields that this program does not know are ignored.

    Raises `RequestError` if a controller of another version made it.
    """
    given = answer.get("version", VERSION) if isinstance(answer, dict) else VERSION
    if given != VERSION:
        raise RequestError(
            f"the controller makes reports of version {given}, and this program reads version"
            f" {VERSION}: take the command of the controller's version"
        )
    try:
        return msgspec.convert(answer, kind)
    except msgspec.ValidationError as error:
        raise RequestError(
            f"the controller is of another version of Sluice than this program: {error}"
        ) from error


def ask_lines(controller: Controller, path: str, query: Query) -> list[bytes]:
    """Ask for lines of JSON. Raises `RequestError`."""
    return _ask(controller, path, query).splitlines()


def download(
    controller: Controller, path: str, query: Query, account: str
) -> tuple[bytes, Mapping[str, str]]:
    """Ask for a file, with a token of this ServiceAccount; also returns the headers of the answer.

    Raises `RequestError`.
    """
    if controller.source is not None:
        raise RequestError("--from: only a running cluster has this")
    return _request(controller, path, query, account)


def _ask(controller: Controller, path: str, query: Query) -> bytes:
    return _request(controller, path, query, viewing.SERVICE_ACCOUNT)[0]


def _request(
    controller: Controller, path: str, query: Query, account: str
) -> tuple[bytes, Mapping[str, str]]:
    """Ask one controller after the other until one leads."""
    why = RequestError("no controller answers")
    with contextlib.closing(_connections(controller, account)) as connections:
        for connected, where, token in connections:
            try:
                response, content = _ask_once(connected, path, query, token)
            except (OSError, http.client.HTTPException) as error:
                why = RequestError(f"no controller answers {where}: {error}")
                continue
            if response.status != http.client.MISDIRECTED_REQUEST:
                return _content(response, content, path, where, token), dict(response.headers)
            why = RequestError(_sentence(content) or f"the controller {where} does not lead")
    raise why


def _ask_once(
    connected: sockets.socket, path: str, query: Query, token: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connected.settimeout(LONGEST_WAIT)
    with contextlib.closing(_Connection(connected)) as connection:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        connection.request(
            "GET", f"{path}?{urlencode(query, doseq=True)}" if query else path, headers=headers
        )
        response = connection.getresponse()
        return response, response.read()


def _content(
    response: http.client.HTTPResponse, content: bytes, path: str, where: str, token: str
) -> bytes:
    """Raises `RequestError` if the controller refuses."""
    if response.status == http.client.OK:
        return content
    if token and response.status in {http.client.UNAUTHORIZED, http.client.FORBIDDEN}:
        from cli.cluster import forget_tokens  # noqa: PLC0415  see `_connections`

        forget_tokens()
    sentence = _sentence(content)
    if response.status == http.client.NOT_FOUND and not sentence:
        raise RequestError(f"the controller {where} is too old: it does not know {path}")
    raise RequestError(sentence or f"{response.status} {response.reason}")


def _connections(
    controller: Controller, account: str
) -> Generator[tuple[sockets.socket, str, str]]:
    """One to each controller that can be reached: it, where it leads, and the token to show there.

    Raises `RequestError` if there is none.
    """
    if controller.lab is not None:
        yield from _local(_sockets_of_lab(controller.lab))
    elif controller.socket is not None:
        yield from _local([controller.socket])
    else:
        # Its packages take long to load.
        from cli.cluster import reach  # noqa: PLC0415

        with contextlib.closing(reach(controller.cluster, account)) as reached:
            for connected, token in reached:
                yield connected, "in the cluster", token


def _local(paths: Sequence[Path]) -> Iterator[tuple[sockets.socket, str, str]]:
    reached = False
    why: RequestError | None = None
    for path in paths:
        local = sockets.socket(sockets.AF_UNIX)
        try:
            local.connect(str(path))
        except OSError as error:
            local.close()
            why = why or RequestError(f"no controller answers on {path}: {error}")
        else:
            reached = True
            yield local, f"on {path}", ""
    if why and not reached:
        raise why


def _sockets_of_lab(name: str) -> list[Path]:
    try:
        places = LabLayout(name).controllers(MOST_CONTROLLERS)
    except ValueError as error:
        raise RequestError(str(error)) from None
    paths = [place.api_socket for place in places if place.api_socket.exists()]
    if not paths:
        raise RequestError(f"no lab {name} is up; start one with: sluice lab up --name {name}")
    return paths


def _sentence(content: bytes) -> str:
    """What a controller says that is wrong."""
    try:
        return str(msgspec.json.decode(content)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


class _Connection(http.client.HTTPConnection):
    """HTTP on a connection that is there already.

    By the standard library, because aiohttp takes long to load.
    """

    def __init__(self, connected: sockets.socket) -> None:
        super().__init__(viewing.SERVER_NAME)
        self.sock = connected
