"""A real Kubernetes API for the lab: etcd and kube-apiserver in one network namespace.

No scheduler, controller-manager or kubelet runs beside them. So nothing makes default service
accounts, places pods, reports their status or collects what is orphaned: whoever creates a Pod
names its node (`spec.nodeName`) and writes its status.

Everything lives in one directory, which a later `start` takes up again:

    pki/          the CA (ca.crt is what clients trust), the serving certificate, the service
                  account key, the tokens of the two users
    etcd/         etcd's data
    *.kubeconfig  one for each of the two users, `admin` and `sluice-controller`
"""

import ipaddress
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Spawn = Callable[[str, Sequence[str]], int]
"""`spawn(name, argv) -> pid`: start a daemon in the namespace, its output in a file."""

PORT = 6443
ETCD_CLIENTS = "http://127.0.0.1:2379"
ETCD_PEERS = "http://127.0.0.1:2380"

# What the controller may do. The lab gives it no more than a cluster would.
CONTROLLER_ROLE = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: sluice-controller
rules:
  - apiGroups: [""]
    resources: [nodes, pods]
    verbs: [get, list, watch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: sluice-controller
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: sluice-controller
subjects:
  - apiGroup: rbac.authorization.k8s.io
    kind: User
    name: sluice-controller
"""

# The groups of each user. system:masters may do everything, whatever RBAC says.
USERS = {"admin": "system:masters", "sluice-controller": ""}


class ApiServerError(Exception):
    """The API server did not come up; the message says why and quotes its log."""


@dataclass(frozen=True)
class ApiServer:
    """A running API server, as seen from inside its namespace."""

    url: str
    kubeconfig: Path
    controller_kubeconfig: Path
    pids: Mapping[str, int]


def start(
    *,
    netns: str,
    directory: Path,
    address: str,
    service_range: str,
    binaries: Path,
    spawn: Spawn,
    logs: Path | None = None,
    timeout: float = 60.0,
) -> ApiServer:
    """Bring up etcd and kube-apiserver, and return once the API answers.

    `netns` is the name of a namespace under /run/netns whose loopback is up and which owns
    `address`. `directory` is for this API server alone; one that was used before, with the same
    address and range, gives the same cluster again: CA, tokens and objects. `service_range` is a
    CIDR, or one of each family with a comma between. `binaries` holds etcd, kube-apiserver and
    kubectl. `logs` is where `spawn` puts the output of NAME, as NAME.log (`directory` unless told
    otherwise); it is only read, for error messages. A daemon that still runs is kept.

    It takes about 3 s. It raises ApiServerError after `timeout` seconds or when a daemon ends;
    what it has spawned until then is the caller's to stop.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / "pki").exists():
        _make_pki(directory / "pki", address, service_range)

    url = f"https://{_in_url(address)}:{PORT}"
    tokens = {name: (directory / "pki" / f"{name}.token").read_text() for name in USERS}
    kubeconfigs = {name: directory / f"{name}.kubeconfig" for name in USERS}
    for name, path in kubeconfigs.items():
        _write_private(path, _kubeconfig(url, directory / "pki" / "ca.crt", name, tokens[name]))

    commands = {
        "etcd": _etcd_command(binaries, directory),
        "kube-apiserver": _apiserver_command(binaries, directory, address, service_range),
    }
    pids = {name: _find(argv) or spawn(name, argv) for name, argv in commands.items()}

    kubectl = [
        *("nsenter", f"--net=/run/netns/{netns}", str(binaries / "kubectl")),
        *("--kubeconfig", str(kubeconfigs["admin"]), "--cache-dir", str(directory / "kubectl")),
    ]
    _wait_until_ready(kubectl, pids, logs or directory, timeout)
    _allow_controller(kubectl)
    return ApiServer(url, kubeconfigs["admin"], kubeconfigs["sluice-controller"], pids)


def _etcd_command(binaries: Path, directory: Path) -> list[str]:
    return [
        str(binaries / "etcd"),
        f"--data-dir={directory / 'etcd'}",
        f"--listen-client-urls={ETCD_CLIENTS}",
        f"--advertise-client-urls={ETCD_CLIENTS}",
        f"--listen-peer-urls={ETCD_PEERS}",
        f"--initial-advertise-peer-urls={ETCD_PEERS}",
        f"--initial-cluster=default={ETCD_PEERS}",
        "--log-level=warn",
        # Survives SIGKILL, not a power cut: right for a lab, wrong for a cluster. Each write
        # would otherwise wait for the disk.
        "--unsafe-no-fsync",
    ]


def _apiserver_command(
    binaries: Path, directory: Path, address: str, service_range: str
) -> list[str]:
    pki = directory / "pki"
    return [
        str(binaries / "kube-apiserver"),
        f"--etcd-servers={ETCD_CLIENTS}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={PORT}",
        f"--service-cluster-ip-range={service_range}",
        f"--cert-dir={pki}",
        f"--tls-cert-file={pki / 'serving.crt'}",
        f"--tls-private-key-file={pki / 'serving.key'}",
        f"--client-ca-file={pki / 'ca.crt'}",
        f"--token-auth-file={pki / 'tokens.csv'}",
        "--authorization-mode=Node,RBAC",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        # It refuses pods whose service account does not exist, and nobody here makes `default`.
        "--disable-admission-plugins=ServiceAccount",
        "--kubelet-preferred-address-types=InternalIP",
        "--allow-privileged=true",
    ]


def _find(argv: Sequence[str]) -> int | None:
    """Return the process that already runs this command; its arguments name our directory."""
    wanted = [Path(argv[0]).name, *argv[1:]]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")[:-1]
        except (OSError, UnicodeDecodeError):  # it has ended, or it is none of ours
            continue
        if words and [Path(words[0]).name, *words[1:]] == wanted:
            return int(process.name)
    return None


def _is_running(pid: int) -> bool:
    # A dead child stays visible as a zombie (Z) until its parent has waited for it.
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2]
    except OSError:
        return False
    return after_name.split()[0] not in "ZX"


