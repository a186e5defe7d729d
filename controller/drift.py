"""Drift: flows that a switch should hold and does not, or holds and should not.

Each node's agent dumps its own switch and sends one sum for each range of cookies
(`openflow.digest`). Only the ranges whose sums differ are dumped and compared here.
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
from wire.documents import OLD_FEATURES

MAX_DIGESTED: Final = 1_000
"""Flows whose digests one call computes."""


class Digests:
    """The digests of a program's flows and groups. Each is computed once."""

    def __init__(self) -> None:
        self.by_cookie: dict[int, int] = {}
        self.sums = digest.sums(())
        """By range of cookies."""
        self.later: dict[int, list[int]] = {}
        """The part of `sums` of each feature that old agents do not know, by its number."""
        self.groups: dict[int, int] = {}
        """Of each group, by its id."""
        self.groups_total = 0
        self._version = 0
        """The version of the program that these digests belong to; see `follow`."""
        self._listed = 0
        """The version of the program for which `_missing` was listed."""
        self._missing: list[int] = []
        """Cookies whose digests are still to be computed."""
        self._known: dict[int, Group] = {}

    def follow(self, program: Program) -> bool:
        """Compute some digests of the program as it is now; True if none is left to compute."""
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

    def known_to(self, features: int) -> list[int]:
        """`sums` without the flows of features with greater numbers than this."""
        sums = self.sums
        for feature, part in self.later.items():
            if feature > features:
                sums = [
                    digest.total((whole, -some)) for whole, some in zip(sums, part, strict=True)
                ]
        return sums

    def _add(self, cookie: int, value: int) -> None:
        number = cookie % digest.RANGES
        self.sums[number] = digest.total((self.sums[number], value))
        if (feature := cookie >> 56) > OLD_FEATURES:
            part = self.later.setdefault(feature, digest.sums(()))
            part[number] = digest.total((part[number], value))


@dataclass
class Drift:
    """Cookies by what is wrong with their flows."""

    missing: set[int] = field(default_factory=set)
    altered: set[int] = field(default_factory=set)
    """Held with another match, priority or actions than desired, or held twice."""
    stale: set[int] = field(default_factory=set)
    """With a cookie of Sluice, but not part of any program."""

    def __bool__(self) -> bool:
        return bool(self.missing or self.altered or self.stale)

    def by_kind(self) -> dict[str, set[int]]:
        """For logs and metrics."""
        return {"missing": self.missing, "altered": self.altered, "stale": self.stale}

    @classmethod
    def of(cls, installed: Iterable[InstalledFlow], desired: Mapping[int, int]) -> "Drift":
        """Compare flows with digests by cookie. Both must cover the same ranges."""
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
