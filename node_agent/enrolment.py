"""Enrolment: the agent gets a certificate from the controller, and renews it in time.

The agent makes the private key, and the key never leaves the node.
"""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, Never

import msgspec
import structlog
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from node_agent.controllers import ControllerError, Controllers, Credentials
from node_agent.faults import NodeFault
from node_agent.tls_files import kept, put
from settings import Agent, AgentEnrolment, SettingsError, Tls
from settings.tls import Identity, client_context, nobodys_context
from wire import paths
from wire.documents import decode_refusal

_LOOK: Final = 2.0
"""Seconds between two checks whether a new certificate is needed."""
_BACKOFF: Final = (1.0, 30.0)
"""Seconds: the first delay after a failure, and the longest one."""
_TIMEOUT: Final = 30.0
"""Seconds that a controller may take for its answer: it asks the API server first."""

log = structlog.get_logger()


class _NotEnrolledError(NodeFault):
    """Why there is no new certificate."""


async def stay_enrolled(
    agent: Agent, enrolment: AgentEnrolment, report: Callable[[str], None]
) -> None:
    """Get a certificate for this node, and renew it in time. Never ends.

    `report` gets the reason of a failure, and the empty text after a success. The old certificate
    stays in use until there is a new one. A new one is requested in three cases: there is no usable
    one; about two thirds of its lifetime have passed (at random, so that a thousand agents do not
    ask at one moment); or the CA file was replaced, because the old CA may soon be trusted no more.
    """
    files = kept(agent.state)
    share, delay, problem = random.uniform(0.62, 0.7), _BACKOFF[0], ""  # noqa: S311  no secret
    while True:
        if (due := _due(agent.node, files, enrolment.ca, share)) is None:
            await asyncio.sleep(_LOOK)
            continue
        try:
            until = await _enrol(agent, enrolment)
        except (ControllerError, SettingsError, _NotEnrolledError, OSError) as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("no certificate for this node", why=due, error=problem)
                report(f"no certificate for this node: {problem}")
            await asyncio.sleep(delay * random.uniform(0.5, 1))  # noqa: S311
            delay = min(delay * 2, _BACKOFF[1])
            continue
        share, delay, problem = random.uniform(0.62, 0.7), _BACKOFF[0], ""  # noqa: S311
        log.info("this node has a certificate", why=due, until=str(until))
        report("")


def _due(node: str, files: Tls, ca: Path, share: float) -> str | None:
    """Why a new certificate is needed, or None."""
    try:
        pem = files.certificate.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        name = _common_name(certificate)
        client_context(Identity(files.key.read_bytes(), pem, files.ca.read_bytes(), "", ""))
    except (OSError, ValueError, x509.ExtensionNotFound):  # SettingsError is a ValueError
        return "there is no usable certificate"
    if name != node:
        return "the certificate is for another node"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if datetime.now(UTC) >= begin + (end - begin) * share:
        return f"the certificate expires on {end}"
    try:
        replaced = ca.read_bytes() != files.ca.read_bytes()
    except OSError:
        return None
    return "the CA was replaced" if replaced else None


async def _enrol(agent: Agent, enrolment: AgentEnrolment) -> datetime:
    """Request a certificate and store it; return the time of its expiry.

    Raises `ControllerError`, `SettingsError`, `_NotEnrolledError`, `OSError`.
    """
    token = _read(enrolment.token, "agent.enrolment.token").decode(errors="replace").strip()
    ca = _read(enrolment.ca, "agent.enrolment.ca")
    key = ec.generate_private_key(ec.SECP256R1())
    # The controller takes only the public key from the request.
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())

    def signed(body: bytes) -> x509.Certificate:
        certificate = x509.load_pem_x509_certificate(body)
        if certificate.public_key() != key.public_key():
            raise ValueError("the controller signed a key that is not ours")
        return certificate

    context = nobodys_context(ca, f"agent.enrolment.ca: {enrolment.ca}")
    credentials = Credentials(lambda: context, f"agent.enrolment.ca is {enrolment.ca}", None)
    async with Controllers(agent, credentials) as controllers:
        certificate: x509.Certificate = await controllers.ask(
            "POST",
            paths.path_for(paths.CERTIFICATE, agent.node),
            answers={200: signed, **dict.fromkeys((400, 401, 403, 413, 429, 503), _refused)},
            timeout=_TIMEOUT,
            headers={"Authorization": f"Bearer {token}"},
            data=request.public_bytes(Encoding.PEM),
        )
    new = Identity(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        certificate.public_bytes(Encoding.PEM),
        ca,
        pair_name="the controller's answer",
        ca_name=f"agent.enrolment.ca: {enrolment.ca}",
    )
    await asyncio.to_thread(put, agent.state, new)
    return certificate.not_valid_after_utc


def _refused(body: bytes) -> Never:
    try:
        reason = decode_refusal(body)
    except msgspec.MsgspecError:
        raise ValueError("refused without a reason") from None
    raise ValueError(reason)


def _read(path: Path, field: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise SettingsError(f"{field}: {path}: {error.strerror}") from error


def _common_name(certificate: x509.Certificate) -> str:
    for attribute in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME):
        return str(attribute.value)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return next(iter(names.get_values_for_type(x509.DNSName)), "")
