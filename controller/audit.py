"""Drift: what a switch holds that it should not, and the other way round, found by digests.

Each node's agent dumps its own switch and sends sums by range of cookies (`openflow.digest`). Where
a sum differs, that range alone is asked for and compared here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from flows.compile import Program
from flows.diff import is_ours
from flows.features.state import is_seal
from flows.flow import Group
from openflow import digest
from openflow.messages import InstalledFlow


class Digests:
    """The digests of a program's flows and groups. Each is computed once."""

    def __init__(self) -> None:
        self.by_cookie: dict[int, int] = {}
        self.sums = digest.sums(())
        """By range of cookies."""
        self.groups: dict[int, int] = {}
        """Of each group, by its id."""
        self.groups_total = 0
        self._version = 0
        self._known: dict[int, Group] = {}

    def follow(self, program: Program) -> None:
        """Be those of the program as it is now."""
        if self._version == program.version:
            return
        cookies = program.cookies
        for cookie in self.by_cookie.keys() - cookies.keys():
            del self.by_cookie[cookie]
        for cookie in cookies.keys() - self.by_cookie.keys():
            self.by_cookie[cookie] = digest.of_flow(cookies[cookie][0])
        self.sums = digest.sums(self.by_cookie.items())
        for number in self._known.keys() - program.groups.keys():
            del self.groups[number], self._known[number]
        for number, group in program.groups.items():
            if self._known.get(number) is not group:
                self.groups[number] = digest.of_group(group)
                self._known[number] = group
        self.groups_total = digest.total(self.groups.values())
        self._version = program.version


@dataclass
class Drift:
    """Cookies by what is wrong with their flows."""

    missing: set[int] = field(default_factory=set)
    altered: set[int] = field(default_factory=set)
    """Held, but with other actions, or by a flow that is not the one; or held twice."""
    stale: set[int] = field(default_factory=set)
    """Of ours by their first byte, but desired by nobody."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.altered or self.stale)

    def by_kind(self) -> dict[str, set[int]]:
        """For logs and metrics."""
        return {"missing": self.missing, "altered": self.altered, "stale": self.stale}

    @classmethod
    def of(cls, installed: Iterable[InstalledFlow], desired: Mapping[int, int]) -> "Drift":
        """Compare; both sides of the same ranges, `desired` as cookie -> digest."""
        missing = set(desired)
        altered, stale = set(), set()
        for entry in installed:
            if not is_ours(entry.cookie) or is_seal(entry.table, entry.cookie):
                continue
            if entry.cookie not in desired:
                stale.add(entry.cookie)
            elif digest.of_entry(entry.raw) != desired[entry.cookie]:
                altered.add(entry.cookie)
            else:
                missing.discard(entry.cookie)
        return cls(missing - altered, altered, stale)
