"""Where questions about policies are answered: by a controller, or here, from manifests."""

import functools
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.controller import controller_options

if TYPE_CHECKING:
    from controller.offline.from_manifests import Offline
    from controller.offline.manifests import Manifests


def network(_: click.Context, __: click.Parameter, value: str | None) -> IPv4Network | None:
    """Read an option that is a range."""
    try:
        return IPv4Network(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--cluster`, `--pod-range`, and the options that say which controller to ask."""

    @functools.wraps(command)
    def with_cluster(**given: Any) -> Any:
        source = given["controller"].source
        if given["cluster"] is not None and source is not None:
            raise click.UsageError("--cluster is --from by another name: give one")
        return command(**{**given, "cluster": given["cluster"] or source})

    decorated: Callable[..., Any] = controller_options(with_cluster)
    decorated = click.option(
        "--pod-range",
        metavar="CIDR",
        callback=network,
        help="With --from: the range of all pods.  [default: the smallest with all podCIDRs]",
    )(decorated)
    return click.option(
        "--cluster",
        metavar="FILE",
        type=click.Path(path_type=Path, exists=True),
        help="The same as --from.",
    )(decorated)


def read_cluster(path: Path, pod_range: IPv4Network | None) -> "tuple[Offline, Manifests]":
    """The cluster of a bundle or of manifests.

    What cannot be read of it is told on standard error.
    """
    # Its packages take long to load.
    from cli.offline import read_source  # noqa: PLC0415

    source = read_source(path, pod_range)
    return source.offline, source.manifests
