"""A real Kubernetes API for the lab: etcd and kube-apiserver in one network namespace.

Unless it is asked to be `whole`, no scheduler or controller-manager runs beside them. So nothing
makes default service accounts, places pods, reports their status or collects what is orphaned:
whoever creates a Pod names its node (`spec.nodeName`) and writes its status.

Everything lives in one directory, which a later `start` takes up again:

    pki/          what `lab.kube_pki` makes
    etcd/         etcd's data
    *.kubeconfig  one for each user, among them `admin` and `sluice-controller`
"""

import ipaddress
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lab import kube_pki
from lab.commands import LabError, complete

Spawn = Callable[[str, Sequence[str]], int]
"""`spawn(name, argv) -> pid`: start a daemon in the namespace, its output in a file."""

PORT = 6443
ETCD_CLIENTS = "http://127.0.0.1:2379"
ETCD_PEERS = "http://127.0.0.1:2380"

CUSTOM_RESOURCES = Path(__file__).parent.parent / "deploy/kustomize/base/crds.yaml"
# The controller's permissions: those that a cluster gives it.
CONTROLLER_ROLE = """\
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: sluice-lab-controller
rules:
  - apiGroups: [""]
    resources: [nodes, pods, services, namespaces]
    verbs: [get, list, watch]
  - apiGroups: [networking.k8s.io]
    resources: [networkpolicies]
    verbs: [get, list, watch]
  - apiGroups: [policy.networking.k8s.io]
    resources: [clusternetworkpolicies]
    verbs: [get, list, watch]
  - apiGroups: [discovery.k8s.io]
    resources: [endpointslices]
    verbs: [get, list, watch]
  - apiGroups: [sluice.dev]
    resources: [bgppeers, addresspools, egressaddresses]
    verbs: [get, list, watch]
  - apiGroups: [""]
    resources: [nodes/status]
    verbs: [patch]
  - apiGroups: [""]
    resources: [services/status]
    verbs: [patch]
  - apiGroups: [events.k8s.io]
    resources: [events]
    verbs: [create, patch]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: sluice-lab-controller
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: ClusterRole
  name: sluice-lab-controller
subjects:
  - apiGroup: rbac.authorization.k8s.io
    kind: User
    name: sluice-controller
---
# The API server makes it a moment after it is ready.
apiVersion: v1
kind: Namespace
metadata:
  name: kube-system
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: sluice-lab-controller
  namespace: kube-system
rules:
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    verbs: [create]
  - apiGroups: [coordination.k8s.io]
    resources: [leases]
    resourceNames: [sluice-controller]
    verbs: [get, update]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: sluice-lab-controller
  namespace: kube-system
roleRef:
  apiGroup: rbac.authorization.k8s.io
  kind: Role
  name: sluice-lab-controller
subjects:
  - apiGroup: rbac.authorization.k8s.io
    kind: User
    name: sluice-controller
"""


class ApiServerError(Exception):
    """The API server did not come up; the message says why and quotes its log."""


