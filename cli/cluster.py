"""The way to the controller of a cluster, with nothing but a kubeconfig.

The caller creates a short-lived token of the ServiceAccount `sluice-viewer`, and shows it to a
controller by TLS through a port-forward. So the permission to create that token is the permission
to look, and the caller's own credential stays with the API server. The controller is known by the
CA that it publishes in the cluster.
"""

import os
import socket as sockets
import ssl
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import websocket
import yaml
from kubernetes import client, config
from kubernetes.stream import portforward
from urllib3.exceptions import HTTPError, MaxRetryError

from cli.controller import Cluster, RequestError
from wire import viewing

LONGEST_WAIT: Final = 15.0
"""Seconds until an answer of the API server, or a connection."""
TOKEN_LIFE: Final = 600
"""Seconds. The API server makes no token of less (TokenRequest)."""
_TOKENS: Final = "sluice.tokens"
"""Of the command that runs: by cluster and ServiceAccount, when a token was made, and the token."""
MOST_TRIED: Final = 5
"""Controllers that are tried."""

_USELESS: Final = (
    *(config.ConfigException, OSError, ValueError, yaml.YAMLError),
    # The client uses the content of the file without checking its type.
    *(TypeError, KeyError, AttributeError),
)


class _Forwarded(ssl.SSLSocket):
    """TLS through a port-forward, whose other end is a thread of the Kubernetes client."""

    def close(self) -> None:
        """Let the thread end first. It would fail, and say so, if it met a closed socket."""
        if self.fileno() >= 0:
            with suppress(OSError):
                self.shutdown(sockets.SHUT_WR)
                while self.recv(1 << 16):
                    pass
        super().close()


def reach(
    cluster: Cluster, account: str = viewing.SERVICE_ACCOUNT
) -> Generator[tuple[ssl.SSLSocket, str]]:
    """A connection to each controller in turn, and a token of the ServiceAccount.

    Raises `RequestError` if none can be reached.
    """
    api = client.CoreV1Api(api_client(cluster))
    try:
        token = _kept_token(api, cluster, account)
        context = _context(api, cluster.namespace)
        if cluster.address is not None:
            yield _directly(cluster.address, context), token
            return
        for connected in _forwarded(api, cluster.namespace, context):
            yield connected, token
    finally:
        api.api_client.close()


def api_client(cluster: Cluster) -> client.ApiClient:
    """A client of the API server, with the rights of the kubeconfig. Raises `RequestError`."""
    if cluster.kubeconfig is not None:
        files = str(cluster.kubeconfig)
    else:
        files = os.environ.get("KUBECONFIG") or str(Path("~/.kube/config").expanduser())
    if not any(Path(file).exists() for file in files.split(os.pathsep)):
        raise RequestError(
            f"there is no kubeconfig at {files}: give --kubeconfig, or --lab for a lab"
        )
    settings = client.Configuration()
    try:
        config.load_kube_config(
            files, cluster.context, settings, persist_config=False
        )  # fmt: skip
    except _USELESS as error:
        why = " ".join(str(error).split())
        raise RequestError(f"the kubeconfig cannot be used: {why}") from error
    settings.retries = False
    return client.ApiClient(settings)


def _kept_token(api: client.CoreV1Api, cluster: Cluster, account: str) -> str:
    """A token of the ServiceAccount, the same for the requests of a while.

    The controller has each new token reviewed, and takes few at a time.
    """
    command = click.get_current_context(silent=True)
    known: dict[tuple[Cluster, str], tuple[float, str]] = {}
    if command is not None:
        known = command.meta.setdefault(_TOKENS, known)
    now = time.monotonic()
    made, token = known.get((cluster, account), (0.0, ""))
    if not token or now - made > TOKEN_LIFE / 2:
        token = _token(api, cluster.namespace, account)
        known[cluster, account] = now, token
    return token


def forget_tokens() -> None:
    """A controller does not take one any more."""
    command = click.get_current_context(silent=True)
    if command is not None:
        command.meta.pop(_TOKENS, None)


def _token(api: client.CoreV1Api, namespace: str, account: str) -> str:
    """A new token. Only the right to create it makes a viewer."""
    body = {"spec": {"audiences": [viewing.AUDIENCE], "expirationSeconds": TOKEN_LIFE}}
    with asking(
        f"create serviceaccounts/token {account}", namespace,
        absent="Sluice is not installed in it, or is too old: there is no ServiceAccount"
        f" {account}",
    ):  # fmt: skip
        made = api.create_namespaced_service_account_token(
            account, namespace, body, _request_timeout=LONGEST_WAIT
        )
        return str(made.status.token)


def _context(api: client.CoreV1Api, namespace: str) -> ssl.SSLContext:
    """Trusts the cluster's controllers alone."""
    with asking(
        f"get configmaps {viewing.CA}", namespace, absent=f"there is no ConfigMap {viewing.CA}"
    ):
        found = api.read_namespaced_config_map(viewing.CA, namespace, _request_timeout=LONGEST_WAIT)
    given = (found.data or {}).get("ca.crt", "")
    if not given:
        raise RequestError(
            f"namespace {namespace}: no controller has started yet: ConfigMap {viewing.CA} is empty"
        )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        context.load_verify_locations(cadata=given)
    except (ssl.SSLError, ValueError) as error:
        raise RequestError(
            f"namespace {namespace}: ConfigMap {viewing.CA}: ca.crt holds no certificate"
        ) from error
    return context


