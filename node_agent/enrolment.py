"""AgentEnrolment: how a node gets its certificate, and keeps having one.

The key is made here and never leaves the node.
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
"""Seconds between two looks at whether a new certificate is needed."""
_BACKOFF: Final = (1.0, 30.0)
"""Seconds before the second try, and at most."""
_TIMEOUT: Final = 30.0
"""Seconds that a controller may take; it has to ask the API server."""

log = structlog.get_logger()


class _NotEnrolledError(NodeFault):
    """Why there is no new certificate."""


async def stay_enrolled(
    agent: Agent, enrolment: AgentEnrolment, report: Callable[[str], None]
) -> None:
    """Have a certificate of this node, and a new one in time; for ever.

    `report` is told why there is no new one, and the empty text once there is. What is in force
    stays so until then. A new one is due when there is none of use, at two thirds of its lifetime
    (at random around it, so that a thousand agents do not come at one moment), and when the CA
    file has been replaced: the new CA may be about to be the only one.
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
    """Why a new certificate is needed; None where it is not."""
    try:
        pem = files.certificate.read_bytes()
        certificate = x509.load_pem_x509_certificate(pem)
        name = _common_name(certificate)
        client_context(Identity(files.key.read_bytes(), pem, files.ca.read_bytes(), "", ""))
    except (OSError, ValueError, x509.ExtensionNotFound):  # SettingsError is a ValueError
        return "there is none of use"
    if name != node:
        return "it is another node's"
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if datetime.now(UTC) >= begin + (end - begin) * share:
        return f"it is good until {end} only"
    try:
        replaced = ca.read_bytes() != files.ca.read_bytes()
    except OSError:
        return None
    return "the CA has been replaced" if replaced else None


async def _enrol(agent: Agent, enrolment: AgentEnrolment) -> datetime:
    """Ask for a certificate and put it in place; until when it is good.

    Raises `ControllerError`, `SettingsError`, `_NotEnrolledError`, `OSError`.
    """
    token = _read(enrolment.token, "agent.enrolment.token").decode(errors="replace").strip()
    ca = _read(enrolment.ca, "agent.enrolment.ca")
    key = ec.generate_private_key(ec.SECP256R1())
    # The controller hears nothing of a request but its key.
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())

    def signed(body: bytes) -> x509.Certificate:
        certificate = x509.load_pem_x509_certificate(body)
        if certificate.public_key() != key.public_key():
            raise ValueError("the controller has signed another key than ours")
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
