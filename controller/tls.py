"""TLS as the controller speaks it to agents and switches."""

import ssl
from collections.abc import Callable

import structlog

from settings.tls import Identity, Replaceable, listening_context, server_context

log = structlog.get_logger()


def for_switches(identity: Callable[[], Identity]) -> ssl.SSLContext:
    """Whoever has no certificate is not spoken to. Raises `SettingsError`."""
    return _listening(identity, ssl.CERT_REQUIRED)


def for_agents(identity: Callable[[], Identity]) -> ssl.SSLContext:
    """A certificate may be missing: kubelet's probes have none, and who enrols has none yet.

    What needs one, the API itself says. Raises `SettingsError`.
    """
    return _listening(identity, ssl.CERT_OPTIONAL)


def _listening(identity: Callable[[], Identity], clients: ssl.VerifyMode) -> ssl.SSLContext:
    def make(identity: Identity) -> ssl.SSLContext:
        context = server_context(identity, clients)
        context.sslobject_class = _Logged
        return context

    return listening_context(Replaceable(identity, make))


class _Logged(ssl.SSLObject):
    """asyncio drops whoever fails the TLS handshake without a word; this says why."""

    def do_handshake(self) -> None:
        """As `ssl.SSLObject` has it."""
        try:
            super().do_handshake()
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            raise
        except ssl.SSLError as error:
            # Whose it was nobody tells here: this object has buffers, but no socket.
            log.warning("a TLS handshake failed", reason=_reason(error))
            raise


def _reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the peer's certificate: {error.verify_message}"
    return (error.reason or str(error)).lower().replace("_", " ")