def _directly(address: str, context: ssl.SSLContext) -> ssl.SSLSocket:
    host, _, port = address.rpartition(":")
    try:
        plain = sockets.create_connection((host.strip("[]"), int(port)), LONGEST_WAIT)
    except (OSError, ValueError, OverflowError) as error:
        raise RequestError(f"no controller answers at {address}: {error}") from error
    try:
        return context.wrap_socket(plain, server_hostname=viewing.SERVER_NAME)
    except OSError as error:
        plain.close()
        raise RequestError(f"no controller answers at {address}: {_reason(error)}") from error


def _forwarded(
    api: client.CoreV1Api, namespace: str, context: ssl.SSLContext
) -> Iterator[ssl.SSLSocket]:
    """By a port-forward to each ready controller."""
    with asking("list pods", namespace, absent="there is no such namespace"):
        pods = api.list_namespaced_pod(
            namespace, label_selector=viewing.POD_LABEL, _request_timeout=LONGEST_WAIT
        ).items
    if not pods:
        raise RequestError(f"namespace {namespace}: there is no controller ({viewing.POD_LABEL})")
    ready = [pod for pod in pods if _is_ready(pod)]
    if not ready:
        raise RequestError(f"namespace {namespace}: none of {len(pods)} controllers is ready")
    reached = False
    why: RequestError | None = None
    for pod in ready[:MOST_TRIED]:
        try:
            connected = _to_pod(api, pod, context)
        except RequestError as error:
            why = error
        else:
            reached = True
            yield connected
    if why and not reached:
        raise why


def _is_ready(pod: Any) -> bool:
    conditions = pod.status.conditions or ()
    ready = any(each.type == "Ready" and each.status == "True" for each in conditions)
    return ready and pod.metadata.deletion_timestamp is None


def _to_pod(api: client.CoreV1Api, pod: Any, context: ssl.SSLContext) -> ssl.SSLSocket:
    namespace, name = pod.metadata.namespace, pod.metadata.name
    ports = [
        port.container_port
        for container in pod.spec.containers
        for port in container.ports or ()
        if port.name == viewing.PORT_NAME
    ]
    if not ports:
        raise RequestError(
            f"Pod {namespace}/{name} has no port {viewing.PORT_NAME!r}: its Sluice is too old"
        )
    websocket.setdefaulttimeout(LONGEST_WAIT)
    with asking("create pods/portforward", namespace, absent=f"Pod {name} has gone"):
        forward = portforward(
            api.connect_get_namespaced_pod_portforward, name, namespace, ports=str(ports[0])
        )
    plain = forward.socket(ports[0])
    plain.settimeout(LONGEST_WAIT)
    context.sslsocket_class = _Forwarded
    try:
        return context.wrap_socket(plain, server_hostname=viewing.SERVER_NAME)
    except OSError as error:
        said = (forward.error(ports[0]) or "").strip().splitlines()
        why = said[-1] if said else _reason(error)
        raise RequestError(f"Pod {namespace}/{name} serves no reports: {why}") from error


class Kubernetes:
    """A client of the API server, with the caller's own credential."""

    def __init__(self, cluster: Cluster) -> None:
        """Raises `RequestError`."""
        self.api = api_client(cluster)

    def close(self) -> None:
        """Close its connections."""
        self.api.close()


@contextmanager
def asking(permission: str, namespace: str, *, absent: str) -> Iterator[None]:
    """Turn what a request to the API server raises into `RequestError`.

    `permission` is what it needs, `absent` what a 404 means.
    """
    try:
        yield
    except client.ApiException as error:
        # The client of websockets gives no status, but a sentence of its own.
        status = error.status or _status_in(str(error.reason))
        if status == 403:
            why = f"your user lacks the permission to {permission}"
        elif status == 401:
            why = "the API server does not accept the credentials of the kubeconfig"
        elif status == 404:
            why = absent
        else:
            why = f"the API server answers: {_message(error)}"
        raise RequestError(f"namespace {namespace}: {why}") from error
    except (HTTPError, OSError) as error:
        cause = error.reason if isinstance(error, MaxRetryError) else error
        raise RequestError(f"the API server does not answer: {cause}") from error


def existing(read: Callable[..., Any], permission: str, namespace: str, name: str) -> Any:
    """An object by its name; None if there is none. Raises `RequestError`."""
    with asking(permission, namespace, absent=""):
        try:
            return read(name, namespace, _request_timeout=LONGEST_WAIT)
        except client.ApiException as error:
            if error.status != 404:
                raise
    return None


def _status_in(reason: str) -> int:
    """The status in `Handshake status 403 Forbidden ...` of the package websocket-client."""
    words = reason.split()
    is_handshake = words[:2] == ["Handshake", "status"] and words[2:3] and words[2].isdecimal()
    return int(words[2]) if is_handshake else 0


def _message(error: client.ApiException) -> str:
    try:
        return str(msgspec.json.decode(error.body)["message"])
    except (ValueError, KeyError, TypeError):
        return str(error.reason)


def _reason(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate: {error.verify_message}"
    return str(error) or type(error).__name__
