"""`sluice`: one program, its commands in one file each."""

import click

from cli.flows import flows
from cli.lab import lab
from cli.policy import policy
from cli.services import services
from cli.what_if import what_if_command


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="sluice")
def main() -> None:
    """A Kubernetes network on Open vSwitch that you can read."""


main.add_command(flows)
main.add_command(lab)
main.add_command(policy)
main.add_command(services)
main.add_command(what_if_command)

if __name__ == "__main__":
    main()
