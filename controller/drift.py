"""Drift: what a switch holds that it should not, and the other way round, found by digests.

Each node's agent dumps its own switch and sends sums by range of cookies (`openflow.digest`). Where
a sum differs, that range alone is asked for and compared here.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Final

from flows.compile import Program
from flows.diff import is_ours
from flows.features.state import is_seal
from flows.flow import Group
from openflow import digest
from openflow.messages import InstalledFlow

MAX_DIGESTED: Final = 1_000
"""Flows whose digests are computed at a stretch."""


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
        """The program's version that all this is of; see `follow`."""
        self._listed = 0
        """The version that `_missing` was listed for."""
        self._missing: list[int] = []
        """Cookies whose digests are to be computed."""
        self._known: dict[int, Group] = {}

    def follow(self, program: Program) -> bool:
        """Come nearer to the program as it is now; whether there is nothing left to do."""
        if self._version == program.version:
            return True
        cookies = program.cookies
        if self._listed != program.version:
            self._listed = program.version
            for cookie in self.by_cookie.keys() - cookies.keys():
                self._add(cookie, -self.by_cookie.pop(cookie))
            self._missing = list(cookies.keys() - self.by_cookie.keys())
        for _ in range(min(MAX_DIGESTED, len(self._missing))):
            cookie = self._missing.pop()
            self.by_cookie[cookie] = found = digest.of_flow(cookies[cookie][0])
            self._add(cookie, found)
        if self._missing:
            return False
        self._follow_groups(program)
        self._version = program.version
        return True

    def _follow_groups(self, program: Program) -> None:
        for number in self._known.keys() - program.groups.keys():
            del self.groups[number], self._known[number]
        for number, group in program.groups.items():
            if self._known.get(number) is not group:
                self.groups[number] = digest.of_group(group)
                self._known[number] = group
        self.groups_total = digest.total(self.groups.values())

    def _add(self, cookie: int, value: int) -> None:
        number = cookie % digest.RANGES
        self.sums[number] = digest.total((self.sums[number], value))


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
