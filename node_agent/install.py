"""The two files by which a container runtime finds us; both appear by rename, as others do."""

import errno
import json
import os
import platform
import stat
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from settings import Agent

CONF_NAME: Final = "10-sluice.conflist"
SHIM_NAME: Final = "sluice"


def write_conf(agent: Agent) -> None:
    """Tell the runtime that there is a network: from here on it starts pods."""
    conf = {
        # Runtimes that know `cniVersions` take the highest that they speak. Older ones, such as
        # Debian 12's, take the single one, and do not speak 1.1.0.
        "cniVersion": "1.0.0",
        "cniVersions": ["1.0.0", "1.1.0"],
        "name": "sluice",
        "plugins": [
            {
                "type": SHIM_NAME,
                "socket": str(agent.socket),
                # Without it a runtime does not say which ports of the host a pod wants.
                "capabilities": {"portMappings": True},
            }
        ],
    }
    replace(agent.cni_conf / CONF_NAME, json.dumps(conf, indent=2).encode() + b"\n", 0o644)


def install_shim(agent: Agent) -> None:
    """Put the plugin where the runtime looks for it: compiled, or else the one in Python."""
    source = _python_shim()
    compiled = compiled_shim(source)
    chosen = compiled if compiled.exists() else source
    replace(agent.cni_bin / SHIM_NAME, chosen.read_bytes(), 0o755)


def compiled_shim(source: Path | None = None) -> Path:
    """Where the plugin is that was compiled for this machine (`scripts/make-shim`), if it was."""
    source = source or _python_shim()
    return source.with_name(f"{source.stem}-{platform.machine()}")


def _python_shim() -> Path:
    # Found, not imported: the shim is a program, and knows nothing of us.
    spec = find_spec("cni.sluice_cni")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package cni is not installed")
    return Path(spec.origin)


def remove(agent: Agent) -> None:
    """Take both away, first the one by which the runtime finds the other."""
    (agent.cni_conf / CONF_NAME).unlink(missing_ok=True)
    (agent.cni_bin / SHIM_NAME).unlink(missing_ok=True)


def read(path: Path, most: int) -> bytes:
    """The content of a regular file of at most so many bytes. Raises `OSError`."""
    with open(path, "rb", opener=_without_waiting) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", str(path))
        if found.st_size > most:
            raise OSError(errno.EFBIG, f"longer than {most} bytes", str(path))
        return file.read(most)


def _without_waiting(path: str, flags: int) -> int:
    """Opening a FIFO would wait for its other end."""
    return os.open(path, flags | os.O_NONBLOCK)


def replace(path: Path, content: bytes, mode: int) -> None:
    """Make a file anew, whole or not at all, where it is not so already. Raises `OSError`."""
    try:
        if read(path, len(content)) == content and path.stat().st_mode & 0o777 == mode:
            return
    except OSError:
        pass  # It is missing, or not what it should be.
    path.parent.mkdir(parents=True, exist_ok=True)
    # A leading dot: runtimes read every *.conflist they see.
    file, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".new")
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        Path(temporary).replace(path)
        sync(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def sync(directory: Path) -> None:
    """Wait until a rename in a directory is on disk. Raises `OSError`."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