def _wait_until_ready(
    kubectl: Sequence[str], pids: Mapping[str, int], logs: Path, timeout: float
) -> None:
    deadline = time.monotonic() + timeout
    while True:
        answer = _run([*kubectl, "--request-timeout=5s", "get", "--raw=/readyz"])
        if answer.returncode == 0:
            return
        for name, pid in pids.items():
            if not _is_running(pid):
                raise ApiServerError(f"{name} ended right after its start\n{_tail(logs, name)}")
        if time.monotonic() > deadline:
            raise ApiServerError(
                f"kube-apiserver is not ready after {timeout:g} s: {answer.stderr.strip()}\n"
                f"{_tail(logs, 'kube-apiserver')}"
            )
        time.sleep(0.1)


def _allow_controller(kubectl: Sequence[str]) -> None:
    apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=sluice-lab", "-f", "-"]
    answer = _run([*kubectl, *apply], CONTROLLER_ROLE)
    if answer.returncode:
        raise ApiServerError(f"the controller's role was refused: {answer.stderr.strip()}")


def _run(argv: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    # The namespace has no way to a proxy that this machine may use.
    environment = os.environ | {"NO_PROXY": "*"}
    return subprocess.run(
        argv, input=stdin, env=environment, capture_output=True, text=True, check=False
    )


def _tail(logs: Path, name: str) -> str:
    path = logs / f"{name}.log"
    try:
        lines = path.read_text(errors="replace").splitlines()[-15:]
    except OSError as error:
        return f"({path}: {error.strerror})"
    return "\n".join([f"the end of {path}:", *lines])


def _make_pki(pki: Path, address: str, service_range: str) -> None:
    """Make the keys, certificates and tokens in a directory that appears whole or not at all."""
    part = pki.with_name("pki.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(mode=0o700)

    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = [address, "127.0.0.1", *_first_addresses(service_range)]
    alternatives = [f"DNS:{name}" for name in names] + [f"IP:{value}" for value in addresses]
    (part / "openssl.cnf").write_text(
        "[req]\ndistinguished_name = name\n[name]\n"
        "[ca]\n"
        "basicConstraints = critical, CA:TRUE\n"
        "keyUsage = critical, keyCertSign, cRLSign\n"
        "subjectKeyIdentifier = hash\n"
        "[serving]\n"
        "basicConstraints = critical, CA:FALSE\n"
        "keyUsage = critical, digitalSignature\n"
        "extendedKeyUsage = serverAuth\n"
        "authorityKeyIdentifier = keyid\n"
        f"subjectAltName = {', '.join(alternatives)}\n"
    )
    new = "req -x509 -config openssl.cnf -noenc -days 3650 -newkey ec"
    new += " -pkeyopt ec_paramgen_curve:prime256v1"
    _openssl(part, f"{new} -extensions ca -subj /CN=sluice-lab -keyout ca.key -out ca.crt")
    serving = "-extensions serving -subj /CN=kube-apiserver -keyout serving.key -out serving.crt"
    _openssl(part, f"{new} {serving} -CA ca.crt -CAkey ca.key")
    curve = "-algorithm EC -pkeyopt ec_paramgen_curve:prime256v1"
    _openssl(part, f"genpkey {curve} -out service-account.key")
    _openssl(part, "pkey -in service-account.key -pubout -out service-account.pub")

    rows = []
    for name, groups in USERS.items():
        token = secrets.token_hex(16)
        _write_private(part / f"{name}.token", token)
        rows.append(f"{token},{name},{name},{groups}\n")
    _write_private(part / "tokens.csv", "".join(rows))
    part.rename(pki)


def _openssl(directory: Path, arguments: str) -> None:
    try:
        answer = subprocess.run(
            ["openssl", *arguments.split()],
            cwd=directory,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        raise ApiServerError("openssl is not installed (Debian: openssl)") from None
    if answer.returncode:
        raise ApiServerError(f"openssl {arguments}: {answer.stderr.strip()}")


def _first_addresses(service_range: str) -> list[str]:
    """Return the address of the Service `kubernetes`, in each family that there is."""
    return [str(ipaddress.ip_network(part)[1]) for part in service_range.split(",")]


def _in_url(address: str) -> str:
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address


def _kubeconfig(url: str, ca: Path, user: str, token: str) -> str:
    # JSON is YAML too, and needs no quoting rules of ours. By path, the CA stays in one place.
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "lab", "cluster": {"server": url, "certificate-authority": str(ca)}}
            ],
            "users": [{"name": user, "user": {"token": token}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": user}}],
            "current-context": "lab",
        },
        indent=2,
    )


def _write_private(path: Path, text: str) -> None:
    """Write a file that only its owner may read, by rename so that no reader sees half of it."""
    part = path.with_name(f"{path.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    part.write_text(text)
    part.rename(path)
