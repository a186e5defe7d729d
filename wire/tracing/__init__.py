"""How answers to `TraceSwitch` and `TraceHost` come about, from whatever facts there are.

An agent asks its own switch and kernel; without a cluster, the command line asks compiled flows.
Both follow a packet by the same model of conntrack and of the node's own stack.
"""


class TraceError(Exception):
    """A packet cannot be followed; the text says why."""
