"""`sluice`: one program, its commands in one file each."""

from importlib import import_module
from pathlib import Path
from typing import Any, Final

import click

from cli.controller import from_option

COMMANDS: Final = {
    "addresses": "cli.addresses:addresses",
    "bgp": "cli.bgp:bgp",
    "bundle": "cli.bundle:bundle",
    "capture": "cli.capture:capture",
    "check": "cli.check:check",
    "connectivity": "cli.connectivity:connectivity",
    "drops": "cli.drops:drops",
    "egress": "cli.egress:egress",
    "explain": "cli.explain:explain_command",
    "flows": "cli.flows:flows",
    "lab": "cli.lab:lab",
    "policy": "cli.policy:policy",
    "pools": "cli.pools:pools",
    "services": "cli.services:services",
    "status": "cli.status:status",
    "top": "cli.top:top",
    "trace": "cli.trace:trace",
    "wait": "cli.wait:wait",
    "what-if": "cli.what_if:what_if_command",
}
"""Each command with the module that has it. Only that of the command that runs is loaded."""


class _Commands(click.Group):
    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: Any,
    ) -> click.Context:
        # Help shows how people call it.
        shown = "kubectl sluice" if info_name == "kubectl-sluice" else info_name
        return super().make_context(shown, args, parent, **extra)

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
    """Ask Sluice, a Kubernetes network on Open vSwitch, what it does and why.

    Commands ask the controller of the cluster that kubectl uses; --kubeconfig, --context and
    --namespace choose another. `kubectl sluice` and `sluice` are the same program.

    \b
    Is everything well?
      kubectl sluice status
    Why does the pod front not reach the Service web?
      kubectl sluice trace shop/front svc/shop/web
    More examples for each command:
      kubectl sluice trace --help
    Complete commands, and names of the cluster, by the tab key in bash:
      eval "$(_SLUICE_COMPLETE=bash_source sluice)"
    """  # noqa: D301  click's mark for lines that are to stay as they are
    del source  # The commands find it, if they have a use for it.


if __name__ == "__main__":
    main()
