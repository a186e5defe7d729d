"""Routes of the cluster for routers of the network: to whom, which, and why (`bgp` sends them)."""

from controller.bgp.announcer import Announcer

__all__ = ["Announcer"]
