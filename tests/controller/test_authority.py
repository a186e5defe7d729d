"""The nodes' CA: what it signs, for whom and for how long."""

from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller import authority
from controller.authority import Authority, AuthorityError

DAY = timedelta(days=1)


def name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def request(common: str = "node1", key: ec.EllipticCurvePrivateKey | None = None) -> bytes:
    """A request that also asks to be a CA, for any use, under another name."""
    key = key or ec.generate_private_key(ec.SECP256R1())
    builder = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(name(common))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("controller")]), critical=False)
    )
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM)


def signed(ca: Authority, node: str = "node1", life: timedelta = DAY) -> x509.Certificate:
    pem = ca.for_node(node, authority.read_request(request("another")), life)
    return x509.load_pem_x509_certificate(pem)


def ca_that_ends(end: datetime, *, is_ca: bool = True) -> Authority:
    """A CA of the operator's own, good until `end`."""
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = (
        x509.CertificateBuilder(name("ours"), name("ours"), key.public_key(), 1)
        .not_valid_before(end - 10 * DAY)
        .not_valid_after(end)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .sign(key, SHA256())
    )
    return Authority(certificate, key)


def test_certificate_names_the_node_and_nothing_that_the_request_asks_for() -> None:
    certificate = signed(Authority.new())
    extensions = certificate.extensions
    assert certificate.subject == name("node1")
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
    alternative = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(alternative) == [x509.DNSName("node1")]
    use = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(use) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    assert (usage.key_cert_sign, usage.crl_sign) == (False, False)


def test_certificate_of_the_controller_is_for_a_server() -> None:
    _, pem = Authority.new().for_controller(["172.30.0.2", "sluice.example"], DAY)
    extensions = x509.load_pem_x509_certificate(pem).extensions
    use = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(use) == [ExtendedKeyUsageOID.SERVER_AUTH]
    alternative = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["controller", "sluice.example"]


def test_certificate_never_outlives_its_ca() -> None:
    end = datetime.now(UTC).replace(microsecond=0) + DAY
    ca = ca_that_ends(end)
    assert signed(ca, life=5 * DAY).not_valid_after_utc == end
    assert authority.expiry(ca.for_controller([], 5 * DAY)[1]) == end


def test_certificate_ends_with_its_lifetime() -> None:
    before = datetime.now(UTC)
    certificate = signed(Authority.new())
    assert certificate.not_valid_after_utc <= datetime.now(UTC) + DAY
    assert certificate.not_valid_after_utc >= before + DAY - timedelta(seconds=1)


def test_certificate_is_not_older_than_its_ca() -> None:
    ca = Authority.new()
    assert signed(ca, life=3650 * DAY).not_valid_before_utc == ca.certificate.not_valid_before_utc


def test_ca_that_has_ended_is_refused() -> None:
    ended = ca_that_ends(datetime.now(UTC) - timedelta(seconds=1))
    with pytest.raises(AuthorityError, match="has expired"):
        Authority.load(ended.certificate_pem, ended.key_pem)


def test_certificate_that_is_no_ca_is_refused() -> None:
    node = ca_that_ends(datetime.now(UTC) + DAY, is_ca=False)
    with pytest.raises(AuthorityError, match="is not a CA's"):
        Authority.load(node.certificate_pem, node.key_pem)


def test_key_of_another_ca_is_refused() -> None:
    one, other = Authority.new(), Authority.new()
    with pytest.raises(AuthorityError, match="not the certificate's"):
        Authority.load(one.certificate_pem, other.key_pem)
    assert Authority.load(one.certificate_pem, one.key_pem) == one


def test_request_that_its_sender_cannot_sign_is_refused() -> None:
    """As by somebody who has seen the public key of another."""
    mine = x509.load_pem_x509_csr(request()).public_bytes(Encoding.DER)
    theirs = x509.load_pem_x509_csr(request()).public_bytes(Encoding.DER)
    size = 32  # of the signature's end, which is random
    forged = x509.load_der_x509_csr(mine[:-size] + theirs[-size:])
    with pytest.raises(AuthorityError, match="not signed by its own key"):
        authority.read_request(forged.public_bytes(Encoding.PEM))


@pytest.mark.parametrize("curve", [ec.SECP384R1(), None], ids=["P-384", "RSA"])
def test_request_with_another_kind_of_key_is_refused(curve: ec.EllipticCurve | None) -> None:
    key = ec.generate_private_key(curve) if curve else rsa.generate_private_key(65537, 2048)
    builder = x509.CertificateSigningRequestBuilder().subject_name(name("node1"))
    pem = builder.sign(key, SHA256()).public_bytes(Encoding.PEM)
    with pytest.raises(AuthorityError, match="not ECDSA P-256"):
        authority.read_request(pem)


def test_bundle_keeps_other_cas() -> None:
    old, new = Authority.new(), Authority.new()
    bundle = authority.with_certificate(old.certificate_pem.decode(), new)
    assert x509.load_pem_x509_certificates(bundle.encode()) == [old.certificate, new.certificate]
    assert authority.with_certificate(bundle, old) == bundle
