"""Mutual TLS out of the files that the settings name."""

import ssl
from collections.abc import Callable
from pathlib import Path

from settings import SettingsError, Tls


def server_context(tls: Tls, section: str) -> ssl.SSLContext:
    """For whoever listens: a peer without a certificate of our CA is not spoken to.

    `section` is where the files are named, for example `controller.tls`. Raises `SettingsError`,
    which names field and file.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    return _load(context, tls, section)


def client_context(tls: Tls, section: str) -> ssl.SSLContext:
    """For whoever dials: the other side's certificate must be of our CA and for its address.

    Raises `SettingsError` as `server_context` does.
    """
    return _load(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), tls, section)


class Replaceable:
    """A context of files, made anew once one of them has been replaced."""

    def __init__(self, tls: Tls, section: str, make: Callable[[Tls, str], ssl.SSLContext]) -> None:
        self._tls = tls
        self._section = section
        self._make = make
        self._read: tuple[bytes, ...] = ()
        self._context: ssl.SSLContext | None = None

    def context(self) -> ssl.SSLContext:
        """The same one as before where nothing has changed. Raises `SettingsError`."""
        read = tuple(_contents(self._tls, self._section).values())
        if self._context is None or read != self._read:
            self._context = self._make(self._tls, self._section)
            self._read = read
        return self._context


def _contents(tls: Tls, section: str) -> dict[str, bytes]:
    contents = {}
    for field in ("key", "certificate", "ca"):
        path: Path = getattr(tls, field)
        try:
            contents[field] = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"{section}.{field}: {path}: {error.strerror}") from error
    return contents


def _load(context: ssl.SSLContext, tls: Tls, section: str) -> ssl.SSLContext:
    # OpenSSL's own complaints name no file.
    _contents(tls, section)
    # Open vSwitch 3.1 speaks 1.3; a user's ssl_protocols may hold it to 1.2.
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(tls.ca)
    except ssl.SSLError as error:
        raise SettingsError(f"{section}.ca: {tls.ca}: no PEM file of certificates") from error
    try:
        # Nobody is there to be asked for a password.
        context.load_cert_chain(tls.certificate, tls.key, password="")
    except ssl.SSLError as error:
        why = error.reason or "no PEM files of a certificate and an unencrypted key"
        raise SettingsError(
            f"{section}: certificate {tls.certificate} and key {tls.key}: {why}"
        ) from error
    return context
