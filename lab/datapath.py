"""The Open vSwitch datapath of a lab's nodes."""

import os
import shutil
from pathlib import Path
from typing import Literal

import msgspec

from lab.commands import LabError, complete

Datapath = Literal["netdev", "system"]
"""Open vSwitch's names: `netdev` is the userspace datapath, `system` the kernel datapath."""
VARIABLE = "SLUICE_DATAPATH"

_MODULES = Path("/sys/module")


def default_datapath() -> Datapath:
    """The value of $SLUICE_DATAPATH, or the one that needs no kernel module. Raises `LabError`."""
    named = os.environ.get(VARIABLE) or "netdev"
    try:
        datapath: Datapath = msgspec.convert(named, Datapath)
    except msgspec.ValidationError:
        raise LabError(f"{VARIABLE}={named}: it must be netdev or system") from None
    return datapath


def load_module(datapath: Datapath) -> None:
    """Load the kernel module of the datapath, if it needs one. Raises `LabError`."""
    # As `ovs-ctl start` does: ovs-vswitchd itself loads only the tunnels' modules.
    if datapath == "netdev" or (_MODULES / "openvswitch").exists():
        return
    modprobe = shutil.which("modprobe")
    done = modprobe and complete([modprobe, "openvswitch"])
    if not done or done.returncode:
        why = done.stderr.strip() if done else "there is no modprobe"
        raise LabError(f"datapath system: the kernel has no openvswitch module ({why}); try netdev")
