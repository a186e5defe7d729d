"""The keys, certificates, tokens and kubeconfigs of the lab's Kubernetes.

One CA for all of it, made by openssl: API server, kubelets, and what service accounts trust.

    ca.crt, ca.key                        what all clients trust
    serving.crt, kubelet-client.crt       of the API server, as it is dialled and as it dials
    service-account.key, .pub             sign and check the tokens of pods
    tokens.csv                            the users that are no pods
    NODE.crt, NODE.key                    of a kubelet, for both directions
"""

import ipaddress
import json
import secrets
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Address
from pathlib import Path
from typing import NamedTuple

from lab.patience import PROGRAM_TIMEOUT


class User(NamedTuple):
    """A user of the API server, by token."""

    name: str
    groups: str = ""


USERS = {
    # system:masters may do everything, without RBAC.
    "admin": User("admin", "system:masters"),
    "sluice-controller": User("sluice-controller"),
    # RBAC knows these two from the start.
    "kube-controller-manager": User("system:kube-controller-manager"),
    "kube-scheduler": User("system:kube-scheduler"),
}
"""By the names of their kubeconfigs."""


class PkiError(Exception):
    """openssl did not do what it was asked; the text says what it said."""


_EC = "ec -pkeyopt ec_paramgen_curve:prime256v1"


def make(pki: Path, address: str, service_range: str) -> Path:
    """Make keys, certificates and tokens in a directory that appears whole or not at all.

    `address` is the API server's, `service_range` as `lab.apiserver.start` has it. What is there
    already is kept. Raises `PkiError`.
    """
    if pki.exists():
        return pki
    part = pki.with_name("pki.part")
    shutil.rmtree(part, ignore_errors=True)  # of a run that was killed
    part.mkdir(mode=0o700, parents=True)
    # Without it openssl takes the machine's configuration, which adds the extensions of a CA.
    (part / "openssl.cnf").write_text("[req]\ndistinguished_name = name\n[name]\n")

    extensions = ["basicConstraints=critical,CA:TRUE", "keyUsage=critical,keyCertSign,cRLSign"]
    _certificate(part, "ca", "/CN=sluice-lab", extensions, signed=False)
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
    addresses = [address, "127.0.0.1", *_first_addresses(service_range)]
    _certificate(part, "serving", "/CN=kube-apiserver", _usage("serverAuth", names, addresses))
    # Kubelets ask the API server what a caller may do. This group may do everything.
    as_client = "/O=system:masters/CN=kube-apiserver-kubelet-client"
    _certificate(part, "kubelet-client", as_client, _usage("clientAuth"))
    _openssl(part, f"genpkey -algorithm {_EC} -out service-account.key")
    _openssl(part, "pkey -in service-account.key -pubout -out service-account.pub")

    rows = []
    for name, user in USERS.items():
        token = secrets.token_hex(16)
        _write_private(part / f"{name}.token", token)
        rows.append(f"{token},{user.name},{name},{user.groups}\n")
    _write_private(part / "tokens.csv", "".join(rows))
    part.rename(pki)
    return pki


def certify_node(pki: Path, name: str, address: IPv4Address) -> None:
    """Make NAME.crt and NAME.key for a kubelet, unless there. Raises `PkiError`."""
    if not (pki / f"{name}.crt").exists():
        subject = f"/O=system:nodes/CN=system:node:{name}"
        _certificate(pki, name, subject, _usage("clientAuth,serverAuth", [name], [str(address)]))


def write_kubeconfigs(directory: Path, url: str) -> dict[str, Path]:
    """Write USER.kubeconfig for each user, beside `pki`; the paths."""
    pki, paths = directory / "pki", {name: directory / f"{name}.kubeconfig" for name in USERS}
    for name, path in paths.items():
        token = (pki / f"{name}.token").read_text()
        _write_private(path, kubeconfig(url, pki / "ca.crt", name, {"token": token}))
    return paths


def _usage(purpose: str, names: Sequence[str] = (), addresses: Sequence[str] = ()) -> list[str]:
    extensions = [
        "basicConstraints=critical,CA:FALSE",
        "keyUsage=critical,digitalSignature",
        f"extendedKeyUsage={purpose}",
    ]
    alternatives = [f"DNS:{name}" for name in names] + [f"IP:{value}" for value in addresses]
    return [*extensions, f"subjectAltName={','.join(alternatives)}"] if alternatives else extensions


def _certificate(
    pki: Path, name: str, subject: str, extensions: Sequence[str], *, signed: bool = True
) -> None:
    """Make NAME.key, and NAME.crt last."""
    words = f"req -x509 -config openssl.cnf -noenc -days 3650 -newkey {_EC} -subj {subject}"
    words += "".join(f" -addext {extension}" for extension in extensions)
    words += " -CA ca.crt -CAkey ca.key" if signed else ""
    _openssl(pki, f"{words} -keyout {name}.key -out {name}.crt")


def _openssl(directory: Path, arguments: str) -> None:
    try:
        answer = subprocess.run(
            ["openssl", *arguments.split()],
            cwd=directory,
            capture_output=True,
            text=True,
            timeout=PROGRAM_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        raise PkiError("openssl is not installed (Debian: openssl)") from None
    except subprocess.TimeoutExpired:
        raise PkiError(f"openssl has not ended after {PROGRAM_TIMEOUT:.0f} s") from None
    if answer.returncode:
        raise PkiError(f"openssl {arguments}: {answer.stderr.strip()}")


def _first_addresses(service_range: str) -> list[str]:
    """Return the address of the Service `kubernetes`, in each family that there is."""
    return [str(ipaddress.ip_network(part)[1]) for part in service_range.split(",")]


def kubeconfig(url: str, ca: Path, user: str, credentials: Mapping[str, str]) -> str:
    """A kubeconfig, as text; `credentials` are its user's fields."""
    # JSON is YAML too, and needs no quoting rules of ours. By path, the CA stays in one place.
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "lab", "cluster": {"server": url, "certificate-authority": str(ca)}}
            ],
            "users": [{"name": user, "user": dict(credentials)}],
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
