"""Mutual TLS as a whole: who gets in, who does not, and what each side says of it."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from controller.authority import Authority, expiry
from flows import names
from lab import Lab, LabError, certificates
from lab.daemons import kill
from lab.layout import CONTROL_ADDRESS
from lab.node import daemons
from lab.patience import PROGRAM_TIMEOUT
from lab.processes import running
from lab.programs import python
from lab.runtime import PluginError, Runtime
from node_agent.tls_files import kept
from settings import SettingsError, Tls
from settings.tls import client_context, read, server_context
from tests.lab.pings import ended, lost, ping, ping_while
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize("lab", [{"tls": True}], indirect=True, ids=["tls"])

OPENFLOW = "6653"


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another CA, which has signed another node1."""
    folder = tmp_path_factory.mktemp("foreign")
    certificates.authority(folder)
    certificates.sign(folder, "node1", "clientAuth", "DNS:node1")
    return folder


def said(lab: Lab) -> list[dict[str, object]]:
    """The controller's log, as far as its lines are finished."""
    text = Path(lab.status()["controller"]["log"]).read_text()
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def failed_handshakes(lab: Lab, seen: int) -> list[str]:
    """The reasons in the controller's log after so many lines."""
    events = [str(line["event"]).partition("TLS handshake failed: ") for line in said(lab)[seen:]]
    return [reason for _, found, reason in events if found]


def sessions(lab: Lab, node: str) -> list[str]:
    """The local addresses of a node's connections to where switches dial in."""
    ss = ["ss", "-tnH", "state", "established", "dport", "=", f":{OPENFLOW}"]
    return [line.split()[2] for line in lab.exec(node, ss).stdout.splitlines()]


def switch(lab: Lab, node: str) -> str:
    """Target and state of the node's Controller row."""
    vsctl = ["ovs-vsctl", "--bare", "--columns=target,is_connected", "list", "Controller"]
    return " ".join(lab.exec(node, vsctl).stdout.split())


CLIENT = """
import socket, ssl, sys
port, ca, certificate, key = sys.argv[1:]
with socket.create_connection(("172.30.0.2", int(port)), timeout=15) as connection:
    if ca:
        context = ssl.create_default_context(cafile=ca)
        if certificate:
            context.load_cert_chain(certificate, key)
        connection = context.wrap_socket(connection, server_hostname="172.30.0.2")
    try:
        connection.sendall(bytes.fromhex("0600000800000001"))
        print(connection.recv(100).hex() or "cut")
    except (ssl.SSLError, ConnectionError) as error:
        print("cut")
"""
"""Says OpenFlow's HELLO and prints the first bytes of the answer."""


def dial(lab: Lab, ca: Path | str, certificate: Path | str = "", key: Path | str = "") -> str:
    """What node1 hears where switches dial in; without a CA by plain TCP."""
    arguments = [OPENFLOW, str(ca), str(certificate), str(key)]
    return lab.exec("node1", [sys.executable, "-c", CLIENT, *arguments]).stdout.strip()


ASK = """
import ssl, sys, urllib.error, urllib.request
path, ca, certificate, key = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
context.load_cert_chain(certificate, key)
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
)
try:
    with opener.open("https://172.30.0.2:6654" + path) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    with error:
        print(error.code, error.read().decode())
"""


def ask(lab: Lab, path: str, files: Tls) -> tuple[int, str]:
    arguments = [path, str(files.ca), str(files.certificate), str(files.key)]
    status, _, body = lab.exec("node1", [sys.executable, "-c", ASK, *arguments]).stdout.partition(
        " "
    )
    return int(status), body.strip()


def test_pods_reach_each_other_and_the_session_is_tls(lab: Lab) -> None:
    assert lab.status()["tls"] is True
    lab.pod_add("default", "a", "node1")
    b = lab.pod_add("default", "b", "node2")
    assert b.address
    ping(lab, "default/a", b.address)
    for node in ("node1", "node2"):
        # ovs-vswitchd reports it every 5 s.
        wait_until(lambda node=node: switch(lab, node) == f"ssl:{CONTROL_ADDRESS}:{OPENFLOW} true")
        assert len(sessions(lab, node)) == 1


def test_running_lab_keeps_its_tls(lab: Lab) -> None:
    assert not lab.up()
    with pytest.raises(LabError, match="already up with tls True, not False"):
        lab.up(tls=False)


def test_only_root_reads_keys(lab: Lab) -> None:
    keys = list((lab.layout.directory / "tls").glob("*.key"))
    assert sorted(key.name for key in keys) == [
        "ca.key",
        "controller.key",
        "node1.key",
        "node2.key",
    ]
    assert {key.stat().st_mode & 0o777 for key in keys} == {0o600}


