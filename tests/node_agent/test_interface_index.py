"""Rows of the table Interface, found without reading all of them."""

from types import SimpleNamespace
from typing import Any
from uuid import UUID

from node_agent import interface_index
from node_agent.interface_index import SANDBOX, InterfaceIndex


class Table:
    """What the copy of OVSDB has, and the index that is told of it."""

    def __init__(self) -> None:
        self.rows: dict[UUID, Any] = {}
        self.index = InterfaceIndex()

    def write(self, number: int, container: str = "", **columns: list[int]) -> None:
        ids = {SANDBOX: container} if container else {}
        values: dict[str, Any] = {"ofport": [], "ofport_request": [], **columns}
        row = SimpleNamespace(uuid=UUID(int=number), external_ids=ids, **values)
        self.rows[row.uuid] = row
        self.index.changed(row, self.rows)

    def of(self, container: str) -> list[int]:
        return sorted(row.uuid.int for row in self.index.of_container(container, self.rows))


def test_numbers_are_in_use_and_requested() -> None:
    table = Table()
    table.write(1, ofport=[16], ofport_request=[17])
    table.write(2, ofport=[16])
    assert [number in table.index.ofports for number in (15, 16, 17)] == [False, True, True]
    table.write(1, ofport=[17], ofport_request=[17])
    table.index.gone(UUID(int=2))
    assert [number in table.index.ofports for number in (16, 17)] == [False, True]


def test_a_container_has_the_rows_that_name_it_now() -> None:
    table = Table()
    table.write(1, "a")
    table.write(2, "a")
    table.write(3, "b")
    assert table.of("a") == [1, 2]
    table.write(2, "b")
    assert (table.of("a"), table.of("b"), table.of("c")) == ([1], [2, 3], [])
    table.index.gone(UUID(int=1))
    assert table.of("a") == []


def test_rows_that_went_unheard_are_not_found_and_forgotten_in_the_end(monkeypatch: Any) -> None:
    monkeypatch.setattr(interface_index, "_MOST_STALE", 2)
    table = Table()
    for number in range(1, 5):
        table.write(number, "a", ofport=[number])
    table.rows.clear()
    assert table.of("a") == []
    assert 1 in table.index.ofports, "not known to be gone"
    table.write(9, "b", ofport=[9])
    assert [number in table.index.ofports for number in (1, 4, 9)] == [False, False, True]


def test_what_is_made_of_a_row_is_kept_until_the_row_changes() -> None:
    table = Table()
    made: list[int] = []

    def make(row: Any) -> int:
        made.append(row.uuid.int)
        return len(made)

    def of(number: int) -> int:
        return table.index.made_of(table.rows[UUID(int=number)], make)

    table.write(1, "a", ofport=[16])
    table.write(2, "b", ofport=[17])
    assert [of(1), of(2), of(1), of(2)] == [1, 2, 1, 2]
    table.write(1, "a", ofport=[16])  # in another column
    assert [of(1), of(2)] == [3, 2]
    table.index.gone(UUID(int=2))
    assert [of(1), of(2)] == [3, 4]
