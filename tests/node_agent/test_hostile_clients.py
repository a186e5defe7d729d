"""Strangers at the ports that an agent opens to everybody."""

import asyncio
import resource
import socket
from contextlib import ExitStack

from tests.namespaces import inside
from wire.documents import NodeServices

from .conftest import NODE, ScratchNode, controlled, needs_root, until

PORT = 32000
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@needs_root
def test_1200_slow_connections_do_not_end_the_agent(scratch: ScratchNode) -> None:
    """With the limit that systemd gives by default, and no chance to raise it."""

    async def main() -> None:
        async with controlled(scratch) as controller:
            assert scratch.agent is not None
            resource.prlimit(scratch.agent.pid, resource.RLIMIT_NOFILE, (1024, 1024))
            controller.services = NodeServices(NODE, (), (), ((PORT, "default/lb", 1),), "2")
            await until(lambda: f":{PORT} " in scratch.run("ss", "-Hltn"), scratch.log)

            def connect(number: int) -> socket.socket:
                made = socket.create_connection(
                    ("127.0.0.1", PORT), 10, source_address=(f"127.0.1.{number % 50 + 1}", 0)
                )
                made.sendall(b"GET / HT")
                return made

            def ask() -> bytes:
                with socket.create_connection(("127.0.0.1", PORT), 10) as made:
                    made.sendall(ASK)
                    return made.recv(100)

            with ExitStack() as held:
                made = inside(scratch.name, lambda: [connect(number) for number in range(1200)])
                for each in made:
                    held.enter_context(each)
                assert inside(scratch.name, ask).startswith(b"HTTP/1.1 200 OK")
                assert await scratch.cni("STATUS") == (0, {})
                assert (await scratch.add("a", scratch.netns()))[0] == 0
            assert scratch.agent.poll() is None
            assert "Traceback" not in scratch.log()

    asyncio.run(main())
