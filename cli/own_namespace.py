"""A namespace that a command makes for its Pods, and takes away with them, whatever happens."""

import secrets
import signal
import time
from types import FrameType, TracebackType
from typing import Any, Final, NoReturn, Self

import click
from kubernetes import client

from cli.cluster import LONGEST_WAIT, asking
from cli.controller import RequestError

LABEL: Final = "app.kubernetes.io/managed-by"
OLD: Final = 1_800
"""Seconds after which a namespace of an earlier run, which was killed, is removed. The Pods of a
run end before that by themselves."""


class OwnNamespace:
    """A namespace; `with` removes it, also after Ctrl-C and SIGTERM."""

    def __init__(self, core: Any, owner: str, *, keep: bool = False) -> None:
        """`core` is the API of namespaces, `owner` the command, as the label says.

        With `keep` it stays, and a line says how to remove it.
        """
        self.name: Final = f"{owner}-{secrets.token_hex(4)}"
        self._core = core
        self._owner = owner
        self._keep = keep
        self._is_made = False
        self._before: Any = None

    def __enter__(self) -> Self:
        def stop(*_: int | FrameType | None) -> NoReturn:
            raise KeyboardInterrupt

        self._before = signal.signal(signal.SIGTERM, stop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        """Remove what was made. A second signal does not stop that."""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            if self._is_made and self._keep:
                click.echo(f"kept: kubectl delete namespace {self.name}", err=True)
            elif self._is_made:
                click.echo("removing the pods ...", err=True)
                self._remove(self.name)
        finally:
            signal.signal(signal.SIGINT, interrupt)
            signal.signal(signal.SIGTERM, self._before)

    def make(self) -> None:
        """Make it, and remove what runs left behind that were killed. Raises `RequestError`."""
        self._remove_old()
        labels = {
            LABEL: self._owner,
            # For the pods in the nodes' own network.
            "pod-security.kubernetes.io/enforce": "privileged",
        }
        # Before the request: it may be made although no answer comes.
        self._is_made = True
        with asking("create namespaces", self.name, absent="it is not made"):
            try:
                self._core.create_namespace(
                    {"metadata": {"name": self.name, "labels": labels}},
                    _request_timeout=LONGEST_WAIT,
                )
            except client.ApiException as error:
                self._is_made = error.status >= 500
                raise

    def _remove_old(self) -> None:
        try:
            with asking("list namespaces", "the cluster", absent="there are none"):
                found = self._core.list_namespace(
                    label_selector=f"{LABEL}={self._owner}", _request_timeout=LONGEST_WAIT
                ).items
        except RequestError as error:
            click.echo(f"what earlier runs left is not looked for: {error.message}", err=True)
            return
        for each in found:
            age = time.time() - each.metadata.creation_timestamp.timestamp()
            if age > OLD and each.metadata.name.startswith(f"{self._owner}-"):
                click.echo(f"removing {each.metadata.name}, of an earlier run", err=True)
                self._remove(each.metadata.name)

    def _remove(self, name: str) -> None:
        with asking("delete namespaces", name, absent="it has gone"):
            try:
                self._core.delete_namespace(name, _request_timeout=LONGEST_WAIT)
            except client.ApiException as error:
                if error.status != 404:
                    raise
