"""What one more pod, Service and switch take in the controller's memory does not grow unseen.

Blocks that Python allocates are counted, not time and not the memory of the process: the numbers
are the same on each machine. docs/scale.md has the table.
"""

from bench import memory

MOST_BLOCKS = {
    "a switch: Node": 75,
    "a switch: its flows at all others": 60,
    "a pod: Pod": 20,
    "a pod: its port": 25,
    "a pod: its flows": 155,
    "a switch: its own flows, without pods": 580,
    "a switch: session": 120,
    "a Service: Service and EndpointSlice": 205,
    "a Service: its flows": 95,
    "a Service: the bytes of its flows": 6,
}
"""A tenth above what there is: whoever needs more raises the number here, and in the table."""


def test_memory_of_one_more_pod_service_and_switch_is_bounded():
    found = {name: taken.blocks for name, taken in memory.parts().items()}
    above = {name: blocks for name, blocks in found.items() if blocks > MOST_BLOCKS[name]}
    assert not above
    assert found.keys() == MOST_BLOCKS.keys()
