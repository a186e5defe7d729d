"""Programs that a check asks: it ends, whatever they do."""

import asyncio

import pytest

from node_agent.checks import host_facts
from node_agent.checks.host_facts import output


def output_of(*command: str) -> tuple[str, str]:
    async def main() -> tuple[str, str]:
        async with asyncio.timeout(30):
            return await output(*command)

    return asyncio.run(main())


@pytest.mark.parametrize("script", ["yes >&2", "sleep 1000"])
def test_program_that_does_not_answer_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setattr(host_facts, "PATIENCE", 0.2)
    assert output_of("sh", "-c", f"exec {script}")[0] == ""


def test_failure_is_told() -> None:
    assert output_of("sh", "-c", "echo why >&2; exit 3") == ("", "why")
