"""`--help`: what a newcomer reads first."""

import re

import pytest
from click.testing import CliRunner

from cli.main import COMMANDS, main


def shown(*words: str, called: str = "sluice") -> str:
    done = CliRunner().invoke(main, [*words, "--help"], prog_name=called)
    assert done.exit_code == 0
    return done.stdout


def test_every_command_is_described_in_one_whole_line() -> None:
    _, _, commands = shown().partition("Commands:\n")
    lines = commands.splitlines()
    assert [line.split()[0] for line in lines] == sorted(COMMANDS)
    assert all(line.endswith(".") and not line.endswith("...") for line in lines)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_example_has_a_line_of_its_own(command: str) -> None:
    """Click joins lines to paragraphs, except where the text forbids it."""
    text, _, _ = shown(command).partition("Options:\n")
    for line in text.splitlines():
        assert not re.search(r"\S {2,}sluice ", line)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_each_option_says_what_it_is_for(command: str) -> None:
    _, _, options = shown(command).partition("Options:\n")
    assert "TEXT" not in options
    for name, text in re.findall(r"^  (-\S.*?)(?:  +(.*)|$)\n?", options, re.MULTILINE):
        assert text or re.search(rf"^  {re.escape(name)}\n {{8,}}\S", options, re.MULTILINE)


def test_plugin_of_kubectl_is_called_as_people_call_it() -> None:
    assert shown("status", called="kubectl-sluice").startswith("Usage: kubectl sluice status ")
    assert shown("status").startswith("Usage: sluice status ")
