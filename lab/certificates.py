"""The lab's own certificate authority, and a certificate for each controller and each node.

Made by `openssl`, whose commands are the same for any user's cluster (docs/configuration.md).
`ovs-pki`, which comes with Open vSwitch, makes RSA keys in a directory of the machine's, and
certificates without the controller's address, by which the agents check whom they have dialled.
"""

from collections.abc import Sequence
from pathlib import Path

from lab.commands import run
from lab.layout import ControllerLayout, LabLayout, NodeLayout
from settings import Tls

CONTROLLER = "controller"
"""The DNS name of all controllers."""
_P256 = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc"]
_DAYS = ["-days", "3650"]


def files(layout: LabLayout, name: str) -> Tls:
    """Where the files are: `name` is a node's, or `ControllerLayout.certificate`."""
    folder = _folder(layout)
    return Tls(key=folder / f"{name}.key", certificate=folder / f"{name}.pem", ca=folder / "ca.pem")


def issue(
    layout: LabLayout, controllers: Sequence[ControllerLayout], nodes: Sequence[NodeLayout]
) -> None:
    """Make what is not there yet. Raises `LabError`."""
    folder = _folder(layout)
    folder.mkdir(mode=0o700, exist_ok=True)
    authority(folder)
    for place in controllers:
        names = f"DNS:{CONTROLLER},IP:{place.address}"
        sign(folder, place.certificate, "serverAuth", names)
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
