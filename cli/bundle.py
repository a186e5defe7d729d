"""`sluice bundle`: a support archive without secrets, that other commands answer from."""

import time
from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from cli import bundle_file
from cli.check import ask_agents
from cli.completions import NODES
from cli.controller import (
    Controller,
    RequestError,
    ask,
    ask_lines,
    controller_options,
    convert,
)
from cli.output import print_json
from controller.reports.status import ClusterStatus
from wire.findings import MAX_NODES

PAUSE: Final = 0.1
"""Seconds before each further node: a controller makes few reports for one viewer."""
_FLOWS: Final = "flows of nodes"


@click.command("bundle", short_help="Write a support archive, from which other commands answer.")
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The file to write.  [default: sluice-bundle-TIME.tar.zst]",
)
@click.option(
    "--node",
    "nodes",
    metavar="NODE",
    multiple=True,
    shell_complete=NODES,
    help="Whose flows are wanted; can be repeated.  [default: the first"
    f" {bundle_file.MOST_FLOW_NODES}, those not in sync before others]",
)
@click.option("--json", "as_json", is_flag=True, help="For scripts: what was written.")
@click.option("--no-check", "checks", flag_value=False, default=True, help="Check no nodes.")
@controller_options
def bundle(
    output: Path | None,
    nodes: tuple[str, ...],
    checks: bool,
    as_json: bool,
    controller: Controller,
) -> None:
    """Write a support archive of a cluster, from which other commands answer.

    It has what the controller knows and flows depend on: Nodes, Namespaces, Pods, Services,
    EndpointSlices and policies, each with only the fields that Sluice reads. It has the flows of
    nodes with their counters, the status, what `check` finds, the metrics, versions and settings.

    It has no Secret, token, key or certificate, no environment, command or image of a container,
    and of annotations only those that Sluice reads. It does have names, labels and addresses of the
    cluster.

    \b
    Write a bundle, and look into it on another machine:
      sluice bundle -o shop.tar.zst
      sluice --from shop.tar.zst status
      sluice --from shop.tar.zst flows node1 --pod shop/web-0
      sluice --from shop.tar.zst policy shop/front svc/shop/web 80
      sluice --from shop.tar.zst what-if -f deny-all.yaml
    With the flows of two nodes of a large cluster:
      sluice bundle --node node17 --node node18
    """  # noqa: D301  click's mark for lines that are to stay as they are
    if controller.source is not None:
        raise click.UsageError("--from does not go with bundle: a running cluster is asked")
    if len(nodes) > bundle_file.MOST_FLOW_NODES:
        raise click.UsageError(f"--node: {bundle_file.MOST_FLOW_NODES} nodes are the most")
    made = datetime.now(UTC)
    path = output or Path(f"sluice-bundle-{made:%Y%m%dT%H%M%SZ}.tar.zst")
    if path.exists():
        raise click.UsageError(f"{path} is there already")
    members, header = _collect(controller, nodes, made, checks=checks)
    members[bundle_file.HEADER] = msgspec.json.format(msgspec.json.encode(header))
    try:
        bundle_file.write(path, {bundle_file.HEADER: b"", **members})
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from error
    if as_json:
        print_json({"file": str(path), "bytes": path.stat().st_size, "content": header})
        return
    click.echo(f"{path}: {path.stat().st_size >> 10:,} KiB, flows of {len(header.flows)} nodes")
    for what, why in sorted(header.missing.items()):
        click.echo(click.style(f"missing: {what}: {why}", fg="yellow"))


def _collect(
    controller: Controller, wanted: tuple[str, ...], made: datetime, *, checks: bool
) -> tuple[dict[str, bytes], bundle_file.Header]:
    """The members, and what they are. What cannot be read is missing, except the status."""
    members: dict[str, bytes] = {}
    missing: dict[str, str] = {}

    def add(name: str, what: str, read: Callable[[], bytes]) -> bool:
        try:
            members[name] = read()
        except RequestError as error:
            missing[what] = error.message
            return False
        return True

    answer = ask(controller, "/v1/status", {})
    status = convert(answer, ClusterStatus)
    members[bundle_file.STATUS] = _json(answer)
    add(
        bundle_file.CLUSTER,
        bundle_file.CLUSTER,
        lambda: b"\n".join(ask_lines(controller, "/v1/cluster", {"services": ""})) + b"\n",
    )
    add(bundle_file.SETTINGS, "settings", lambda: _json(ask(controller, "/v1/settings", {})))
    add(
        bundle_file.METRICS,
        "metrics",
        lambda: b"\n".join(ask_lines(controller, "/v1/metrics", {})) + b"\n",
    )
    if checks:
        names = tuple(_chosen(status, wanted, MAX_NODES))
        add(bundle_file.CHECK, "check", lambda: _json(ask_agents(controller, names)))
    flows: dict[str, str] = {}
    for node in _chosen(status, wanted, bundle_file.MOST_FLOW_NODES):
        time.sleep(PAUSE)
        name = f"flows/{len(flows)}.json"
        route = f"/v1/nodes/{quote(node)}/flows"
        if add(name, f"flows of {node}", lambda route=route: _json(ask(controller, route, _NAMES))):  # type: ignore[misc]
            flows[node] = name
    left = len(status.nodes) - bundle_file.MOST_FLOW_NODES
    if not wanted and left > 0:
        missing[_FLOWS] = f"{left:,} further nodes; --node chooses"
    return members, bundle_file.Header(bundle_file.VERSION, made, version("sluice"), flows, missing)


_NAMES: Final = {"names": ""}


def _chosen(status: ClusterStatus, wanted: Iterable[str], most: int) -> list[str]:
    """The nodes to ask: those that are wanted, or some, the ones out of sync first."""
    given = [*dict.fromkeys(wanted)]
    if given:
        return given[:most]
    return sorted(status.nodes, key=lambda name: (status.nodes[name].in_sync, name))[:most]


def _json(content: Any) -> bytes:
    return msgspec.json.encode(content)
