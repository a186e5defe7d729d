"""The key, certificate and CA that Open vSwitch reads: at any moment a set that fits together.

Open vSwitch 3.1 takes a new certificate only if the key's file has changed, too, and both at one
look (`stream_ssl_set_key_and_cert` in lib/stream-ssl.c): a certificate that is renewed for the same
key, or one that arrives a moment after its key, it never reads. So it is not given the files that
somebody replaces one by one, but copies, in a directory of their own that appears at once: `tls` in
`agent.state` is a link to it.
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
"""Seconds between two looks at the files that are given."""

log = structlog.get_logger()


def kept(state: Path) -> Tls:
    """Where the set is."""
    folder = state / "tls"
    return Tls(folder / "key.pem", folder / "cert.pem", folder / "ca.pem")


def put(state: Path, new: Identity) -> None:
    """Take a new set in place of the old one. Raises `OSError`."""
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
    """Leave no set. Raises `OSError`."""
    (state / "tls").unlink(missing_ok=True)
    _clean(state, None)


def _clean(state: Path, in_force: Path | None) -> None:
    for old in state.glob("tls-*"):
        if old.is_symlink():
            old.unlink()
        elif old != in_force:
            shutil.rmtree(old)


async def follow(agent: Agent, given: Tls) -> None:
    """Take the set from the files that are given, once they fit each other; for ever.

    What is amiss with them is told by whoever asks the controller with them.
    """
    problem = ""
    while True:
        try:
            new = read(given, "agent.tls")
            if not _is_kept(agent.state, new):
                client_context(new)
                await asyncio.to_thread(put, agent.state, new)
            problem = ""
        except SettingsError:
            pass
        except OSError as error:
            if str(error) != problem:
                problem = str(error)
                log.warning("the switch has no new TLS files", reason=problem)
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
