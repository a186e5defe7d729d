"""The roles of a switch's connections, as Open vSwitch arbitrates them (ofproto/connmgr.c).

`test_switch.py` compares this with a real one.
"""

from typing import Final, NamedTuple

from openflow.messages import Role

_SIGN: Final = 1 << 63


class Switch(NamedTuple):
    """One bridge with a connection to each replica."""

    roles: tuple[Role | None, ...]
    """Of the connection to each replica; None: not connected."""
    newest: int | None = None
    """The generation of the last role request that it granted; None: none since it started."""
    stored: int = 0
    """What the flow in table `State` says; 0: there is none."""

    def connect(self, replica: int) -> "Switch":
        """A new connection, or a new one in place of the old one."""
        return self._replace(roles=_with(self.roles, replica, Role.EQUAL))

    def disconnect(self, replica: int) -> "Switch":
        """The connection is over."""
        return self._replace(roles=_with(self.roles, replica, None))

    def request_role(self, replica: int, role: Role, generation: int) -> "Switch | None":
        """Grant a role; None: the generation is stale."""
        if self.newest is not None and is_older(generation, self.newest):
            return None
        roles = self.roles
        if role is Role.MASTER:
            roles = tuple(Role.SLAVE if each is Role.MASTER else each for each in roles)
        return self._replace(roles=_with(roles, replica, role), newest=generation)

    def write(self, replica: int, generation: int) -> "Switch | None":
        """Take a bundle that also stores the generation; None: the connection may not write."""
        if self.roles[replica] is Role.SLAVE:
            return None
        return self._replace(stored=generation)

    def restart(self, restored: int) -> "Switch":
        """A new process, with the stored generation that the node's agent gives it."""
        return Switch((None,) * len(self.roles), None, restored)


def is_older(generation: int, other: int) -> bool:
    """Their distance, as a signed number of 64 bits, is negative (OpenFlow 1.5.1, 6.3.6)."""
    return (generation - other) % (2 * _SIGN) >= _SIGN


def _with(
    roles: tuple[Role | None, ...], replica: int, role: Role | None
) -> tuple[Role | None, ...]:
    return (*roles[:replica], role, *roles[replica + 1 :])
