"""Leases: unique, on disk, first in first out with a rest in between."""

import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from flows.names import FIRST_ATTACHMENT_OFPORT, LAST_ATTACHMENT_OFPORT, gateway_address
from lab.patience import PROGRAM_TIMEOUT
from node_agent.cni_call import HostPort, Pod
from node_agent.leases import HostPortError, Lease, LeaseError, LeaseFileError, Leases

CIDR = IPv4Network("10.9.0.0/29")
REST = 30.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "state" / "leases.sqlite"


@pytest.fixture
def leases(file: Path) -> Iterator[Leases]:
    made = Leases(file, "node1", REST)
    made.use(CIDR)
    yield made
    made.close()


def take(leases: Leases, name: str, now: float = 0.0, ofports: tuple[int, ...] = ()) -> Lease:
    return leases.take(name, "eth0", f"port-{name}", now=now, ofports=ofports)


def last(lease: Lease) -> int:
    return lease.address.packed[3]


def test_gateway_network_and_broadcast_are_never_leased(leases: Leases) -> None:
    taken = {take(leases, str(i)).address for i in range(5)}
    assert taken == set(CIDR) - {CIDR[0], gateway_address(CIDR), CIDR.broadcast_address}


def test_full_range_names_node_and_cidr(leases: Leases) -> None:
    for i in range(5):
        take(leases, str(i))
    with pytest.raises(LeaseError, match=r"Node node1: spec\.podCIDR 10\.9\.0\.0/29 is full: 5"):
        take(leases, "more")
    assert len(leases.all()) == 5


def test_released_addresses_rest_and_come_back_in_order(leases: Leases) -> None:
    for i in range(5):
        take(leases, str(i))
    leases.release("3", "eth0", now=100)
    leases.release("1", "eth0", now=101)
    with pytest.raises(LeaseError, match="2 rest for 30 s"):
        take(leases, "a", now=129.9)
    assert last(take(leases, "a", now=131)) == 5
    assert last(take(leases, "b", now=131)) == 3


def test_never_used_addresses_come_before_released_ones(leases: Leases) -> None:
    take(leases, "a")
    leases.release("a", "eth0", now=0)
    assert last(take(leases, "b", now=1000)) == 3


def test_clock_set_back_does_not_lock_addresses_up(leases: Leases) -> None:
    for i in range(5):
        take(leases, str(i))
    leases.release("0", "eth0", now=1_000_000)
    assert last(take(leases, "a", now=50)) == 2


def test_one_lease_for_an_attachment(leases: Leases) -> None:
    take(leases, "a")
    with pytest.raises(ValueError, match="a eth0 has a lease"):
        take(leases, "a")


def test_release_again_and_again(leases: Leases) -> None:
    take(leases, "a")
    leases.release("a", "eth0", now=0)
    leases.release("a", "eth0", now=50)
    leases.release("b", "eth0", now=50)
    assert leases.all() == []


def test_ofports_only_grow_and_wrap(leases: Leases, file: Path) -> None:
    assert take(leases, "a").ofport == FIRST_ATTACHMENT_OFPORT
    leases.release("a", "eth0", now=0)
    assert take(leases, "b", ofports=(17, 18)).ofport == 19
    with sqlite3.connect(file) as database:
        database.execute(
            "UPDATE state SET value = ? WHERE name = 'next ofport'", (LAST_ATTACHMENT_OFPORT,)
        )
    database.close()
    assert take(leases, "c").ofport == LAST_ATTACHMENT_OFPORT
    assert take(leases, "d").ofport == FIRST_ATTACHMENT_OFPORT
    assert take(leases, "e", ofports=(17, 18)).ofport == 20, "19 is b's"


def test_everything_survives_a_restart(leases: Leases, file: Path) -> None:
    kept = take(leases, "a")
    take(leases, "b")
    leases.release("b", "eth0", now=10)
    leases.close()
    again = Leases(file, "node1", REST)
    again.use(CIDR)
    assert again.all() == [kept]
    new = take(again, "c")
    assert (last(new), new.ofport) == (4, 18)
    again.close()


