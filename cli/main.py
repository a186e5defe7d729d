"""`sluice`: one program, its commands in one file each."""

from importlib import import_module
from pathlib import Path
from typing import Final

import click

from cli.controller import from_option

COMMANDS: Final = {
    "bundle": "cli.bundle:bundle",
    "capture": "cli.capture:capture",
    "check": "cli.check:check",
    "drops": "cli.drops:drops",
    "connectivity": "cli.connectivity:connectivity",
    "explain": "cli.explain:explain_command",
    "flows": "cli.flows:flows",
    "lab": "cli.lab:lab",
    "policy": "cli.policy:policy",
    "services": "cli.services:services",
    "status": "cli.status:status",
    "top": "cli.top:top",
    "trace": "cli.trace:trace",
    "wait": "cli.wait:wait",
    "what-if": "cli.what_if:what_if_command",
}
"""Each command with the module that has it. Only that of the command that runs is loaded."""


class _Commands(click.Group):
    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return [*COMMANDS]

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002
        cmd_name: str,
    ) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name].partition(":")
        found = getattr(import_module(module), attribute)
        assert isinstance(found, click.Command)  # noqa: S101  what the type checker cannot see
        return found


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sluice")
@from_option
def main(source: Path | None) -> None:
    """A Kubernetes network on Open vSwitch that you can read."""
    del source  # The commands find it, if they have a use for it.


if __name__ == "__main__":
    main()