def test_peer_without_our_certificate_gets_no_answer(lab: Lab, foreign: Path) -> None:
    ours = certificates.files(lab.layout, "node1")
    before, seen = sessions(lab, "node1"), len(said(lab))
    assert dial(lab, ours.ca, ours.certificate, ours.key).startswith("06"), "the control is greeted"
    assert dial(lab, ours.ca) == "cut"
    assert dial(lab, ours.ca, foreign / "node1.pem", foreign / "node1.key") == "cut"
    assert dial(lab, "") == "cut"
    assert failed_handshakes(lab, seen) == [
        "peer did not return a certificate",
        "the peer's certificate: unable to get local issuer certificate",
        "wrong version number",
    ]
    assert sessions(lab, "node1") == before


@pytest.fixture
def nobody(lab: Lab, tmp_path: Path) -> Tls:
    """A certificate of our CA in which neither a CN nor a DNS name stands."""
    ca = lab.layout.directory / "tls" / "ca.pem"
    key, certificate = tmp_path / "nobody.key", tmp_path / "nobody.pem"
    request = subprocess.run(
        ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc",
         "-subj", "/O=nobody", "-keyout", key],
        capture_output=True, check=True,
    timeout=PROGRAM_TIMEOUT)  # fmt: skip
    subprocess.run(
        ["openssl", "x509", "-req", "-CA", ca, "-CAkey", ca.with_suffix(".key"),
         "-out", certificate],
        input=request.stdout, capture_output=True, check=True,
    timeout=PROGRAM_TIMEOUT)  # fmt: skip
    return Tls(key, certificate, ca)


@pytest.mark.parametrize("name", ["node2", ""])
def test_node_is_refused_under_another_name(lab: Lab, nobody: Tls, name: str) -> None:
    """node2's switch, with node2's certificate or a nameless one, says that it is node1's."""
    own = kept(lab.layout.node(2).directory / "state")
    before, seen = sessions(lab, "node1"), len(said(lab))

    def show(tls: Tls) -> None:
        """Shown from the next connection on; there is one SSL row for all of a switch's bridges."""
        files = [f"private_key={tls.key}", f"certificate={tls.certificate}"]
        lab.exec("node2", ["ovs-vsctl", "set", "SSL", ".", *files])

    thief = ["--", "set", "Bridge", "br-thief", "datapath_type=netdev", "protocols=OpenFlow15"]
    thief_id = f"{names.datapath_id('node1'):016x}"
    thief += [f"other-config:datapath-id={thief_id}", "fail_mode=secure"]
    dials = ["--", "set-controller", "br-thief", f"ssl:{CONTROL_ADDRESS}:{OPENFLOW}"]

    def refused() -> bool:
        return any(
            line["event"] == "a switch with another node's datapath id is refused"
            and (line["node"], line["datapath_id"]) == (name, thief_id)
            for line in said(lab)[seen:]
        )

    show(own if name else nobody)
    try:
        lab.exec("node2", ["ovs-vsctl", "add-br", "br-thief", *thief, *dials])
        wait_until(refused)
        dump = ["ovs-ofctl", "-O", "OpenFlow15", "dump-flows", "br-thief"]
        assert "cookie" not in lab.exec("node2", dump).stdout
    finally:
        lab.exec("node2", ["ovs-vsctl", "--if-exists", "del-br", "br-thief"])
        show(own)
    assert sessions(lab, "node1") == before
    lab.pod_add("default", f"after-{name or 'nobody'}", "node1")


def test_agent_learns_of_its_own_node_only(lab: Lab, nobody: Tls) -> None:
    node1, node2 = (certificates.files(lab.layout, node) for node in ("node1", "node2"))
    status, body = ask(lab, "/v1/nodes/node1/config", node1)
    assert (status, json.loads(body)["podCidr"]) == (200, "10.244.1.0/24")
    status, body = ask(lab, "/v1/nodes/node1/config", node2)
    sentence = "the certificate is node2's, not Node node1's"
    assert (status, json.loads(body)) == (403, {"error": sentence})
    assert ask(lab, "/v1/nodes/node1/config", nobody)[0] == 403
    # What tells of the whole cluster is for local users alone.
    for path in ("/v1/status", "/v1/nodes/node1/flows"):
        assert ask(lab, path, node1)[0] == 404
    assert ask(lab, "/healthz", node1) == (200, "ok")


SERVER = """
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(*sys.argv[1:])
with socket.create_server(("", 7777)) as server:
    print("ready", flush=True)
    connection, _ = server.accept()
    try:
        connection = context.wrap_socket(connection, server_side=True)
        print(connection.recv(100).hex() or "cut")
    except (ssl.SSLError, ConnectionError):
        print("cut")
    connection.close()
"""