def test_remembers_whose_it_is(leases: Leases, file: Path) -> None:
    pod, netns = Pod("default", "web-0", "0b-1"), Path("/run/netns/x")
    kept = leases.take("a", "eth0", "port-a", now=0, ofports=(), netns=netns, pod=pod)
    assert (kept.pod, kept.netns) == (pod, netns)
    leases.close()
    again = Leases(file, "node1", REST)
    assert again.all() == [kept]
    again.close()


def test_file_of_an_older_version(leases: Leases, file: Path) -> None:
    kept = take(leases, "a")
    leases.close()
    with sqlite3.connect(file) as database:
        for column in ("netns", "pod", "host_ports"):
            database.execute(f"ALTER TABLE lease DROP COLUMN {column}")
    database.close()
    again = Leases(file, "node1", REST)
    assert again.all() == [kept]
    assert take(again, "b").address == CIDR[3]
    again.close()


def test_a_host_port_is_one_pods(leases: Leases, file: Path) -> None:
    def claim(name: str, *ports: HostPort, pod: str = "", **more: Any) -> Lease:
        who = Pod("default", pod or name, "u")
        return leases.take(name, "eth0", name, now=0, ofports=(), pod=who, host_ports=ports, **more)

    anywhere = HostPort(6, None, 80, 8080)
    kept = claim("a", anywhere, HostPort(17, IPv4Address("10.0.0.1"), 53, 53))
    for taken, title in (
        (HostPort(6, None, 80, 9090), r"0\.0\.0\.0:80/tcp"),
        (HostPort(17, IPv4Address("10.0.0.1"), 53, 5353), r"10\.0\.0\.1:53/udp"),
    ):
        with pytest.raises(
            HostPortError,
            match=f"^default/b wants host port {title}, which default/a has on node node1$",
        ):
            claim("b", HostPort(6, None, 81, 80), taken)
    assert leases.all() == [kept]
    others = (HostPort(17, None, 80, 80), HostPort(17, IPv4Address("10.0.0.2"), 53, 53))
    claim("b", *others)
    again = Leases(file, "node1", REST)
    assert again.all() == leases.all()
    again.close()
    # A sandbox of the same pod follows the one that is to go; and who is dead claims nothing.
    claim("a-2", anywhere, pod="a")
    claim("c", *others, dead=[("b", "eth0")])


