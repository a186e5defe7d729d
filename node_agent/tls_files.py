"""Key, certificate and CA for Open vSwitch: the three files match at any moment.

Open vSwitch 3.1 reads a new certificate only if it sees a new key file in the same check
(`stream_ssl_set_key_and_cert` in lib/stream-ssl.c). It never reads a certificate that is renewed
for the same key, or that is written a moment after its key. So Open vSwitch does not read the files
that the user replaces one by one. The agent copies them into a new directory, and `tls` in
`agent.state` is a symbolic link to that directory, which one rename replaces.
"""

import asyncio
import os
import shutil
from pathlib import Path
from typing import Final
from uuid import uuid4

import structlog

from settings import Agent, SettingsError, Tls
from settings.tls import Identity, client_context, read

_LOOK: Final = 2.0
"""Seconds between two checks of the source files."""

log = structlog.get_logger()


def kept(state: Path) -> Tls:
    """The paths of the copies that Open vSwitch reads."""
    folder = state / "tls"
    return Tls(folder / "key.pem", folder / "cert.pem", folder / "ca.pem")


def put(state: Path, new: Identity) -> None:
    """Replace the copies, all three at once. Raises `OSError`."""
    folder = state / f"tls-{uuid4().hex}"
    folder.mkdir(mode=0o700)
    files = kept(state)
    _write(folder / files.key.name, new.key)
    _write(folder / files.certificate.name, new.certificate)
    _write(folder / files.ca.name, new.ca)
    link = folder.with_suffix(".link")
    link.symlink_to(folder.name)
    link.rename(state / "tls")
    _clean(state, folder)


def remove(state: Path) -> None:
    """Remove the copies. Raises `OSError`."""
    (state / "tls").unlink(missing_ok=True)
    _clean(state, None)


def _clean(state: Path, in_force: Path | None) -> None:
    for old in state.glob("tls-*"):
        if old.is_symlink():
            old.unlink()
        elif old != in_force:
            shutil.rmtree(old)


async def follow(agent: Agent, source: Tls) -> None:
    """Copy the source files whenever they change and match each other. Never ends.

    Errors in them are not reported here: the requests to the controller use the same files, and
    report them.
    """
    problem = ""
    while True:
        try:
            new = read(source, "agent.tls")
            if not _is_kept(agent.state, new):
                client_context(new)
                await asyncio.to_thread(put, agent.state, new)
            problem = ""
        except SettingsError:
            pass
        except OSError as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("TLS files not copied for Open vSwitch", reason=problem)
        await asyncio.sleep(_LOOK)


def _is_kept(state: Path, new: Identity) -> bool:
    try:
        old = read(kept(state), "agent.state")
    except SettingsError:
        return False
    return (old.key, old.certificate, old.ca) == (new.key, new.certificate, new.ca)


def _write(path: Path, content: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(descriptor)
