"""Passwords of BGP sessions, out of Secrets in the namespace of the controller."""

import asyncio
import contextlib
from base64 import b64decode
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final, TypeAlias

import msgspec

from controller.bgp.peers import MAX_PASSWORD
from controller.kubernetes_api import FAULTS, ApiError, connect, read, sentence
from settings import SettingsError
from settings.plain_yaml import shown

READ_AGAIN: Final = 30.0
"""Seconds after which a Secret is read again."""

Key: TypeAlias = tuple[str, str]
"""The name of a Secret, and the key of the password in it."""


class _Secret(msgspec.Struct, frozen=True):
    data: dict[str, str] | None = None


class Passwords:
    """Reads the wanted ones again and again; nobody waits for it."""

    def __init__(
        self, kubeconfig: Path | None, namespace: str, *, has_api_server: bool = True
    ) -> None:
        """`kubeconfig` as `kubernetes_api.connect` has it."""
        self.changed: Callable[[], None] = lambda: None
        """Called when something of `values` or `problems` has changed."""
        self.values: dict[Key, str] = {}
        self.problems: dict[Key, str] = {}
        """Why there is no password. One that was read once stays while it cannot be read again."""
        self._kubeconfig = kubeconfig
        self._namespace = namespace
        self._has_api_server = has_api_server
        self._wanted: frozenset[Key] = frozenset()
        self._new = asyncio.Event()

    def want(self, keys: Iterable[Key]) -> None:
        """Which passwords are needed now."""
        wanted = frozenset(keys)
        if wanted - self._wanted:
            self._new.set()
        self._wanted = wanted
        for known in (self.values, self.problems):
            for key in known.keys() - wanted:
                del known[key]

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self._new.clear()
            before = dict(self.values), dict(self.problems)
            for key in sorted(self._wanted):
                await self._read(key)
            if (self.values, self.problems) != before:
                self.changed()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READ_AGAIN):
                    await self._new.wait()

    async def _read(self, key: Key) -> None:
        name, field = key
        where = f"Secret {self._namespace}/{name}"
        if not self._has_api_server:
            self.problems[key] = f"{where} cannot be read without an API server"
            return
        try:
            path = f"/api/v1/namespaces/{self._namespace}/secrets/{name}"
            async with await connect(self._kubeconfig) as api:
                found = msgspec.json.decode(await read(api, "GET", path), type=_Secret)
            password = _password(found, field)
        except ApiError as error:
            if error.code in {403, 404}:
                self.values.pop(key, None)
            self.problems[key] = f"{where}: {_REFUSALS.get(error.code) or error}"
        except (*FAULTS, SettingsError) as error:
            self.problems[key] = f"{where}: {sentence(error)}"
        else:
            self.values[key] = password
            self.problems.pop(key, None)


_REFUSALS: Final = {
    403: "the controller may not read it; add its name to controller.bgpPasswords of the chart",
    404: "there is none",
}


def _password(secret: _Secret, key: str) -> str:
    """Raises `ValueError`."""
    text = (secret.data or {}).get(key)
    if text is None:
        raise ValueError(f"it has no key {shown(key)}")
    password = b64decode(text)
    if not 0 < len(password) <= MAX_PASSWORD or b"\n" in password:
        raise ValueError(f"{key}: a password has 1 to {MAX_PASSWORD} bytes, and no line break")
    try:
        return password.decode()
    except UnicodeDecodeError:  # its text has a byte of the password
        raise ValueError(f"{key}: a password is text in UTF-8") from None
