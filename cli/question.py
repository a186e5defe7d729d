"""Where questions about policies are answered: by a controller, or here, from manifests."""

import logging
from collections.abc import Callable
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any

import click
import structlog

from cli.controller import RequestError, controller_options
from controller.offline.from_manifests import Offline, from_manifests
from controller.offline.manifests import ManifestError, Manifests


def network(_: click.Context, __: click.Parameter, value: str | None) -> IPv4Network | None:
    """Read an option that is a range."""
    try:
        return IPv4Network(value) if value is not None else None
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--cluster`, `--pod-range`, and the options that say which controller to ask."""
    command = controller_options(command)
    command = click.option(
        "--pod-range",
        metavar="CIDR",
        callback=network,
        help="With --cluster: the range of all pods.  [default: the smallest with all podCIDRs]",
    )(command)
    return click.option(
        "--cluster",
        metavar="DIR",
        type=click.Path(path_type=Path, exists=True),
        help="Ask no controller: read the cluster from the manifests in this directory or file, for"
        " example the output of `kubectl get -A -o json`.",
    )(command)


def say_nothing_by_itself() -> None:
    """Keep the controller's code from logging: the answer is all that a command says."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))


def read_cluster(path: Path, pod_range: IPv4Network | None) -> tuple[Offline, Manifests]:
    """The cluster of some manifests; what cannot be read of it is told on standard error."""
    given = Manifests()
    try:
        given.read(path)
        made = from_manifests(given, pod_range)
    except (ManifestError, ValueError) as error:
        raise RequestError(str(error)) from error
    for problem in given.problems:
        click.echo(f"ignored: {problem}", err=True)
    for assumed in made.assumed:
        click.echo(f"assumed: {assumed}", err=True)
    return made, given
