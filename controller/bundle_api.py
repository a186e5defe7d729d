"""What only `sluice bundle` asks for: versions and settings."""

import importlib.metadata
import platform
from typing import Final

import msgspec
from aiohttp import web

from controller.answers import answer
from controller.reports.settings import SettingsReport
from settings import ClusterSettings

PACKAGES: Final = ("aiohttp", "cryptography", "kubernetes", "msgspec", "os-ken")


class BundleApi:
    """Routes and answers; see `routes`."""

    def __init__(self, cluster: ClusterSettings) -> None:
        # Strings in place of networks.
        plain = msgspec.json.decode(msgspec.json.encode(cluster, enc_hook=str))
        self._settings = SettingsReport(
            sluice=_version("sluice"),
            python=platform.python_version(),
            cluster=plain,
            packages={name: _version(name) for name in PACKAGES},
        )

    def routes(self) -> list[web.RouteDef]:
        """They tell of the whole cluster."""
        return [web.get("/v1/settings", self._of_cluster)]

    async def _of_cluster(self, _: web.Request) -> web.Response:
        return await answer(self._settings)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
