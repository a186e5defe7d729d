"""Mutual TLS contexts, from the PEM files that the settings name or from enrolment.

A context is replaced when its PEM is replaced: new connections use the new one, and existing
connections continue.
"""

import os
import ssl
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog

from settings import SettingsError, Tls

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Identity:
    """Our key and certificate, the CAs that we trust (PEM), and their names in error messages."""

    key: bytes
    certificate: bytes
    ca: bytes
    pair_name: str
    """Of key and certificate."""
    ca_name: str


def read(tls: Tls, section: str) -> Identity:
    """The files' contents.

    `section` is where the files are named, for example `controller.tls`. Raises `SettingsError`,
    which names field and file.
    """
    contents = {}
    for field in ("key", "certificate", "ca"):
        path: Path = getattr(tls, field)
        try:
            contents[field] = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{section}.{field}: {path}: {error.strerror}") from error
    return Identity(
        **contents,
        pair_name=f"{section}: certificate {tls.certificate} and key {tls.key}",
        ca_name=f"{section}.ca: {tls.ca}",
    )


def server_context(
    identity: Identity, clients: ssl.VerifyMode = ssl.CERT_REQUIRED
) -> ssl.SSLContext:
    """For a server: a peer with a certificate of another CA is refused.

    `clients` decides about a peer without a certificate. Raises `SettingsError`, which names the
    file that cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = clients
    _trust(context, identity.ca, identity.ca_name)
    _show(context, identity)
    return context


def client_context(identity: Identity) -> ssl.SSLContext:
    """For a client: the server's certificate must be of our CA and for its address.

    Raises `SettingsError` as `server_context` does.
    """
    context = nobodys_context(identity.ca, identity.ca_name)
    _show(context, identity)
    return context


def nobodys_context(ca: bytes, ca_name: str) -> ssl.SSLContext:
    """As `client_context`, without a certificate of our own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    _trust(context, ca, ca_name)
    return context


class Replaceable:
    """A context that follows changes of its PEM."""

    def __init__(
        self, identity: Callable[[], Identity], make: Callable[[Identity], ssl.SSLContext]
    ) -> None:
        """`identity` is called at each use of the context. Both may raise `SettingsError`."""
        self._identity = identity
        self._make = make
        self._made: tuple[Identity, ssl.SSLContext] | None = None
        self._problem = ""

    def context(self) -> ssl.SSLContext:
        """The current context. The one before stays if the new files cannot be used.

        Raises `SettingsError` if there has been no usable one yet.
        """
        try:
            identity = self._identity()
            if self._made is None or self._made[0] != identity:
                self._made = identity, self._make(identity)
        except SettingsError as error:
            if self._made is None:
                raise
            if self._problem != str(error):
                log.warning(
                    "new TLS files cannot be used; the previous ones stay in use", reason=str(error)
                )
            self._problem = str(error)
        else:
            self._problem = ""
        return self._made[1]


class _Listening(ssl.SSLContext):
    current: Callable[[], ssl.SSLContext]

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        return self.current().wrap_bio(incoming, outgoing, server_side, server_hostname, session)


def listening_context(replaceable: Replaceable) -> ssl.SSLContext:
    """For asyncio, which keeps one context for ever: each connection gets the current one.

    Raises `SettingsError` if there is no usable context at the start.
    """
    replaceable.context()
    listening = _Listening(ssl.PROTOCOL_TLS_SERVER)
    listening.current = replaceable.context
    return listening


def _trust(context: ssl.SSLContext, ca: bytes, name: str) -> None:
    # Open vSwitch 3.1 speaks 1.3; a user's ssl_protocols may hold it to 1.2.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        with _file(ca) as path:
            context.load_verify_locations(path)
    except ssl.SSLError as error:
        raise SettingsError(f"{name}: no PEM file of certificates") from error


def _show(context: ssl.SSLContext, identity: Identity) -> None:
    try:
        with _file(identity.certificate) as certificate, _file(identity.key) as key:
            # Nobody is there to be asked for a password.
            context.load_cert_chain(certificate, key, password="")
    except ssl.SSLError as error:
        why = error.reason or "no PEM files of a certificate and an unencrypted key"
        raise SettingsError(f"{identity.pair_name}: {why}") from error


@contextmanager
def _file(content: bytes) -> Iterator[str]:
    """A path for `ssl`, which reads keys only from files; nothing is written to disk."""
    descriptor = os.memfd_create("pem")
    try:
        os.write(descriptor, content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
