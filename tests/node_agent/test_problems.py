"""What the agent tells the controller that it cannot do."""

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from node_agent.cni_call import CniError, Code, Pod
from node_agent.problems import REMEMBER, PodProblems
from wire.documents import MAX_PODS, NodeProblems

from .conftest import ScratchNode, controlled, needs_root, until

A = Pod("default", "a", "u")


def fail(problems: PodProblems, pod: Pod | None, details: str = "") -> None:
    with pytest.raises(CniError), problems.of(pod):
        raise CniError(Code.NO_ADDRESS, "no address can be leased", details)


def test_a_failed_add_is_a_problem_until_one_succeeds() -> None:
    problems = PodProblems()
    fail(problems, A, "spec.podCIDR is full")
    assert problems.current() == {"default/a": "no address can be leased: spec.podCIDR is full"}
    fail(problems, A)
    assert problems.current() == {"default/a": "no address can be leased"}
    with problems.of(A):
        pass
    assert problems.current() == {}


def test_a_container_without_a_pod_and_a_fault_of_ours_are_not_told() -> None:
    problems = PodProblems()
    fail(problems, None)
    with suppress(ZeroDivisionError), problems.of(A):
        raise ZeroDivisionError
    assert problems.current() == {}


def test_what_nobody_tries_again_is_forgotten() -> None:
    now = 0.0
    problems = PodProblems(monotonic=lambda: now)
    fail(problems, A)
    now = REMEMBER - 1
    assert problems.current()
    now = REMEMBER
    assert not problems.current()
    assert not problems._failed


def test_the_latest_are_kept_in_a_form_that_the_controller_takes() -> None:
    problems = PodProblems()
    for number in (0, *range(MAX_PODS), 0):
        fail(problems, Pod("default", f"p{number}", "u"), "two\nlines\x1b" + "x" * 2000)
    current = problems.current()
    assert len(current) == MAX_PODS
    assert "default/p0" in current
    (sentence,) = set(current.values())
    assert len(sentence) == 1000
    assert r"two lines\x1bx" in sentence


@needs_root
def test_told_over_the_wire(scratch: ScratchNode) -> None:
    """A failed ADD, a database that is away, and that both are over."""
    netns = scratch.netns()

    async def main() -> None:
        async with controlled(scratch) as controller:

            async def until_told(**wanted: Any) -> None:
                await until(
                    lambda: controller.problems == NodeProblems(**wanted),
                    lambda: f"{controller.problems}\n{scratch.log()}",
                    60,
                )

            controller.admits = False
            code, error = await scratch.add("a", netns)
            assert code == 1
            why = f"{error['msg']}: {error['details']}"
            await until_told(pods={"default/a": why})
            controller.admits = True
            code, _ = await scratch.add("a", netns)
            assert code == 0
            await until_told()
            assert scratch.database is not None
            scratch.database.kill()
            scratch.database.wait(timeout=60)
            await until_told(node=f"ovsdb-server does not answer at {scratch.home}/db.sock")

    asyncio.run(main())
