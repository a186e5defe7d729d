"""Sysctls below /proc/sys/net, of the network namespace that the agent runs in."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from settings import Agent

_FORWARDING: Final = "ipv4/ip_forward"


@dataclass(frozen=True, slots=True)
class Sysctls:
    """Where they are, and where a change that is to be taken back is noted."""

    net: Path
    found_forwarding: Path
    """Kept where a reboot, which takes back what was changed, forgets it."""

    @classmethod
    def of(cls, agent: Agent) -> Self:
        """By an agent's settings."""
        return cls(agent.sysctl / "net", agent.socket.parent / "found-ip_forward")

    def write(self, name: str, value: str) -> None:
        """Set one, `/` between the parts of its name. Raises `OSError`."""
        path = self.net / name
        if path.read_text().strip() != value:
            path.write_text(value)

    def disable_ipv6(self, link: str) -> None:
        """No IPv6 on an interface, not even link-local; nothing to do where the kernel has none."""
        name = f"ipv6/conf/{link}/disable_ipv6"
        if (self.net / name).exists():
            self.write(name, "1")

    def forward(self) -> None:
        """Turn IPv4 forwarding on. Raises `OSError`."""
        before = (self.net / _FORWARDING).read_text().strip()
        if before != "1":
            self.found_forwarding.write_text(before)
            self.write(_FORWARDING, "1")

    def forward_as_before(self) -> None:
        """Undo `forward`, where it has changed something. Raises `OSError`."""
        if self.found_forwarding.exists():
            self.write(_FORWARDING, self.found_forwarding.read_text())
            self.found_forwarding.unlink()
