"""Ports of rules in a canonical form, and the sets of ports that policies use."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from controller.policies.ids import Ids
from controller.policies.needs import Changes, Needed, Users
from controller.policies.texts import short_name
from controller.service_fields import PROTOCOLS
from flows.kinds import PORT_SET
from flows.policy import PortRange, PortSet
from flows.refs import ObjectRef
from settings.plain_yaml import shown

MOST_MASKS: Final = 1024
"""Masked ports (flows) of one list. Single ports need one each, a range at most 30."""
MOST_PORTS: Final = 4096
"""Entries of the list of ports of one rule."""
PORT_NAME: Final = re.compile(r"(?=.*[a-z])[a-z0-9]([a-z0-9]|-(?!-)){0,13}[a-z0-9]|[a-z]")
"""Names of ports (IANA_SVC_NAME, apimachinery, util/validation)."""
_LAST: Final = 0xFFFF


class NamedPort(NamedTuple):
    """A port by the name that a container gives it."""

    name: str
    protocol: int | None
    """IANA's number; None: of any protocol."""

    def __str__(self) -> str:
        return f"{self.name}/{'*' if self.protocol is None else self.protocol}"


class Ports(NamedTuple):
    """The ports of a rule."""

    ranges: tuple[PortRange, ...] = ()
    """Canonical, see `merged`."""
    named: tuple[NamedPort, ...] = ()


def read_protocol(text: str | None, field: str, problems: list[str]) -> int | None:
    """IANA's number of a protocol, TCP by default."""
    protocol = PROTOCOLS.get(text or "TCP")
    if protocol is None:
        problems.append(f"{field}: {shown(text)} is none of {', '.join(PROTOCOLS)}")
    return protocol


def read_range(
    protocol: int, first: int, last: int, fields: tuple[str, str], problems: list[str]
) -> PortRange | None:
    """A range of ports; `fields` are the fields of both ends."""
    for field, number in zip(fields, (first, last), strict=True):
        if not 1 <= number <= _LAST:
            problems.append(f"{field}: {number} is not from 1 to {_LAST}")
            return None
    if last < first:
        problems.append(f"{fields[1]}: {last} is below {first}")
        return None
    return PortRange(protocol, first, last)


def merged(ranges: Iterable[PortRange]) -> tuple[PortRange, ...]:
    """The same ports with as few ranges as possible, sorted."""
    result: list[PortRange] = []
    for each in sorted(set(ranges), key=lambda r: (r.protocol, r.first or 0, -(r.last or _LAST))):
        last = result[-1] if result and result[-1].protocol == each.protocol else None
        if last is None or last.first is None or last.last is None:
            if last is None:
                result.append(each)
        elif each.first is not None and each.last is not None:
            if each.first > last.last + 1:
                result.append(each)
            elif each.last > last.last:
                result[-1] = last._replace(last=each.last)
    return tuple(result)


def text_of(ranges: Iterable[PortRange]) -> str:
    """`6:80,443-444 17:*`: equal for equal ports of canonical lists."""
    by_protocol: dict[int, list[str]] = {}
    for protocol, first, last in ranges:
        text = "*" if first is None else f"{first}" if first == last else f"{first}-{last}"
        by_protocol.setdefault(protocol, []).append(text)
    return " ".join(f"{protocol}:{','.join(texts)}" for protocol, texts in by_protocol.items())


def mask_count(ranges: Iterable[PortRange]) -> int:
    """How many masked ports the ranges need."""
    return sum(1 if first is None else _masks(first, last or first) for _, first, last in ranges)


def _masks(first: int, last: int) -> int:
    count = 0
    end = last + 1
    while first < end:
        size = first & -first or 1 << 16
        while first + size > end:
            size >>= 1
        first += size
        count += 1
    return count


class PortSetState(Needed):
    """A set of ports that policies use."""

    __slots__ = ("ranges", "users")

    def __init__(self, name: str, number: int, ranges: tuple[PortRange, ...]) -> None:
        super().__init__(name, number)
        self.ranges = ranges
        self.users = Users()

    def fragments(self) -> Iterator[tuple[str, str]]:
        yield PORT_SET.name, self.key


class PortSets:
    """All sets of ports: their part of the view."""

    def __init__(self, changes: Changes) -> None:
        self.view: Final[dict[str, PortSet]] = {}
        """See `ClusterView.port_sets`."""
        self.states: Final[dict[str, PortSetState]] = {}
        """By id, those that are not refused."""
        self.refusal_changed: Callable[[Iterable[ObjectRef]], None] = lambda _: None
        """Called with the policies that use a set of which `is_refused` has changed."""
        self._changes = changes
        self._ids: Ids[PortSetState] = Ids()
        self._by_name: dict[str, PortSetState] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def use(self, ranges: tuple[PortRange, ...], user: ObjectRef) -> PortSetState:
        """The set of these ports, for one more policy (or once more for the same)."""
        name = short_name(f"ports {text_of(ranges)}")
        found = self._by_name.get(name)
        if found is None:
            found = self._by_name[name] = PortSetState(name, self._ids.number(name), ranges)
            self._judged(self._ids.claim(found))
            if not found.is_refused:
                self._publish(found)
        if found.users.add(user):
            self._show(found)
        return found

    def release(self, used: PortSetState, user: ObjectRef) -> None:
        """A policy does not use a set any more. No node may need it for this policy."""
        if used.users.remove(user):
            self._show(used)
        if used.users.refs:
            return
        del self._by_name[used.name]
        if not used.is_refused:
            self._withdraw(used)
        self._judged(self._ids.release(used))

    def _judged(self, changed: Iterable[PortSetState]) -> None:
        """Of these, `is_refused` has changed."""
        for each in sorted(changed, key=lambda each: not each.is_refused):
            if each.is_refused:
                self._withdraw(each)
            else:
                self._publish(each)
            self.refusal_changed(each.users.refs)

    def _publish(self, new: PortSetState) -> None:
        self.states[new.key] = new
        self._show(new)
        for node in new.nodes:
            self._changes.need(node, PORT_SET.name, new.key)

    def _withdraw(self, gone: PortSetState) -> None:
        del self.states[gone.key], self.view[gone.key]
        for node in gone.nodes:
            self._changes.need(node, PORT_SET.name, gone.key)

    def _show(self, changed: PortSetState) -> None:
        """What the view says about a set has changed."""
        if self.states.get(changed.key) is changed:
            self.view[changed.key] = PortSet(changed.number, changed.ranges, changed.users.named)
            changed.touch(self._changes, changed.fragments())
