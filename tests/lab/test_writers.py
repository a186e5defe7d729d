"""What a switch's log says about who writes to it."""

from tests.lab.writers import faults, writes_in

FIRST, SECOND = "172.30.0.2", "172.30.0.3"


def entry(second: int, controller: str, text: str) -> str:
    return f"2026-11-29T10:00:{second:02}.000Z|vconn|DBG|tcp:{controller}:6653: {text}\n"


def master(second: int, controller: str, generation: int) -> str:
    said = "sent (Success): OFPT_ROLE_REPLY (OF1.5) (xid=0x9): role=primary generation_id="
    return entry(second, controller, f"{said}{generation}")


def meter(second: int, controller: str, xid: str = "0x1") -> str:
    return entry(second, controller, f"received: OFPT_METER_MOD (OF1.5) (xid={xid}): ADD meter=1")


def error(second: int, controller: str, xid: str = "0x1") -> str:
    return entry(
        second, controller, f"sent (Success): OFPT_ERROR (OF1.5) (xid={xid}): OFPBRC_IS_SECONDARY"
    )


def commit(second: int, controller: str) -> str:
    said = "sent (Success): OFPT_BUNDLE_CONTROL (OF1.5) (xid=0x5):\n bundle_id=0x1"
    return entry(second, controller, f"{said} type=COMMIT_REPLY flags=0")


def found(*lines: str) -> list[str]:
    return faults(list(writes_in("node1", "".join(lines))))


def test_a_master_writes() -> None:
    assert found(master(1, FIRST, 1), meter(2, FIRST), commit(3, FIRST)) == []
    (one, other) = writes_in("node1", master(1, FIRST, 7) + meter(2, FIRST) + commit(3, FIRST))
    assert (one.controller, one.generation, other.generation) == (FIRST, 7, 7)


def test_what_the_switch_refuses_is_no_write() -> None:
    assert found(meter(1, FIRST), error(2, FIRST)) == []
    # The number of another controller's message may be the same.
    assert len(found(meter(1, FIRST), error(2, SECOND))) == 1


def test_write_without_a_role_is_a_fault() -> None:
    (fault,) = found(commit(1, FIRST))
    assert fault.endswith("without being master")


def test_write_of_a_replaced_master_is_a_fault() -> None:
    lines = master(1, FIRST, 1), commit(2, FIRST), master(3, SECOND, 2), commit(4, SECOND)
    assert found(*lines) == []
    assert len(found(*lines, commit(5, FIRST))) == 1


def test_role_ends_with_the_connection() -> None:
    again = entry(2, FIRST, "negotiated OpenFlow version 0x06 (we support version 0x06)")
    assert len(found(master(1, FIRST, 1), again, commit(3, FIRST))) == 1


def test_two_writers_at_different_switches_are_a_fault() -> None:
    one = master(1, FIRST, 1) + commit(2, FIRST) + commit(5, FIRST)
    other = master(3, SECOND, 2) + commit(4, SECOND)
    writes = [*writes_in("node1", one), *writes_in("node2", other)]
    (fault,) = faults(sorted(writes, key=lambda write: write.at))
    assert "node1" in fault
