"""`sluice flows`: what a node's switch holds, and what each flow is there for."""

import asyncio
import itertools
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
import click
import msgspec

from cli.lab import clear_errors
from flows.pipeline import LAYOUT
from lab import Lab, LabError

STATE_COLOURS = {
    "installed": None,
    "altered": "red",
    "missing": "red",
    "stale": "yellow",
    "foreign": "magenta",
}


@click.command("flows")
@click.argument("node")
@click.option("--table", help="Only this table, by name; see docs/pipeline.md for all of them.")
@click.option("--json", "as_json", is_flag=True, help="For scripts: everything, as one object.")
@click.option("--name", default="lab", show_default=True, help="The lab that NODE is in.")
@click.option(
    "--socket",
    type=click.Path(path_type=Path),
    help="Not of a lab: ask the controller whose apiSocket this is.",
)
def flows(node: str, table: str | None, as_json: bool, name: str, socket: Path | None) -> None:
    """Show the flows installed on NODE by table name, each with the object it stands for.

    The flows are read from the switch at this moment. One that should be there and is not is
    shown as missing; one that somebody has changed as altered, as it is now; one of ours that no
    object stands for any more as stale; one that nobody here made as foreign.
    """
    query = {"table": table} if table else {}
    with clear_errors():
        if socket is None:
            socket = Lab(name).layout.api_socket
            if not socket.exists():
                raise LabError(f"no lab {name} is up; start one with: sluice lab up --name {name}")
        answer = asyncio.run(_get(socket, f"/v1/nodes/{quote(node)}/flows", query))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(answer)).decode())
        return
    for number, rows in itertools.groupby(answer["flows"], lambda row: row["tableNumber"]):
        stage = LAYOUT.by_number.get(number)
        title = click.style(f"{stage.name} ({number})" if stage else str(number), bold=True)
        click.echo(f"{title}  {stage.doc if stage else ''}")
        for row in rows:
            click.echo(_line(row))
        click.echo()
    for group in answer["foreignGroups"]:
        click.echo(click.style(f"group {group}: [foreign] nobody here made it", fg="magenta"))


def _line(row: dict[str, Any]) -> str:
    state = row["state"]
    mark = "" if state == "installed" else f"[{state}] "
    head = f"  {row['priority']:>5}  {row['match'] or 'anything'} → {row['actions']}"
    unknown = "no object stands for it any more" if state == "stale" else "nobody here made it"
    because = f"{row['object']}: {row['reason']}" if row["object"] else unknown
    return click.style(head, fg=STATE_COLOURS[state]) + click.style(
        f"\n         {mark}{because}  [{row['feature'] or row['cookie']},"
        f" {row['packets']} packets]",
        dim=state == "installed",
        fg=STATE_COLOURS[state],
    )


async def _get(socket: Path, path: str, query: dict[str, str]) -> Any:
    """Ask a controller. Raises `LabError` with the controller's own sentence."""
    connector = aiohttp.UnixConnector(str(socket))
    try:
        async with (
            aiohttp.ClientSession(connector=connector) as session,
            session.get(f"http://controller{path}", params=query) as response,
        ):
            content = await response.json()
            if response.status != 200:
                raise LabError(content["error"])
            return content
    except aiohttp.ClientError as error:
        raise LabError(f"no controller answers on {socket}: {error}") from error
