"""Enrolment: the controller is the CA of the nodes and signs certificates for their agents.

An agent proves its node with a ServiceAccount token of its Pod. The API server reviews the token:
its claims name the node of the Pod (KEP-4193).
"""

import asyncio
import os
from base64 import b64decode, b64encode
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
import structlog
from aiohttp import web
from kubernetes.aio import client

from controller import authority, metrics
from controller.authority import Authority, AuthorityError
from controller.kubernetes_api import FAULTS, read, sentence
from controller.sources.feed import Feed
from controller.token_review import Connect, Refused, bearer, review
from flows.refs import ObjectRef
from settings import ControllerEnrolment, SettingsError
from settings.tls import Identity
from wire import viewing
from wire.documents import Refusal, encode
from wire.paths import MAX_CERTIFICATE_REQUEST

NAME: Final = viewing.CA
"""Name of the Secret and of the ConfigMap."""
AUDIENCE: Final = "sluice"
SERVICE_ACCOUNT: Final = "sluice-agent"
_NODE_CLAIM: Final = "authentication.kubernetes.io/node-name"
MOST_AT_ONCE: Final = 16
"""Requests that are handled at the same time; each asks the API server."""
LONGEST_BODY: Final = 10.0
"""Seconds until the request has been sent."""
_LOOK_AGAIN: Final = (2.0, 30.0)
"""Seconds between two reads of Secret and ConfigMap: before there is a CA, and after."""

log = structlog.get_logger()


class _Held(msgspec.Struct, frozen=True):
    """The data of a Secret or a ConfigMap; all other fields are written back unchanged."""

    data: dict[str, str] | None = None


