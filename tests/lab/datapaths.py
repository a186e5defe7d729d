"""What of the lab's tests holds on which of Open vSwitch's datapaths."""

from lab.datapath import Datapath, default_datapath

DATAPATH: Datapath = default_datapath()
"""What labs of this run have; `scripts/kernel-test` runs these tests on the kernel's."""

USERSPACE_ONLY: dict[str, str] = {}
"""By a test's name, with or without its file, why it says nothing on the kernel's datapath."""


def why_not(test: str) -> str | None:
    """The reason to skip a test, given as FILE::NAME; None for one that is to be run."""
    if DATAPATH == "netdev":
        return None
    return USERSPACE_ONLY.get(test)
