"""The lab's own certificate authority, and a certificate for the controller and for each node.

Made by `openssl`, whose commands are the same for any user's cluster (docs/configuration.md).
`ovs-pki`, which comes with Open vSwitch, makes RSA keys in a directory of the machine's, and
certificates without the controller's address, by which the agents check whom they have dialled.
"""

from collections.abc import Sequence
from pathlib import Path

from lab.commands import run
from lab.layout import CONTROL_ADDRESS, LabLayout, NodeLayout
from settings import Tls

CONTROLLER = "controller"
_P256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
_DAYS = ["-days", "3650"]


def files(layout: LabLayout, name: str) -> Tls:
    """Where the files of `CONTROLLER` or of a node's name are."""
    folder = _folder(layout)
    return Tls(key=folder / f"{name}.key", certificate=folder / f"{name}.pem", ca=folder / "ca.pem")


def issue(layout: LabLayout, nodes: Sequence[NodeLayout]) -> None:
    """Make what is not there yet. Raises `LabError`."""
    folder = _folder(layout)
    folder.mkdir(mode=0o700, exist_ok=True)
    authority(folder)
    sign(folder, CONTROLLER, "serverAuth", f"DNS:{CONTROLLER},IP:{CONTROL_ADDRESS}")
    for node in nodes:
        sign(folder, node.name, "clientAuth", f"DNS:{node.name}")


def authority(folder: Path) -> None:
    """Make `ca.pem` and `ca.key` in a directory, unless they are there. Raises `LabError`."""
    if (folder / "ca.pem").exists():
        return
    make = ["openssl", "req", "-x509", *_P256, *_DAYS, "-subj", "/CN=sluice lab CA"]
    make += ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]
    run([*make, "-keyout", str(folder / "ca.key"), "-out", str(folder / "ca.pem")])


def sign(folder: Path, name: str, usage: str, alternative_names: str) -> None:
    """Make NAME.key and NAME.pem, signed by `authority`, unless there. Raises `LabError`.

    The `usage` keeps a node's certificate from being shown as the controller's: Open vSwitch
    looks at nothing else of whom it has dialled.
    """
    if (folder / f"{name}.pem").exists():
        return
    request = ["openssl", "req", "-new", *_P256, "-subj", f"/CN={name}"]
    for extension in (
        "basicConstraints=critical,CA:FALSE",
        f"extendedKeyUsage={usage}",
        f"subjectAltName={alternative_names}",
    ):
        request += ["-addext", extension]
    csr = run([*request, "-keyout", str(folder / f"{name}.key")])
    signed = ["openssl", "x509", "-req", *_DAYS, "-copy_extensions", "copy"]
    signed += ["-CA", str(folder / "ca.pem"), "-CAkey", str(folder / "ca.key")]
    run([*signed, "-out", str(folder / f"{name}.pem")], stdin=csr)


def _folder(layout: LabLayout) -> Path:
    return layout.directory / "tls"