@pytest.mark.parametrize(("shown", "heard"), [("controller", "06"), ("node2", "cut")])
def test_node_cannot_act_as_the_controller(lab: Lab, shown: str, heard: str) -> None:
    """Open vSwitch checks no name of whom it dials, only what the certificate is for."""
    theirs, ours = (certificates.files(lab.layout, name) for name in (shown, "node1"))
    serve = [sys.executable, "-c", SERVER, str(theirs.certificate), str(theirs.key)]
    with running(lab.command("node2", serve)) as server:
        server.line()
        files = ["-p", str(ours.key), "-c", str(ours.certificate), "-C", str(ours.ca)]
        show = ["ovs-ofctl", "-O", "OpenFlow15", "--timeout=5", *files, "show"]
        lab.exec("node1", [*show, "ssl:172.30.1.2:7777"], check=False)
        assert server.rest().startswith(heard)


class Node2:
    """node2's agent, started with other files than its own."""

    def __init__(self, lab: Lab, settings: Path) -> None:
        self._layout = lab.layout.node(2)
        self._daemons = daemons(self._layout)
        self._settings = settings
        self._read = self._daemons.log("agent").stat().st_size

    def stop(self) -> None:
        pid = self._daemons.pid("agent")
        assert pid
        kill([pid])

    def start(self, **tls: Path) -> None:
        settings = yaml.safe_load(self._layout.settings.read_text())
        settings["agent"]["tls"] |= {field: str(file) for field, file in tls.items()}
        settings["agent"]["statusGrace"] = 0.1
        self._settings.write_text(yaml.safe_dump(settings))
        self._daemons.start("agent", python("node_agent", "--config", str(self._settings)))

    def refusal(self) -> str:
        """Why STATUS refuses; empty where it does not."""
        try:
            Runtime(self._layout).status()
        except PluginError as error:
            return str(error)
        return ""

    def kept(self, name: str) -> bytes:
        """What its agent has put in place for the switch."""
        return (self._layout.directory / "state" / "tls" / name).read_bytes()

    def log(self) -> str:
        """What its agent has said in this test."""
        return self._daemons.log("agent").read_text()[self._read :]


@pytest.fixture
def node2(lab: Lab, tmp_path: Path) -> Iterator[Node2]:
    node2 = Node2(lab, tmp_path / "sluice.yaml")
    yield node2
    node2.stop()
    lab.up()  # starts it again with its own files
    wait_until(lambda: node2.refusal() == "")


