"""Finds rows of OVSDB's table Interface without reading all of them, which an ADD cannot afford."""

from collections.abc import Callable, Collection, Container, Iterator, Mapping
from typing import Any, Final, TypeVar
from uuid import UUID

SANDBOX: Final = "sluice-sandbox"
"""The key in external_ids that holds an attachment's container id."""
_MOST_STALE: Final = 1000

_Key = TypeVar("_Key", int, str)
_Made = TypeVar("_Made")


class InterfaceIndex:
    """The numbers of all ofports, and the rows of each container.

    It is told of each row that changes or goes. Rows that go while ovsdb-server is away it does not
    hear of: a number stays taken until it is told of more than `_MOST_STALE` such rows, and
    `of_container` leaves out what is not there.
    """

    def __init__(self) -> None:
        self._ofports: dict[int, set[UUID]] = {}
        self._containers: dict[str, set[UUID]] = {}
        self._keys: dict[UUID, tuple[Collection[int], str]] = {}
        """What each row is found by; no container: empty."""
        self._made: dict[UUID, Any] = {}

    @property
    def ofports(self) -> Container[int]:
        """Every number that is in use or requested. Any thread may look into it."""
        return self._ofports

    def of_container(self, container_id: str, rows: Mapping[UUID, Any]) -> Iterator[Any]:
        """Of these rows, which are all that there are, those of one container's attachments."""
        for uuid in list(self._containers.get(container_id, ())):
            if (row := rows.get(uuid)) is not None:
                yield row

    def made_of(self, row: Any, make: Callable[[Any], _Made]) -> _Made:
        """What `make`, always the same function, makes of a row: again only after it changed."""
        if row.uuid not in self._made:
            self._made[row.uuid] = make(row)
        made: _Made = self._made[row.uuid]
        return made

    def changed(self, row: Any, rows: Mapping[UUID, Any]) -> None:
        """Note a row that is new, or has other values."""
        self._made.pop(row.uuid, None)
        numbers = {*row.ofport, *row.ofport_request}
        container_id = row.external_ids.get(SANDBOX, "")
        if self._keys.get(row.uuid) == (numbers, container_id):
            return
        self.gone(row.uuid)
        self._keys[row.uuid] = numbers, container_id
        for number in numbers:
            self._ofports.setdefault(number, set()).add(row.uuid)
        if container_id:
            self._containers.setdefault(container_id, set()).add(row.uuid)
        if len(self._keys) > len(rows) + _MOST_STALE:
            for uuid in self._keys.keys() - rows.keys():
                self.gone(uuid)

    def gone(self, uuid: UUID) -> None:
        """Forget a row."""
        self._made.pop(uuid, None)
        numbers, container_id = self._keys.pop(uuid, ((), ""))
        for number in numbers:
            _discard(self._ofports, number, uuid)
        _discard(self._containers, container_id, uuid)


def _discard(found: dict[_Key, set[UUID]], key: _Key, uuid: UUID) -> None:
    if key in found:
        found[key].discard(uuid)
        if not found[key]:
            del found[key]