class Enrolment:
    """`identity` is the controller's own, `sign` is a route for agents; `run` maintains both."""

    def __init__(
        self,
        settings: ControllerEnrolment,
        connect: Connect,
        feed: Feed,
    ) -> None:
        """Raises `SettingsError` if the addresses of the controller are unknown."""
        self._settings = settings
        self._connect = connect
        self._feed = feed
        self._addresses = settings.addresses or tuple(filter(None, [os.environ.get("HOST_IP")]))
        if not self._addresses:
            raise SettingsError(
                "controller.enrolment.addresses: none, and the environment has no HOST_IP"
            )
        self._life = timedelta(seconds=settings.lifetime)
        self._authority: Authority | None = None
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)
        # Until the CA has been read, nobody trusts us and we trust nobody; but probes are answered.
        nobody = Authority.new()
        self._own: Identity
        self._renewal: datetime
        self._renew(nobody, nobody.certificate_pem)

    def identity(self) -> Identity:
        """The controller's key and certificate, and the CAs whose certificates it accepts."""
        return self._own

    @property
    def problem(self) -> str:
        """Why no node can enrol; empty if nodes can."""
        return "" if self._authority else "the CA has not been read from the API server yet"

    async def run(self) -> None:
        """Read the CA or create it, follow its replacement, renew our own certificate; for ever."""
        subject = ObjectRef("Secret", self._settings.namespace, NAME)
        while True:
            try:
                async with await self._connect() as api:
                    found = await self._secret(api)
                    bundle = await self._publish(api, found)
            except (*FAULTS, AuthorityError) as error:
                self._feed.report(subject, sentence(error))
            else:
                self._feed.report(subject, "")
                if (self._authority, self._own.ca) != (found, bundle.encode()):
                    self._authority = found
                    self._renew(found, bundle.encode())
                    log.info("enrolling nodes", ca=found.certificate.subject.rfc4514_string())
            # Also while the API server is unreachable: otherwise no node could connect again.
            if self._authority and datetime.now(UTC) >= self._renewal:
                self._renew(self._authority, self._own.ca)
            due = (self._renewal - datetime.now(UTC)).total_seconds()
            await asyncio.sleep(max(1.0, min(due, _LOOK_AGAIN[self._authority is not None])))

    def _renew(self, ca: Authority, bundle: bytes) -> None:
        key, certificate = ca.for_controller(self._addresses, self._life)
        self._own = Identity(
            key, certificate, bundle,
            pair_name="controller.enrolment: our own certificate",
            ca_name=f"ConfigMap {self._settings.namespace}/{NAME}: ca.crt",
        )  # fmt: skip
        until = authority.expiry(certificate)
        metrics.CERTIFICATE_EXPIRY.set(until.timestamp())
        metrics.CA_EXPIRY.set(ca.certificate.not_valid_after_utc.timestamp())
        self._renewal = until - (until - datetime.now(UTC)) / 3

    async def _secret(self, api: client.ApiClient) -> Authority:
        """The CA of the Secret; an empty Secret gets a new one."""
        path = f"/api/v1/namespaces/{self._settings.namespace}/secrets/{NAME}"
        secret = await read(api, "GET", path)
        held = msgspec.json.decode(secret, type=_Held).data or {}
        try:
            certificate, key = (b64decode(held.get(name, "")) for name in ("tls.crt", "tls.key"))
            if certificate or key:
                return Authority.load(certificate, key)
        except ValueError as error:
            raise AuthorityError(f"Secret: tls.crt, tls.key: {error}") from None
        made = Authority.new()
        held["tls.crt"] = b64encode(made.certificate_pem).decode()
        held["tls.key"] = b64encode(made.key_pem).decode()
        # With the resourceVersion that was read: if another controller was faster, this is a 409,
        # and the next read finds its CA.
        await read(api, "PUT", path, msgspec.json.decode(secret) | {"data": held})
        log.info("made a CA for the nodes", secret=f"{self._settings.namespace}/{NAME}")
        return made

    async def _publish(self, api: client.ApiClient, ours: Authority) -> str:
        """The bundle of the ConfigMap; our CA is added if it is missing."""
        path = f"/api/v1/namespaces/{self._settings.namespace}/configmaps/{NAME}"
        shown = await read(api, "GET", path)
        held = msgspec.json.decode(shown, type=_Held).data or {}
        try:
            bundle = authority.with_certificate(held.get("ca.crt", ""), ours)
        except AuthorityError as error:
            raise AuthorityError(f"ConfigMap: ca.crt: {error}") from None
        if bundle != held.get("ca.crt"):
            held["ca.crt"] = bundle
            await read(api, "PUT", path, msgspec.json.decode(shown) | {"data": held})
        return bundle

    async def sign(self, request: web.Request) -> web.Response:
        """Answer a request of `wire.paths.CERTIFICATE`."""
        node = request.match_info["node"]
        try:
            certificate = await self._signed(node, request)
        except Refused as refusal:
            log.warning("no certificate", node=node, peer=request.remote, reason=str(refusal))
            answer = encode(Refusal(str(refusal)))
            return web.Response(status=refusal.status, body=answer, content_type="application/json")
        until = authority.expiry(certificate)
        log.info("certificate signed", node=node, peer=request.remote, until=str(until))
        return web.Response(body=certificate, content_type="application/pem-certificate-chain")

    async def _signed(self, node: str, request: web.Request) -> bytes:
        token = bearer(request)
        if self._authority is None:
            raise Refused(503, self.problem)
        if self._turns.locked():
            raise Refused(429, f"{MOST_AT_ONCE} nodes enrol already; try again")
        async with self._turns:
            body = await _body(request)
            await self._check(node, token)
        try:
            asked = authority.read_request(body)
        except AuthorityError as error:
            raise Refused(400, str(error)) from None
        return self._authority.for_node(node, asked, self._life)

    async def _check(self, node: str, token: str) -> None:
        """Raise `Refused` unless this is the token of this node's agent."""
        account = (self._settings.namespace, SERVICE_ACCOUNT)
        user = await review(self._connect, token, AUDIENCE, [account])
        nodes = user.extra.get(_NODE_CLAIM, [])
        if nodes != [node]:
            named = f"Node {nodes[0]}" if nodes else "no Pod on a node"
            raise Refused(403, f"the token is for {named}, not Node {node}")


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(LONGEST_BODY):
            await request.content.readexactly(MAX_CERTIFICATE_REQUEST + 1)
    except asyncio.IncompleteReadError as whole:
        return whole.partial
    except TimeoutError:
        raise Refused(408, "the request does not come to its end") from None
    raise Refused(413, f"a certificate request has {MAX_CERTIFICATE_REQUEST} bytes at most")
