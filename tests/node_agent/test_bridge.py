"""What OVSDB says of the controllers' sessions."""

from types import SimpleNamespace
from typing import Any

import pytest

from flows import names
from node_agent import bridge


def controller(host: str, *, connected: bool, ours: bool = True) -> SimpleNamespace:
    return SimpleNamespace(
        target=f"tcp:{host}:6653",
        is_connected=connected,
        status={"state": "ACTIVE"} if connected else {"last_error": "Connection refused"},
        external_ids={"sluice": "controller"} if ours else {},
    )


A, B = "192.0.2.1", "192.0.2.2"


@pytest.mark.parametrize(
    ("rows", "is_up"),
    [
        ([controller(A, connected=True), controller(B, connected=True)], True),
        ([controller(A, connected=False), controller(B, connected=True)], True),
        ([controller(A, connected=True), controller(B, connected=False)], True),
        ([controller(A, connected=False), controller(B, connected=False)], False),
        # Somebody's own controller does not serve the node.
        ([controller(A, connected=False), controller(B, connected=True, ours=False)], False),
        ([], False),
    ],
)
def test_node_is_served_while_one_controller_has_a_session(rows: list[Any], is_up: bool) -> None:
    ovsdb: Any = SimpleNamespace(
        row=lambda table, name: (
            SimpleNamespace(controller=rows)
            if (table, name) == ("Bridge", names.INTEGRATION_BRIDGE)
            else None
        )
    )
    found, why = bridge.controller_session(ovsdb)
    assert found == is_up
    # Each of ours is named with its own state.
    for row in rows:
        if bridge._is_marked(row):
            state = "ACTIVE" if row.is_connected else "Connection refused"
            assert f"{row.target}: {state}" in why
