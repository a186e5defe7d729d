"""Versions and settings of a controller, for support bundles."""

from typing import Any

from controller.reports.report import Report


class SettingsReport(Report, frozen=True, kw_only=True):
    """What a controller runs with. Keys, certificates and paths are left out."""

    sluice: str
    """Version of Sluice; empty: it is not installed as a package."""
    python: str
    cluster: dict[str, Any]
    """The section `cluster` of the settings."""
    packages: dict[str, str]
    """By name, the versions of the Python packages that it uses most."""
