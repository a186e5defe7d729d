"""Who gets a node's certificate, by what the API server says of the token."""

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from controller import tls, token_review
from controller.authority import Authority
from controller.enrolment import Enrolment
from settings import ControllerEnrolment
from settings.tls import Identity

CLAIM = "authentication.kubernetes.io/node-name"
GOOD: Mapping[str, Any] = {
    "authenticated": True,
    "audiences": ["sluice"],
    "user": {
        "username": "system:serviceaccount:sluice-system:sluice-agent",
        "extra": {CLAIM: ["node1"]},
    },
}


def csr_with_key() -> tuple[bytes, x509.CertificateSigningRequest]:
    """A new key in PEM, and a request for it."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "anything")])
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    return pem, builder.sign(key, SHA256())


def csr() -> bytes:
    return csr_with_key()[1].public_bytes(Encoding.PEM)


class Reports:
    """In the place of the controller's feed: nobody reads what is reported."""

    def report(self, subject: object, problem: str) -> None: ...


class Api:
    """In the place of the client of an API server."""

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *_: object) -> None: ...


async def connect() -> Api:
    return Api()


def enrolling() -> Enrolment:
    made = Enrolment(ControllerEnrolment(addresses=("172.30.0.2",)), connect, Reports())  # type: ignore[arg-type]
    made._authority = Authority.new()
    return made


def asked(
    monkeypatch: pytest.MonkeyPatch,
    verdict: Mapping[str, Any],
    authorization: str = "Bearer token",
    made: Enrolment | None = None,
) -> tuple[int, str]:
    """Status and text of an answer to a request for node1's certificate."""
    reviewed: list[Any] = []

    async def answer(_: object, method: str, path: str, body: object = None) -> bytes:
        reviewed.append((method, path.rpartition("/")[2], body))
        return msgspec.json.encode({"status": verdict})

    monkeypatch.setattr(token_review, "read", answer)
    made = made or enrolling()

    async def main() -> tuple[int, str]:
        app = web.Application()
        app.router.add_post("/v1/nodes/{node}/certificate", made.sign)
        async with TestClient(TestServer(app)) as client:
            headers = {"Authorization": authorization} if authorization else {}
            path = "/v1/nodes/node1/certificate"
            async with client.post(path, data=csr(), headers=headers) as response:
                return response.status, await response.text()

    found = asyncio.run(main())
    for method, kind, body in reviewed:
        assert (method, kind) == ("POST", "tokenreviews")
        assert body["spec"] == {"token": "token", "audiences": ["sluice"]}
    return found


def test_token_of_the_nodes_agent_gets_its_certificate(monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = asked(monkeypatch, GOOD)
    assert status == 200
    subject = x509.load_pem_x509_certificate(text.encode()).subject
    assert subject.rfc4514_string() == "CN=node1"


def user(**changes: Any) -> dict[str, Any]:
    return {**GOOD, "user": {**GOOD["user"], **changes}}


@pytest.mark.parametrize(
    ("verdict", "status", "why"),
    [
        (user(extra={}), 403, "the token is for no Pod on a node"),
        (user(extra={CLAIM: []}), 403, "the token is for no Pod on a node"),
        (user(extra={CLAIM: ["node2"]}), 403, "the token is for Node node2"),
        (user(extra={CLAIM: ["node2", "node1"]}), 403, "the token is for Node node2"),
        (user(username="system:serviceaccount:other:sluice-agent"), 403, "other:sluice-agent's"),
        (user(username="system:serviceaccount:sluice-system:web"), 403, "sluice-system:web's"),
        (user(username=""), 403, "the token is 's"),
        ({**GOOD, "audiences": ["vault"]}, 401, "it is for another audience"),
        ({**GOOD, "audiences": []}, 401, "it is for another audience"),
        ({**GOOD, "authenticated": False}, 401, "not good"),
        ({}, 401, "not good"),
    ],
)
def test_token_that_does_not_name_the_node_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, verdict: Mapping[str, Any], status: int, why: str
) -> None:
    found, text = asked(monkeypatch, verdict)
    assert found == status
    assert why in text
    assert "CERTIFICATE" not in text


@pytest.mark.parametrize("authorization", ["", "Basic token", "Bearer", "Bearer "])
def test_request_without_a_token_gets_nothing(
    monkeypatch: pytest.MonkeyPatch, authorization: str
) -> None:
    assert asked(monkeypatch, GOOD, authorization)[0] == 401


def test_nothing_is_signed_before_the_ca_was_read(monkeypatch: pytest.MonkeyPatch) -> None:
    made = enrolling()
    made._authority = None
    assert asked(monkeypatch, GOOD, made=made)[0] == 503


def shake_hands(server: ssl.SSLContext, certificate: Path | None = None) -> object:
    """What the server knows of a client, which may show a certificate. Raises `ssl.SSLError`."""
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    if certificate:
        client.load_cert_chain(certificate)
    wires = [ssl.MemoryBIO(), ssl.MemoryBIO()]
    ends = [
        client.wrap_bio(wires[0], wires[1]),
        server.wrap_bio(wires[1], wires[0], server_side=True),
    ]
    done: set[int] = set()
    for _ in range(10):
        for number, end in enumerate(ends):
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
                done.add(number)
    assert done == {0, 1}
    return (ends[1].getpeercert() or {}).get("subject")


def test_switch_without_a_certificate_is_refused_and_agent_is_not() -> None:
    identity = enrolling().identity
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        shake_hands(tls.for_switches(identity))
    assert shake_hands(tls.for_agents(identity)) is None


@pytest.mark.parametrize("context", [tls.for_switches, tls.for_agents])
def test_certificate_of_our_ca_names_the_client_and_others_are_refused(
    tmp_path: Path, context: Callable[[Callable[[], Identity]], ssl.SSLContext]
) -> None:
    made, ours = enrolling(), Authority.new()
    made._renew(ours, ours.certificate_pem)
    server = context(made.identity)
    for authority, file in ((ours, tmp_path / "ours"), (Authority.new(), tmp_path / "other")):
        key, request = csr_with_key()
        file.write_bytes(key + authority.for_node("node1", request, timedelta(days=1)))
    assert shake_hands(server, tmp_path / "ours") == ((("commonName", "node1"),),)
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        shake_hands(server, tmp_path / "other")
