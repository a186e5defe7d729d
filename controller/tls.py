"""The controller's TLS contexts, for agents, switches and viewers."""

import ssl
from collections.abc import Callable

from settings.tls import Identity, Replaceable, listening_context, nobodys_context, server_context


def for_switches(identity: Callable[[], Identity]) -> ssl.SSLContext:
    """A certificate is required. Raises `SettingsError`."""
    return _listening(identity, ssl.CERT_REQUIRED)


def for_agents(identity: Callable[[], Identity]) -> ssl.SSLContext:
    """A certificate is optional: kubelet's probes have none, and an agent that enrols has none yet.

    The API checks the certificate where one is needed. Raises `SettingsError`.
    """
    return _listening(identity, ssl.CERT_OPTIONAL)


def for_viewers(identity: Callable[[], Identity]) -> ssl.SSLContext:
    """No certificate is asked for: people show a token. Raises `SettingsError`."""
    return _listening(identity, ssl.CERT_NONE)


def for_leader(
    identity: Callable[[], Identity] | None,
) -> Callable[[], ssl.SSLContext] | None:
    """For a client of another controller, which must be of our CA; None: plain TCP.

    What is returned raises `SettingsError`.
    """
    if identity is None:
        return None
    return Replaceable(identity, lambda own: nobodys_context(own.ca, own.ca_name)).context


def _listening(identity: Callable[[], Identity], clients: ssl.VerifyMode) -> ssl.SSLContext:
    def make(identity: Identity) -> ssl.SSLContext:
        return server_context(identity, clients)

    return listening_context(Replaceable(identity, make))
