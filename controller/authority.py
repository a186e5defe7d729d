"""The nodes' CA: what it signs, and what it is itself (X.509 as in RFC 5280). Pure.

All keys made here are ECDSA P-256: cheap when a thousand nodes come at once.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from typing import Final, Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.faults import ControllerFault
from wire import viewing

CONTROLLER: Final = viewing.SERVER_NAME
"""The name of the controller's own certificate, in which its addresses stand besides."""
_CA_LIFE: Final = timedelta(days=3650)
_CLOCKS: Final = 24
"""A certificate is good from this part of its lifetime before it was made: clocks differ."""


class AuthorityError(ControllerFault, ValueError):
    """A certificate, key or request cannot be used; the text says which one, and why."""


@dataclass(frozen=True, slots=True)
class Authority:
    """A CA's certificate and key; equal to another of the same certificate."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey = field(compare=False)

    @classmethod
    def new(cls) -> Self:
        """A new CA, valid for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _name("sluice CA")
        now = datetime.now(UTC)
        certificate = (
            x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - timedelta(hours=1))
            .not_valid_after(now + _CA_LIFE)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(ca=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False)
            .sign(key, SHA256())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Self:
        """From PEM. Raises `AuthorityError` unless the two belong to a CA and can sign now."""
        try:
            ours = x509.load_pem_x509_certificate(certificate)
            secret = load_pem_private_key(key, None)
            constraints = ours.extensions.get_extension_for_class(x509.BasicConstraints).value
        # TypeError: a key with a password.
        except (ValueError, TypeError, x509.ExtensionNotFound) as error:
            raise AuthorityError(
                f"no PEM of a CA's certificate and its unencrypted key: {error}"
            ) from None
        if not isinstance(secret, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise AuthorityError("the key is neither an EC nor an RSA key")
        if _public(ours) != _public(secret):
            raise AuthorityError("the key is not the certificate's")
        if not constraints.ca:
            raise AuthorityError("the certificate is not a CA's (basicConstraints CA:TRUE)")
        if ours.not_valid_after_utc <= datetime.now(UTC):
            raise AuthorityError(f"the certificate has expired on {ours.not_valid_after_utc}")
        return cls(ours, secret)

    @property
    def certificate_pem(self) -> bytes:
        """The CA's own certificate."""
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        """The CA's own key, not encrypted."""
        return _key_pem(self.key)

    def for_node(
        self, node: str, request: x509.CertificateSigningRequest, life: timedelta
    ) -> bytes:
        """A certificate in PEM for the request's key. Everything else in the request is ignored."""
        names: list[x509.GeneralName] = [x509.DNSName(node)]
        key = request.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)  # noqa: S101  `read_request` has looked
        return self._sign(node, names, key, ExtendedKeyUsageOID.CLIENT_AUTH, life)

    def for_controller(self, addresses: Iterable[str], life: timedelta) -> tuple[bytes, bytes]:
        """A new key and its certificate, PEM; `addresses` are IPs and DNS names."""
        key = ec.generate_private_key(ec.SECP256R1())
        names = [x509.DNSName(CONTROLLER), *map(_general_name, addresses)]
        certificate = self._sign(
            CONTROLLER, names, key.public_key(), ExtendedKeyUsageOID.SERVER_AUTH, life
        )
        return _key_pem(key), certificate

    def _sign(
        self,
        name: str,
        names: Iterable[x509.GeneralName],
        key: ec.EllipticCurvePublicKey,
        use: x509.ObjectIdentifier,
        life: timedelta,
    ) -> bytes:
        # Of the server's certificate Open vSwitch checks only CA and purpose, not the name.
        now = datetime.now(UTC)
        signed = (
            x509.CertificateBuilder()
            .subject_name(_name(name))
            .issuer_name(self.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(max(now - life / _CLOCKS, self.certificate.not_valid_before_utc))
            .not_valid_after(min(now + life, self.certificate.not_valid_after_utc))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
            # Critical where it stands for the subject (RFC 5280, 4.2.1.6).
            .add_extension(x509.SubjectAlternativeName(names), critical=not _name(name).rdns)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key()), False
            )
            .sign(self.key, SHA256())
        )
        return signed.public_bytes(Encoding.PEM)


def read_request(pem: bytes) -> x509.CertificateSigningRequest:
    """A PKCS #10 request, signed with its own key. Raises `AuthorityError`."""
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
    except ValueError:
        raise AuthorityError("not a certificate request in PEM") from None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise AuthorityError("the request's key is not ECDSA P-256")
    try:
        sound = request.is_signature_valid
    except (ValueError, InvalidSignature):
        sound = False
    if not sound:
        raise AuthorityError("the request is not signed by its own key")
    return request


def with_certificate(bundle: str, ours: Authority) -> str:
    """The bundle (PEM), with the CA added if it is missing. Raises `AuthorityError`."""
    try:
        there = x509.load_pem_x509_certificates(bundle.encode()) if bundle.strip() else []
    except ValueError as error:
        raise AuthorityError(f"no PEM of certificates: {error}") from None
    if ours.certificate in there:
        return bundle
    rest = f"{bundle.rstrip()}\n" if bundle.strip() else ""
    return rest + ours.certificate_pem.decode()


def expiry(pem: bytes) -> datetime:
    """When a certificate expires."""
    return x509.load_pem_x509_certificate(pem).not_valid_after_utc


def _usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        key_cert_sign=ca,
        crl_sign=ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    # A CN has 64 characters (RFC 5280, ub-common-name), a Node's name up to 253: the DNS name of
    # the certificate stands for longer ones.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)] if len(common) <= 64 else [])


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _key_pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def _public(of: x509.Certificate | ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> bytes:
    return of.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
