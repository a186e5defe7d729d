"""The agent is killed, at every point of ADD and DEL: what is left is found and taken up again."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from node_agent.cni_call import Code

from .conftest import NOTHING_LEFT, ScratchNode, controlled, needs_root, run, until

pytestmark = needs_root

ROUNDS = 12
Block = Callable[[ScratchNode], AbstractContextManager[None]]


def parts(scratch: ScratchNode) -> tuple[int, ...]:
    """How many leases, links and chains there are."""
    found = scratch.left_over_beside_ports()
    return tuple(len(found[kind]) for kind in ("leases", "links", "chains"))


def called(scratch: ScratchNode) -> bool:
    """Whether a shim is connected to the agent."""
    sockets = run("ss", "-xH").splitlines()
    return any("ESTAB" in line and str(scratch.socket) in line for line in sockets)


async def started_again(scratch: ScratchNode) -> None:
    """As its init system does; then a runtime may call."""
    scratch.start_agent()

    async def answers() -> bool:
        code, error = await scratch.cni("STATUS")
        return code == 0 or error["code"] != Code.TRY_AGAIN

    await until(answers, scratch.log, seconds=60)


async def deleted(scratch: ScratchNode, name: str, netns: str) -> None:
    """DEL, until it has succeeded, as kubelet goes on."""

    async def gone() -> bool:
        return (await scratch.cni("DEL", **scratch.attachment(name, netns)))[0] == 0

    await until(gone, scratch.log, seconds=60)


async def check_nothing_is_left_and_add_works(scratch: ScratchNode, netns: str) -> None:
    assert scratch.left_over() == NOTHING_LEFT
    assert "eth0" not in run("nsenter", f"--net={netns}", "ip", "-br", "link")

    async def added() -> bool:
        code, result = await scratch.add("again", netns)
        assert code == 0 or result["code"] == Code.TRY_AGAIN, result
        return code == 0

    await until(added, scratch.log, seconds=60)
    assert {len(each) for each in scratch.left_over().values()} == {1}
    await deleted(scratch, "again", netns)
    assert scratch.left_over() == NOTHING_LEFT


@contextmanager
def refused_flows(scratch: ScratchNode) -> Iterator[None]:
    scratch.controller.admits = False
    yield
    scratch.controller.admits = True


ADD_STEPS: dict[str, tuple[Block, tuple[int, int, int]]] = {
    "before the lease": (ScratchNode.locked_lease_file, (0, 0, 0)),
    # The link is made while the switch forgets the address's connections.
    "with connections to forget": (lambda node: node.frozen(node.vswitchd), (1, 1, 1)),
    # It lies unread before ovsdb-server, which does it once the agent is dead.
    "with all but the port": (lambda node: node.frozen(node.database), (1, 1, 1)),
    "with all but the flows": (refused_flows, (1, 1, 1)),
}


@pytest.mark.parametrize("step", ADD_STEPS)
def test_killed_in_add(scratch: ScratchNode, step: str) -> None:
    block, expected = ADD_STEPS[step]

    async def main() -> None:
        async with controlled(scratch, addTimeout=60):
            netns = scratch.netns()
            with block(scratch):
                call = asyncio.create_task(scratch.add("a", netns))
                await until(
                    lambda: (called(scratch) or call.done()) and parts(scratch) == expected,
                    scratch.log,
                )
                scratch.stop_agent(kill=True)
                code, error = await call
                assert (code, error["code"]) == (1, Code.TRY_AGAIN)
            assert parts(scratch) == expected
            await started_again(scratch)
            await deleted(scratch, "a", netns)
            await check_nothing_is_left_and_add_works(scratch, netns)

    asyncio.run(main())


DEL_STEPS: dict[str, tuple[Block, tuple[int, int, int]]] = {
    "before anything": (lambda node: node.frozen(node.database), (1, 1, 1)),
    "with nothing left but the lease": (ScratchNode.locked_lease_file, (1, 0, 0)),
}


@pytest.mark.parametrize("step", DEL_STEPS)
def test_killed_in_del(scratch: ScratchNode, step: str) -> None:
    block, expected = DEL_STEPS[step]

    async def main() -> None:
        async with controlled(scratch):
            netns = scratch.netns()
            assert (await scratch.add("a", netns))[0] == 0
            with block(scratch):
                call = asyncio.create_task(scratch.cni("DEL", **scratch.attachment("a", netns)))
                # It may have been answered: for the lease alone nobody waits long.
                await until(
                    lambda: (called(scratch) or call.done()) and parts(scratch) == expected,
                    scratch.log,
                )
                scratch.stop_agent(kill=True)
                await call
            assert parts(scratch) == expected
            await started_again(scratch)
            await deleted(scratch, "a", netns)
            await check_nothing_is_left_and_add_works(scratch, netns)

    asyncio.run(main())


def test_killed_at_any_moment(scratch: ScratchNode) -> None:
    seed = random.randrange(1 << 32)  # noqa: S311  not a secret
    print(f"seed {seed}")
    chance = random.Random(seed)  # noqa: S311

    async def killed_in(call: asyncio.Task[tuple[int, object]]) -> int:
        # From the shim's own start to after the answer.
        await asyncio.sleep(chance.uniform(0, 0.25))
        scratch.stop_agent(kill=True)
        code, _ = await call
        return code

    async def main() -> None:
        async with controlled(scratch):
            codes = []
            for number in range(ROUNDS):
                netns = scratch.netns()
                name = f"pod-{number}"
                codes.append(await killed_in(asyncio.create_task(scratch.add(name, netns))))
                await started_again(scratch)
                if number % 2:
                    arguments = scratch.attachment(name, netns)
                    codes.append(
                        await killed_in(asyncio.create_task(scratch.cni("DEL", **arguments)))
                    )
                    await started_again(scratch)
                await deleted(scratch, name, netns)
                assert scratch.left_over() == NOTHING_LEFT
            print(codes)
            await check_nothing_is_left_and_add_works(scratch, scratch.netns())

    asyncio.run(main())


def test_reboot(scratch: ScratchNode) -> None:
    """Namespaces, links and /run are gone; OVSDB and the agent's state are not."""

    async def main() -> None:
        async with controlled(scratch) as controller:
            for name in "abc":
                assert (await scratch.add(name, scratch.netns()))[0] == 0
            await controller.stop()
        scratch.reboot()
        assert 'flow-restore-wait="true"' in scratch.vsctl("get", "open", ".", "other_config")
        async with controlled(scratch):
            await until(lambda: scratch.log().count("node set up") == 2, scratch.log, seconds=60)
            # Nobody has told yet that the others are gone: their addresses are theirs.
            code, result = await scratch.add("d", scratch.netns())
            assert code == 0, result
            assert result["ips"][0]["address"] == "10.99.1.5/32"
            await until(
                lambda: scratch.left_over()["leases"] == [("sandbox-d",)], scratch.log, seconds=60
            )
            assert {len(each) for each in scratch.left_over().values()} == {1}
            assert scratch.log().count("freeing an orphan") == 3

    asyncio.run(main())