def test_wrong_ca_is_reported_and_a_right_one_is_taken(
    lab: Lab, node2: Node2, foreign: Path, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_text((foreign / "ca.pem").read_text())
    reason = rf"the controller's certificate is refused: .*certificate.*agent\.tls\.ca is {ca}"

    def vsctl(*arguments: str) -> str:
        return lab.exec("node2", ["ovs-vsctl", *arguments]).stdout.strip()

    # A node that never had a configuration, and then one that remembers it.
    node2.stop()
    remembered = vsctl("get", "Open_vSwitch", ".", "external_ids:sluice-config")
    forget = ["remove", "Open_vSwitch", ".", "external_ids", "sluice-config"]
    vsctl("del-br", names.INTEGRATION_BRIDGE, "--", *forget)
    node2.start(ca=ca)
    wait_until(lambda: "certificate is refused" in node2.refusal())
    assert re.search(rf"no configuration from the controller yet.*{reason}", node2.refusal())

    node2.stop()
    vsctl("set", "Open_vSwitch", ".", f"external_ids:sluice-config={remembered}")
    node2.start(ca=ca)
    wait_until(lambda: "certificate is refused" in node2.refusal() and "ssl:" in node2.refusal())
    assert re.search(rf"no controller session for .*ssl:.*{reason}", node2.refusal())
    assert re.search(f'"error": "https://{CONTROL_ADDRESS}:6654: {reason}', node2.log())

    ca.write_text((lab.layout.directory / "tls" / "ca.pem").read_text())
    wait_until(lambda: node2.refusal() == "" and "the controller answers" in node2.log())
    assert "Traceback" not in node2.log()


def test_agent_with_another_nodes_certificate_is_refused(lab: Lab, node2: Node2) -> None:
    theirs = certificates.files(lab.layout, "node1")
    node2.stop()
    node2.start(key=theirs.key, certificate=theirs.certificate)
    wait_until(lambda: "the certificate is node1's, not Node node2's" in node2.refusal())
    assert "the certificate is node1's, not Node node2's" in node2.log()
    assert "Traceback" not in node2.log()


def test_agent_waits_for_its_tls_files(lab: Lab, node2: Node2, tmp_path: Path) -> None:
    key = tmp_path / "late.key"
    node2.stop()
    node2.start(key=key)
    wait_until(lambda: f"agent.tls.key: {key}: No such file or directory" in node2.log())
    key.write_text(certificates.files(lab.layout, "node2").key.read_text())
    wait_until(lambda: "the controller answers" in node2.log())
    assert "Traceback" not in node2.log()


def hang_up(lab: Lab, node: str) -> None:
    """Have a switch dial anew: where it dials is changed, and changed back."""
    list_ = ["ovs-vsctl", "--bare", "--columns=_uuid", "list", "Controller"]
    row = lab.exec(node, list_).stdout.strip()
    for address in ("127.0.0.1:1", f"{CONTROL_ADDRESS}:{OPENFLOW}"):
        lab.exec(node, ["ovs-vsctl", "set", "Controller", row, f'target="ssl:{address}"'])


def test_replacing_all_tls_files_costs_no_packet(lab: Lab, tmp_path: Path) -> None:
    """By those of another CA: who still showed or trusted an old one would be refused."""
    certificates.authority(tmp_path)
    certificates.sign(tmp_path, "controller", "serverAuth", f"IP:{CONTROL_ADDRESS}")
    for node in ("node1", "node2"):
        certificates.sign(tmp_path, node, "clientAuth", f"DNS:{node}")
    lab.pod_add("default", "c", "node1")
    address = lab.pod_add("default", "d", "node2").address
    assert address
    before = [sessions(lab, node) for node in ("node1", "node2")]
    with ping_while(lab, "default/c", address) as pinging:
        for new in tmp_path.iterdir():
            # Each by itself, as a person would: a key is there before its certificate.
            near = lab.layout.directory / "tls" / f"{new.name}.new"
            near.write_bytes(new.read_bytes())
            near.chmod(0o600)
            near.rename(near.with_suffix(""))
        assert [sessions(lab, node) for node in ("node1", "node2")] == before
        for number, node in enumerate(("node1", "node2"), 1):
            new_certificate = (tmp_path / f"{node}.pem").read_bytes()
            file = kept(lab.layout.node(number).directory / "state").certificate
            wait_until(lambda f=file, new=new_certificate: f.read_bytes() == new)
        for node, known in zip(("node1", "node2"), before, strict=True):
            hang_up(lab, node)
            wait_until(lambda node=node, known=known: set(sessions(lab, node)) - set(known))
        assert not lost(ended(pinging))
    for node in ("node1", "node2"):
        wait_until(lambda node=node: switch(lab, node) == f"ssl:{CONTROL_ADDRESS}:{OPENFLOW} true")
    lab.pod_add("default", "e", "node1")


def test_expired_certificate_is_reported_on_both_sides(
    lab: Lab, node2: Node2, tmp_path: Path
) -> None:
    files = certificates.files(lab.layout, "node2")
    authority = Authority.load(files.ca.read_bytes(), files.ca.with_suffix(".key").read_bytes())
    key = load_pem_private_key(files.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    request = x509.CertificateSigningRequestBuilder(x509.Name([])).sign(key, SHA256())
    expired = tmp_path / "expired.pem"
    expired.write_bytes(authority.for_node("node2", request, timedelta(seconds=1)))
    until = expiry(expired.read_bytes())
    wait_until(lambda: datetime.now(UTC) > until)
    seen = len(said(lab))
    node2.stop()
    node2.start(certificate=expired)
    sentence = (
        f"refuses our certificate ({expired}, expired on {until:%Y-%m-%d %H:%M} UTC);"
        " its log says which"
    )
    wait_until(lambda: sentence in node2.log())
    wait_until(lambda: node2.kept("cert.pem") == expired.read_bytes())
    hang_up(lab, "node2")
    wait_until(lambda: sentence in node2.refusal())
    assert "the peer's certificate: certificate has expired" in failed_handshakes(lab, seen)


def test_unusable_tls_files_are_named(lab: Lab, foreign: Path, tmp_path: Path) -> None:
    good = certificates.files(lab.layout, "node1")
    empty = tmp_path / "empty.pem"
    empty.write_text("")
    absent = tmp_path / "absent.pem"
    for tls, sentence in (
        (Tls(absent, good.certificate, good.ca), f"s.key: {absent}: No such file or directory"),
        (Tls(good.key, empty, good.ca), f"s: certificate {empty} and key {good.key}: "),
        (Tls(foreign / "node1.key", good.certificate, good.ca), "KEY_VALUES_MISMATCH"),
        (Tls(good.key, good.certificate, empty), f"s.ca: {empty}: no PEM file of certificates"),
    ):
        for context in (server_context, client_context):
            with pytest.raises(SettingsError) as refused:
                context(read(tls, "s"))
            assert sentence in str(refused.value)
