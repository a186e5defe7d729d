"""Enrolment with a real API server and real tokens: who gets a certificate, and who does not."""

import json
import time
from collections.abc import Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from controller.authority import Authority
from lab import Lab
from tests.lab.enrolling import Enrolling, secret_pem, server_pem
from tests.lab.pings import address, ended, lost, ping, ping_while
from tests.lab.tokens import expired
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("lab", [{"source": "kube"}], indirect=True, ids=["kube"])
ROUTE = "/v1/nodes/node1/certificate"


@pytest.fixture(scope="module")
def enrolling(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Enrolling:
    made = Enrolling(lab, tmp_path_factory.mktemp("enrolling"))
    made.start()
    for pod, node in (("a", "node1"), ("b", "node2")):
        lab.pod_add("default", pod, node)
    return made


def csr(name: str = "", key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | None = None) -> bytes:
    """A request that asks for all kinds of things."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)] if name else [])
    request = (
        x509.CertificateSigningRequestBuilder(subject)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("controller")]), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .sign(key or ec.generate_private_key(ec.SECP256R1()), SHA256())
    )
    return request.public_bytes(Encoding.PEM)


def test_a_node_gets_a_certificate_and_its_pods_reach_each_other(enrolling: Enrolling) -> None:
    lab = enrolling.lab
    ping(lab, "default/a", address(lab, "default/b"))
    for node in ("node1", "node2"):
        assert len(enrolling.sessions(node)) == 1
        folder = enrolling.files(node)
        assert {path.name for path in folder.iterdir()} == {"key.pem", "cert.pem", "ca.pem"}
        assert folder.resolve().stat().st_mode & 0o777 == 0o700
        assert (folder / "key.pem").stat().st_mode & 0o777 == 0o600
        assert len(list(folder.parent.glob("tls*"))) == 2
    target = ["ovs-vsctl", "--bare", "--columns=target", "list", "controller"]
    assert lab.exec("node1", target).stdout.strip() == "ssl:172.30.0.2:6653"
    assert not any("Traceback" in log.read_text() for log in lab.layout.directory.rglob("*.log"))


def test_secret_and_config_map_hold_the_ca(enrolling: Enrolling) -> None:
    secret, shown = enrolling.data("secret"), enrolling.data("configmap")
    assert secret_pem(secret, "tls.crt").decode() == shown["ca.crt"]
    assert Authority.load(secret_pem(secret, "tls.crt"), secret_pem(secret, "tls.key"))


def test_extensions_of_a_request_are_ignored(enrolling: Enrolling) -> None:
    token = enrolling.node_token("node1")
    status, pem = enrolling.ask(ROUTE, body=csr("system:admin"), token=token)
    assert status == 200, pem
    made = x509.load_pem_x509_certificate(pem.encode())
    assert made.subject.rfc4514_string() == "CN=node1"
    extensions = made.extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["node1"]
    use = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(use) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    made.verify_directly_issued_by(
        x509.load_pem_x509_certificate(secret_pem(enrolling.data("secret"), "tls.crt"))
    )


TOKENS: dict[str, tuple[Callable[[Enrolling], str], int, str]] = {
    "none": (lambda _: "", 401, "a ServiceAccount token is needed"),
    "nonsense": (lambda _: "x.y.z", 401, "the token is not for 'sluice' or not good: "),
    "the API server's audience": (
        lambda it: it.node_token("node1", "https://kubernetes.default.svc"),
        401,
        "the token is not for 'sluice' or not good: ",
    ),
    "another ServiceAccount": (
        lambda it: it.token("--audience", "sluice", account="other"),
        403,
        "the token is system:serviceaccount:sluice-system:other's, not system:serviceaccount:"
        "sluice-system:sluice-agent's",
    ),
    "another node's": (
        lambda it: it.node_token("node2"),
        403,
        "the token is for Node node2, not Node node1",
    ),
    "of no Pod": (
        lambda it: it.token("--audience", "sluice"),
        403,
        "the token is for no Pod on a node, not Node node1",
    ),
    "expired": (
        lambda it: expired(it.node_token("node1"), it.lab.layout.control / "apiserver" / "pki"),
        401,
        "service account token has expired",
    ),
    "a user's": (
        lambda it: (it.lab.layout.control / "apiserver" / "pki" / "admin.token").read_text(),
        401,
        "the token is not for 'sluice' or not good: ",
    ),
}


@pytest.mark.parametrize("case", TOKENS)
def test_token_of_somebody_else_is_refused(enrolling: Enrolling, case: str) -> None:
    make, code, sentence = TOKENS[case]
    status, body = enrolling.ask(ROUTE, body=csr(), token=make(enrolling))
    assert status == code, body
    assert sentence in json.loads(body)["error"]
    assert sentence in enrolling.controller_said("no certificate")[-1]["reason"]


def test_token_of_a_deleted_pod_is_refused(enrolling: Enrolling) -> None:
    pod = json.loads(
        enrolling.kubectl("get", "pod", "agent-node1", "-n", "sluice-system", "-o", "json")
    )
    pod["metadata"] = {"name": "agent-gone", "namespace": "sluice-system"}
    enrolling.kubectl("create", "--validate=false", "-f", "-", stdin=json.dumps(pod))
    token = enrolling.node_token("gone")
    assert enrolling.ask(ROUTE, body=csr(), token=token)[0] == 200
    now = ("--grace-period=0", "--force")
    enrolling.kubectl("delete", "pod", "agent-gone", "-n", "sluice-system", *now)
    # The API server believes what it has just reviewed for some 10 s more.
    wait_until(lambda: enrolling.ask(ROUTE, body=csr(), token=token)[0] == 401)


def tampered() -> bytes:
    der = bytearray(x509.load_pem_x509_csr(csr()).public_bytes(Encoding.DER))
    der[-1] ^= 1
    return x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM)


REQUESTS: dict[str, tuple[Callable[[], bytes], int, str]] = {
    "nonsense": (lambda: b"hello", 400, "not a certificate request in PEM"),
    "empty": (lambda: b"\n", 400, "not a certificate request in PEM"),
    "RSA": (
        lambda: csr(key=rsa.generate_private_key(65537, 2048)),
        400,
        "the request's key is not ECDSA P-256",
    ),
    "another curve": (
        lambda: csr(key=ec.generate_private_key(ec.SECP384R1())),
        400,
        "the request's key is not ECDSA P-256",
    ),
    "another's key": (tampered, 400, "the request is not signed by its own key"),
    "long": (lambda: b"x" * (1 << 20), 413, "a certificate request has 4096 bytes at most"),
}


@pytest.mark.parametrize("case", REQUESTS)
def test_bad_certificate_request_is_refused(enrolling: Enrolling, case: str) -> None:
    make, code, sentence = REQUESTS[case]
    token = enrolling.node_token("node1")
    assert enrolling.ask(ROUTE, body=make(), token=token) == (
        code,
        json.dumps({"error": sentence}, separators=(",", ":")),
    )
    assert enrolling.controller_said("no certificate")[-1]["reason"] == sentence


def test_paths_that_need_a_certificate(enrolling: Enrolling) -> None:
    for path in ("/healthz", "/readyz", "/metrics"):
        assert enrolling.ask(path)[0] == 200
    sentence = "a certificate of Node node1 is needed"
    assert enrolling.ask("/v1/nodes/node1/config") == (403, f'{{"error":"{sentence}"}}')
    assert enrolling.ask("/v1/nodes/node1/digest", body=b"{}")[0] == 403
    assert enrolling.ask("/v1/status")[0] == 404


def test_enrolment_is_refused_without_the_api_server(enrolling: Enrolling) -> None:
    token, lab = enrolling.node_token("node1"), enrolling.lab
    lab.kill_daemon("control", "kube-apiserver")
    try:
        status, body = enrolling.ask(ROUTE, body=csr(), token=token)
        assert status == 503
        assert "the API server cannot review the token: " in body
        assert enrolling.ask("/v1/nodes/node1/certificate", body=csr())[0] == 401
        assert enrolling.ask("/healthz")[0] == 200
    finally:
        lab.up()
    wait_until(lambda: enrolling.ask(ROUTE, body=csr(), token=token)[0] == 200)


def test_refused_agent_reports_why_and_enrols_with_its_token(enrolling: Enrolling) -> None:
    file = enrolling.token_file("node2")
    good = file.read_text()
    file.write_text(enrolling.node_token("node1"))
    (enrolling.files("node2") / "cert.pem").unlink()
    enrolling.restart_agent("node2")
    try:
        sentence = "https://172.30.0.2:6654: the token is for Node node1, not Node node2"
        wait_until(lambda: sentence in enrolling.agent_log("node2"))
        # As long as the switch has its session, nothing is amiss for pods.
        wait_until(lambda: enrolling.refusal("node2") == "")
        enrolling.dial("node2", "ssl:127.0.0.1:1")
        wait_until(lambda: enrolling.refusal("node2"))
        assert f"no certificate for this node: {sentence}" in enrolling.refusal("node2")
        file.unlink()
        absent = f"agent.enrolment.token: {file}: No such file or directory"
        wait_until(lambda: absent in enrolling.refusal("node2"))
    finally:
        file.write_text(good)
    enrolling.dial("node2")
    enrolling.wait_ready()
    assert "Traceback" not in enrolling.agent_log("node2")


@pytest.fixture
def short_lived(enrolling: Enrolling) -> Iterator[Enrolling]:
    """Certificates for 15 s."""

    def renew(lifetime: float) -> None:
        enrolling.restart_controller(lifetime=lifetime)
        before = {node: enrolling.certificate(node).serial_number for node in ("node1", "node2")}
        for node in before:
            (enrolling.files(node) / "cert.pem").unlink()
        wait_until(
            lambda: all(
                (enrolling.files(node) / "cert.pem").exists()
                and enrolling.certificate(node).serial_number != before[node]
                for node in before
            )
        )
        enrolling.wait_ready()

    renew(15)
    yield enrolling
    renew(86_400)


def test_renewal_costs_no_packet_and_no_session(short_lived: Enrolling) -> None:
    lab = short_lived.lab
    first = short_lived.certificate("node1")
    own = server_pem(lab, short_lived.ca)
    sessions = [short_lived.sessions(node) for node in ("node1", "node2")]
    with ping_while(lab, "default/a", address(lab, "default/b")) as pinging:
        wait_until(lambda: time.time() > first.not_valid_after_utc.timestamp() + 1, 60)
        second = short_lived.certificate("node1")
        assert second.serial_number != first.serial_number
        assert second.public_key() != first.public_key()
        assert [short_lived.sessions(node) for node in ("node1", "node2")] == sessions
        assert not lost(ended(pinging))
    wait_until(lambda: server_pem(lab, short_lived.ca) != own)

    # A new connection is by what is there now: with the first certificate it would be refused.
    short_lived.dial("node1", "ssl:127.0.0.1:1")
    wait_until(lambda: not short_lived.sessions("node1"))
    short_lived.dial("node1")
    wait_until(lambda: len(short_lived.sessions("node1")) == 1)
    wait_until(lambda: not short_lived.refusal("node1"))


def test_new_ca_replaces_the_old_one(enrolling: Enrolling) -> None:
    old, new = enrolling.data("configmap")["ca.crt"], Authority.new()
    sessions = [enrolling.sessions(node) for node in ("node1", "node2")]
    theirs = new.certificate_pem.decode()
    enrolling.put("configmap", {"ca.crt": old + theirs})
    enrolling.spread_ca()
    wait_until(
        lambda: all(
            (enrolling.files(n) / "ca.pem").read_text() == old + theirs for n in ("node1", "node2")
        )
    )
    enrolling.put("secret", {"tls.crt": theirs, "tls.key": new.key_pem.decode()})

    def shown_is_new() -> bool:
        shown = x509.load_pem_x509_certificate(server_pem(enrolling.lab, enrolling.ca).encode())
        return _issued(shown, new)

    wait_until(shown_is_new, 90)
    assert enrolling.data("configmap")["ca.crt"] == old + theirs
    enrolling.put("configmap", {"ca.crt": theirs})
    enrolling.spread_ca()
    wait_until(lambda: all(_issued(enrolling.certificate(n), new) for n in ("node1", "node2")))
    assert [enrolling.sessions(node) for node in ("node1", "node2")] == sessions
    enrolling.restart_controller()
    enrolling.wait_ready()
    wait_until(lambda: len(enrolling.sessions("node2")) == 1)


def _issued(certificate: x509.Certificate, ca: Authority) -> bool:
    try:
        certificate.verify_directly_issued_by(ca.certificate)
    except Exception:  # noqa: BLE001  InvalidSignature, or another name
        return False
    return True


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        ({"tls.crt": "x", "tls.key": "y"}, "no PEM of a CA's certificate and its unencrypted key"),
        ({"tls.key": Authority.new().key_pem.decode()}, "the key is not the certificate's"),
    ],
)
def test_unusable_ca_is_reported_and_the_old_one_stays(
    enrolling: Enrolling, data: dict[str, str], sentence: str
) -> None:
    good = {
        name: secret_pem(enrolling.data("secret"), name).decode() for name in ("tls.crt", "tls.key")
    }
    enrolling.put("secret", data)
    try:
        enrolling.restart_controller()
        subject = "Secret sluice-system/sluice-ca"
        wait_until(
            lambda: any(
                line["subject"] == subject
                and f"Secret: tls.crt, tls.key: {sentence}" in line["problem"]
                for line in enrolling.controller_said("problem")
            )
        )
    finally:
        enrolling.put("secret", good)
    enrolling.wait_ready()
