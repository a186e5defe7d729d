"""A network namespace for a test that needs no lab."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def namespace(name: str, *addresses: str) -> Iterator[None]:
    """One with these addresses (with prefix length; "nodad" may follow) on a link that is up."""
    subprocess.run(["ip", "netns", "add", name], check=True)
    try:
        for command in (
            "link set lo up",
            "link add d0 type veth peer name d1",
            "link set d1 up",
            "link set d0 up",
            *(f"address add {address} dev d0" for address in addresses),
        ):
            subprocess.run(["ip", "-n", name, *command.split()], check=True)
        yield
    finally:
        subprocess.run(["ip", "netns", "delete", name], check=True)
