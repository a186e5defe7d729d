"""Which of Open vSwitch's datapaths this run of the lab's tests is on; what holds on one only."""

from typing import Final

from lab.datapath import default_datapath

DATAPATH: Final = default_datapath()
"""What the labs of this run have. `make kernel-test` runs them on `system`, the kernel's."""

USERSPACE_ONLY: Final[dict[str, str]] = {}
"""FILE::TEST, and why it says nothing on the kernel's datapath."""
