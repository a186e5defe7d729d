"""A cluster on one machine: each node a network namespace with its own Open vSwitch.

`Lab` is all that the command line, the demo, the tests and the benchmarks need:

    with Lab("mine").running(nodes=2) as lab:
        pod = lab.pod_add("default", "a", "node1")
        lab.exec("node2", ["ping", "-c1", pod.address])
"""

from lab.commands import LabError
from lab.lab import Lab

__all__ = ["Lab", "LabError"]
