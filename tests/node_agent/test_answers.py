"""Strangers that connect all at once: the bound holds from the first moment."""

import asyncio
import socket
from contextlib import ExitStack
from http import HTTPStatus

from node_agent.answers import MAX_CONNECTIONS_PER_ADDRESS, Answer, AnswerServer


def test_burst_of_connections_of_one_address_is_bounded() -> None:
    async def story() -> None:
        server = AnswerServer(lambda _, __: Answer(HTTPStatus.OK, b"{}"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        await server.listen(port, "127.0.0.1")
        with ExitStack() as held:
            for _ in range(100):
                made = held.enter_context(socket.socket())
                made.setblocking(False)
                made.connect_ex(("127.0.0.1", port))
            most = 0
            for _ in range(50):
                await asyncio.sleep(0.005)
                most = max(most, len(server._connections))
            await asyncio.sleep(0.1)
            assert not server._ended
            assert 0 < most <= MAX_CONNECTIONS_PER_ADDRESS + 1
        await server.close()

    asyncio.run(story())