def test_locked_file_changes_nothing_and_is_named(leases: Leases, file: Path) -> None:
    kept = take(leases, "a")
    other = sqlite3.connect(file, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begin = time.monotonic()
    for change in (
        lambda: take(leases, "b"),
        lambda: leases.release("a", "eth0", now=0),
        lambda: leases.adopt(Lease("x", "eth0", "port-x", CIDR[4], 90)),
        lambda: leases.use(CIDR),
    ):
        with pytest.raises(LeaseFileError, match=f"{file}: database is locked"):
            change()
    assert time.monotonic() - begin < 10
    assert leases.all() == [kept]
    other.execute("ROLLBACK")
    other.close()
    assert take(leases, "b").address == CIDR[3]


def test_full_disk_changes_nothing(leases: Leases, file: Path) -> None:
    kept = take(leases, "a")
    (pages,) = leases._database.execute("PRAGMA page_count").fetchone()
    leases._database.execute(f"PRAGMA max_page_count = {pages}")
    name = "b" * 100_000
    with pytest.raises(LeaseFileError, match=f"{file}: database or disk is full"):
        take(leases, name)
    assert leases.all() == [kept]
    leases._database.execute("PRAGMA query_only = ON")
    with pytest.raises(LeaseFileError, match="readonly"):
        leases.release("a", "eth0", now=0)
    assert leases.all() == [kept]


def test_sigkill_right_after_take_loses_nothing(file: Path) -> None:
    code = f"""
import os, signal
from ipaddress import IPv4Network
from pathlib import Path
from node_agent.leases import Leases
leases = Leases(Path({str(file)!r}), "node1", 30)
leases.use(IPv4Network("{CIDR}"))
print(leases.take("a", "eth0", "p", now=0, ofports=()).address, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=PROGRAM_TIMEOUT,
    )
    assert done.returncode == -signal.SIGKILL
    again = Leases(file, "node1", REST)
    assert [str(lease.address) for lease in again.all()] == [done.stdout.strip()]
    again.close()


def test_new_cidr_waits_for_old_attachments(leases: Leases) -> None:
    take(leases, "a")
    new = IPv4Network("10.9.1.0/29")
    with pytest.raises(LeaseError, match=r"podCIDR is 10\.9\.1\.0/29 now, but 1 .*10\.9\.0\.2"):
        leases.use(new)
    assert last(take(leases, "b")) == 3, "the refusal changes nothing"
    for name in "ab":
        leases.release(name, "eth0", now=0)
    leases.use(new)
    assert take(leases, "c").address == new[2]


def test_adopt(leases: Leases) -> None:
    held = Lease("x", "eth0", "port-x", CIDR[2], 16)
    leases.adopt(held)
    assert leases.get("x", "eth0") == held
    new = take(leases, "a")
    assert (new.address, new.ofport) == (CIDR[3], 17)
    with pytest.raises(LeaseError, match=r"port-y.*10\.9\.0\.3"):
        leases.adopt(Lease("y", "eth0", "port-y", CIDR[3], 90))
    assert leases.get("y", "eth0") is None


def test_not_a_lease_file(file: Path) -> None:
    file.parent.mkdir()
    file.write_bytes(b"no database, but long enough to be read as one" * 100)
    with pytest.raises(LeaseError, match=str(file)):
        Leases(file, "node1", REST)


def test_only_root_reads_it(leases: Leases, file: Path) -> None:
    assert leases.all() == []
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700


def test_any_history(  # noqa: C901  a model is one class
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Whatever happens in whatever order: unique, inside the range, rested, and remembered."""

    class History(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.file = tmp_path_factory.mktemp("leases") / "f"
            self.now = 0.0
            self.held: dict[str, Lease] = {}
            self.freed: dict[IPv4Address, float] = {}
            self.leases = Leases(self.file, "node1", REST)
            self.leases.use(CIDR)

        @rule(name=st.sampled_from("abcdefgh"))
        def take(self, name: str) -> None:
            if name in self.held:
                return
            rested = [a for a in CIDR if self.now - self.freed.get(a, -REST) >= REST]
            possible = {a for a in rested if 2 <= int(a) % 8 < 7}
            possible -= {lease.address for lease in self.held.values()}
            try:
                lease = take(self.leases, name, self.now)
            except LeaseError:
                assert not possible
                return
            assert lease.address in possible
            assert lease.ofport not in {other.ofport for other in self.held.values()}
            self.held[name] = lease

        @rule(name=st.sampled_from("abcdefgh"))
        def release(self, name: str) -> None:
            self.leases.release(name, "eth0", now=self.now)
            if name in self.held:
                self.freed[self.held.pop(name).address] = self.now

        @rule(seconds=st.sampled_from([1.0, 16.0, 40.0]))
        def wait(self, seconds: float) -> None:
            self.now += seconds

        @rule()
        def restart(self) -> None:
            self.leases.close()
            self.leases = Leases(self.file, "node1", REST)
            self.leases.use(CIDR)

        @invariant()
        def remembers(self) -> None:
            assert {lease.container_id: lease for lease in self.leases.all()} == self.held

        def teardown(self) -> None:
            self.leases.close()

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        History, settings=hypothesis_settings(max_examples=30, deadline=None)
    )


def test_what_is_answered_is_synced_to_disk(leases: Leases) -> None:
    """sqlite(3), PRAGMA synchronous: 2 is FULL, without which a power cut takes commits back."""
    (level,) = leases._database.execute("PRAGMA synchronous").fetchone()
    assert level == 2


class _FailsToCommit:
    """A database whose disk is full when it matters."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        if statement == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return self._database.execute(statement, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def test_after_a_failed_commit_memory_and_file_agree(leases: Leases, file: Path) -> None:
    kept = take(leases, "kept")
    real = leases._database
    leases._database = _FailsToCommit(real)  # type: ignore[assignment]
    with pytest.raises(LeaseFileError, match="disk is full"):
        take(leases, "lost")
    with pytest.raises(LeaseFileError, match="disk is full"):
        leases.release("kept", "eth0", now=1.0)
    leases._database = real
    assert leases.all() == [kept]
    again = Leases(file, "node1", REST)
    assert again.all() == [kept]
    again.close()
    assert take(leases, "next").address == kept.address + 1, "nothing of the lost one is left"
