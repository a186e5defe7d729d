"""The root of this package's errors."""


class NodeFault(Exception):  # noqa: N818  a fault of the node, not of the program
    """Something about this node is not as the agent needs it; the text is a sentence."""
