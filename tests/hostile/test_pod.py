"""What a pod with root in its own network namespace can do to others."""

import pytest

from tests.hostile.harness import Hostile

CONNECTIONS = """
import socket, sys
print("ready", flush=True)
while True:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.connect((sys.argv[1], 9))
        client.send(b"x")
"""


@pytest.mark.hostile
def test_new_connections_without_end(hostile: Hostile) -> None:
    """Unanswered UDP to another pod, each datagram from another port."""
    with hostile.attack("pod", "UDP, a new connection for each datagram") as attack:
        attack.run("default/attacker", CONNECTIONS, hostile.address("default/far"))
        during = attack.measure()
    assert during.same_node_rate > 0
    assert during.add is not None
    assert attack.after.ping_lost == 0