@dataclass(frozen=True)
class RunningApiServer:
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
    pod_range: str | None = None,
    logs: Path | None = None,
    timeout: float = 60.0,
) -> RunningApiServer:
    """Bring up etcd and kube-apiserver, and return once the API answers.

    `netns` is the name of a namespace under /run/netns whose loopback is up and which owns
    `address`. `directory` is for this API server alone; one that was used before, with the same
    address and range, gives the same cluster again: CA, tokens and objects. `service_range` is a
    CIDR, or one of each family with a comma between. `binaries` holds etcd, kube-apiserver and
    kubectl. With a `pod_range` to hand out to Nodes the control plane is whole, for kubelets:
    `binaries` then holds kube-controller-manager and kube-scheduler, too. `logs` is where `spawn`
    puts the output of NAME, as NAME.log (`directory` unless told otherwise); it is only read, for
    error messages. A daemon that still runs is kept.

    It takes about 3 s. It raises ApiServerError after `timeout` seconds or when a daemon ends;
    what it has spawned until then is the caller's to stop.
    """
    directory = directory.absolute()
    directory.mkdir(parents=True, exist_ok=True)
    url = f"https://{_in_url(address)}:{PORT}"
    try:
        kube_pki.make(directory / "pki", address, service_range)
        kubeconfigs = kube_pki.write_kubeconfigs(directory, url)
    except kube_pki.PkiError as error:
        raise ApiServerError(str(error)) from error

    apiserver = _apiserver_command(binaries, directory, address, service_range)
    if pod_range is None:
        # It refuses pods without a service account, and here nothing creates `default`.
        apiserver.append("--disable-admission-plugins=ServiceAccount")
    commands = {"etcd": _etcd_command(binaries, directory), "kube-apiserver": apiserver}
    pids = {name: _find(argv) or spawn(name, argv) for name, argv in commands.items()}

    kubectl = [
        *("nsenter", f"--net=/run/netns/{netns}", str(binaries / "kubectl")),
        *("--kubeconfig", str(kubeconfigs["admin"]), "--cache-dir", str(directory / "kubectl")),
    ]
    _wait_until_ready(kubectl, pids, logs or directory, timeout)
    if pod_range is not None:
        # Last: the controller manager ends if it is not authorised after 10 s.
        manager = _controller_manager_command(binaries, directory, pod_range, service_range)
        commands = {
            "kube-controller-manager": manager,
            "kube-scheduler": _scheduler_command(binaries, directory),
        }
        pids |= {name: _find(argv) or spawn(name, argv) for name, argv in commands.items()}
    _allow_controller(kubectl)
    return RunningApiServer(url, kubeconfigs["admin"], kubeconfigs["sluice-controller"], pids)


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
        # A kubelet may change only its own Node and pods, and gets tokens for those only.
        "--enable-admission-plugins=NodeRestriction",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki / 'service-account.pub'}",
        f"--service-account-signing-key-file={pki / 'service-account.key'}",
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-certificate-authority={pki / 'ca.crt'}",
        f"--kubelet-client-certificate={pki / 'kubelet-client.crt'}",
        f"--kubelet-client-key={pki / 'kubelet-client.key'}",
        "--allow-privileged=true",
    ]


def _controller_manager_command(
    binaries: Path, directory: Path, pod_range: str, service_range: str
) -> list[str]:
    pki = directory / "pki"
    return [
        str(binaries / "kube-controller-manager"),
        f"--kubeconfig={directory / 'kube-controller-manager.kubeconfig'}",
        "--use-service-account-credentials=true",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
        "--allocate-node-cidrs=true",
        f"--cluster-cidr={pod_range}",
        f"--service-cluster-ip-range={service_range}",
        f"--service-account-private-key-file={pki / 'service-account.key'}",
        f"--root-ca-file={pki / 'ca.crt'}",
        f"--cluster-signing-cert-file={pki / 'ca.crt'}",
        f"--cluster-signing-key-file={pki / 'ca.key'}",
    ]


def _scheduler_command(binaries: Path, directory: Path) -> list[str]:
    return [
        str(binaries / "kube-scheduler"),
        f"--kubeconfig={directory / 'kube-scheduler.kubeconfig'}",
        "--leader-elect=false",
        "--bind-address=127.0.0.1",
    ]


def _find(argv: Sequence[str]) -> int | None:
    """Return the process that already runs this command; its arguments name our directory."""
    wanted = [Path(argv[0]).name, *argv[1:]]
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_text().split("\0")[:-1]
        except (OSError, UnicodeDecodeError):  # it has ended, or is another program
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
    for what, manifests in (
        ("the custom resources", CUSTOM_RESOURCES.read_text()),
        ("the rights of the controller", CONTROLLER_ROLE),
    ):
        answer = _run([*kubectl, *apply], manifests)
        if answer.returncode:
            raise ApiServerError(f"{what} were refused: {answer.stderr.strip()}")


def _run(argv: Sequence[str], stdin: str = "") -> subprocess.CompletedProcess[str]:
    # The namespace has no way to a proxy that this machine may use.
    try:
        return complete(argv, stdin=stdin, environment={"NO_PROXY": "*"})
    except LabError as error:
        raise ApiServerError(str(error)) from None


def _tail(logs: Path, name: str) -> str:
    path = logs / f"{name}.log"
    try:
        lines = path.read_text(errors="replace").splitlines()[-15:]
    except OSError as error:
        return f"({path}: {error.strerror})"
    return "\n".join([f"the end of {path}:", *lines])


def _in_url(address: str) -> str:
    return f"[{address}]" if ipaddress.ip_address(address).version == 6 else address
