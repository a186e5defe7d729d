"""Addresses and OpenFlow port numbers of this node's attachments, on disk before anything else.

One sqlite file. What it has answered survives a crash of the agent and of the machine: every
change is one transaction, synced before it returns.

An address that was released rests in quarantine, then goes to the end of the queue: conntrack
entries of its old owner, here and on other nodes, must be gone before it is bound anew. A number
is not used again before the counter has gone all the way round: Open vSwitch would hand out a
freed one at once, and flows that are still on their way to the switch would meet the new port.
"""

import sqlite3
import threading
from collections.abc import Collection, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Final

from flows.names import FIRST_ATTACHMENT_OFPORT, LAST_ATTACHMENT_OFPORT
from node_agent.cni_call import HostPort, Pod
from node_agent.faults import NodeFault

_BUSY_TIMEOUT: Final = 1.0
"""Seconds that somebody else may hold the file, a backup for one."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS lease (
    container_id TEXT NOT NULL,
    ifname TEXT NOT NULL,
    port TEXT NOT NULL UNIQUE,
    address INTEGER NOT NULL UNIQUE,
    ofport INTEGER NOT NULL UNIQUE,
    netns TEXT,
    pod TEXT,
    host_ports TEXT,
    PRIMARY KEY (container_id, ifname)
) STRICT;
CREATE TABLE IF NOT EXISTS released (
    address INTEGER PRIMARY KEY,
    at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS state (
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) STRICT;
"""


class LeaseError(NodeFault):
    """No lease can be given; the text says why, and names node and podCIDR."""


class HostPortError(LeaseError):
    """Another attachment has a host port that this one wants; the text names both."""


class LeaseFileError(LeaseError):
    """The file cannot be used, and nothing was changed; the text names it and says why."""


@dataclass(frozen=True, slots=True)
class Lease:
    """What one attachment has, and who it is: enough to make its row in OVSDB anew."""

    container_id: str
    ifname: str
    port: str
    address: IPv4Address
    ofport: int
    netns: Path | None = None
    pod: Pod | None = None
    """None without Kubernetes, and in a file from before these two were kept."""
    host_ports: tuple[HostPort, ...] = ()

    @property
    def title(self) -> str:
        """What a reader knows it by."""
        return _title(self.pod, self.container_id)


def _title(pod: Pod | None, container_id: str) -> str:
    return f"{pod.namespace}/{pod.name}" if pod else container_id


class Leases:
    """The lease file. Every method may be called from any thread, and may wait for the disk.

    Each one that changes something raises `LeaseFileError` where the file is locked, full or
    cannot be written.
    Times are seconds of a clock that survives a reboot; where it was set back, an address rests
    no longer than the quarantine, counted from either side.
    """

    def __init__(self, path: Path, node: str, quarantine: float) -> None:
        """Open the file, or make it. Raises `LeaseFileError` where it is not a lease file."""
        self._path = path
        self._node = node
        self._quarantine = quarantine
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            self._database = sqlite3.connect(
                path, timeout=_BUSY_TIMEOUT, isolation_level=None, check_same_thread=False
            )
        except sqlite3.Error as error:
            raise LeaseFileError(f"lease file {path}: {error}") from error
        path.chmod(0o600)
        self._held: dict[tuple[str, str], Lease] = {}
        try:
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = FULL")
            self._database.executescript(_SCHEMA)
            self._add_columns("netns", "pod", "host_ports")
            self._held = self._read()
        except sqlite3.Error as error:
            self._database.close()
            raise LeaseFileError(f"lease file {path}: {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def use(self, pod_cidr: IPv4Network) -> None:
        """Lease from this range from now on.

        Raises `LeaseError` while attachments of another range are left: the Node was made anew
        under its old name, or its podCIDR changed, and its old pods must go first.
        """
        with self._transaction() as database:
            foreign = [lease for lease in self._held.values() if lease.address not in pod_cidr]
            if foreign:
                raise LeaseError(
                    f"Node {self._node}: spec.podCIDR is {pod_cidr} now, but {len(foreign)} "
                    f"attachments still have addresses of another range, {foreign[0].address} "
                    "for one: drain the node first"
                )
            if self._get(database, "podCIDR") != str(pod_cidr):
                database.execute("DELETE FROM released")
                self._set(database, "podCIDR", str(pod_cidr))
                # A lease adopted before may lie beyond; `take` skips what is taken.
                self._set(database, "next address", str(int(pod_cidr[2])))

    def take(
        self,
        container_id: str,
        ifname: str,
        port: str,
        *,
        now: float,
        ofports: Container[int],
        netns: Path | None = None,
        pod: Pod | None = None,
        host_ports: tuple[HostPort, ...] = (),
        dead: Collection[tuple[str, str]] = (),
    ) -> Lease:
        """A new lease for an attachment that has none; `ofports` are numbers in use elsewhere.

        The `dead`, by container and interface, have no claim to a host port, nor has an earlier
        sandbox of this pod.

        Raises `HostPortError`, `LeaseError` where the range is full, and `ValueError` where there
        is a lease.
        """
        with self._transaction() as database:
            if (container_id, ifname) in self._held:
                raise ValueError(f"{container_id} {ifname} has a lease")
            leases = self._held.values()
            for other in leases:
                if (other.container_id, other.ifname) in dead or (pod and other.pod == pod):
                    continue
                theirs = {claimed.claim for claimed in other.host_ports}
                for wanted in host_ports:
                    if wanted.claim in theirs:
                        raise HostPortError(
                            f"{_title(pod, container_id)} wants host port {wanted.title}, which "
                            f"{other.title} has on node {self._node}"
                        )
            lease = Lease(
                container_id,
                ifname,
                port,
                self._take_address(database, now),
                self._take_ofport(database, ofports),
                netns,
                pod,
                host_ports,
            )
            self._insert(database, lease)
            return lease

    def adopt(self, lease: Lease) -> None:
        """Record what an existing port has, where the file does not know it.

        Raises `LeaseError` where another attachment holds the address or the number.
        """
        with self._transaction() as database:
            try:
                self._insert(database, lease)
            except sqlite3.IntegrityError as error:
                raise LeaseError(
                    f"port {lease.port}: address {lease.address} or ofport {lease.ofport} is "
                    f"leased to another attachment of node {self._node}"
                ) from error
            database.execute("DELETE FROM released WHERE address = ?", (int(lease.address),))

    def release(self, container_id: str, ifname: str, *, now: float) -> None:
        """End a lease, if there is one; its address goes into quarantine."""
        with self._transaction() as database:
            lease = self._held.pop((container_id, ifname), None)
            if lease is not None:
                key = (container_id, ifname)
                database.execute("DELETE FROM lease WHERE container_id = ? AND ifname = ?", key)
                database.execute(
                    "INSERT OR REPLACE INTO released VALUES (?, ?)", (int(lease.address), now)
                )

    def all(self) -> list[Lease]:
        """Every lease, from memory."""
        return list(self._held.values())

    def get(self, container_id: str, ifname: str) -> Lease | None:
        """An attachment's lease, from memory."""
        return self._held.get((container_id, ifname))

    def _take_address(self, database: sqlite3.Connection, now: float) -> IPv4Address:
        leased = {int(lease.address) for lease in self._held.values()}
        pod_cidr = IPv4Network(self._get(database, "podCIDR") or "0.0.0.0/32")
        following = int(self._get(database, "next address") or 0)
        while following < int(pod_cidr.broadcast_address):
            address = following
            following += 1
            if address not in leased:
                self._set(database, "next address", str(following))
                return IPv4Address(address)
        resting = database.execute(
            "SELECT address, at FROM released ORDER BY at, address"
        ).fetchall()
        for value, at in resting:
            if abs(now - at) >= self._quarantine:
                database.execute("DELETE FROM released WHERE address = ?", (value,))
                return IPv4Address(value)
        raise LeaseError(
            f"Node {self._node}: spec.podCIDR {pod_cidr} is full: {len(leased)} addresses are "
            f"leased, and {len(resting)} rest for {self._quarantine:.0f} s after their pod went"
        )

    def _take_ofport(self, database: sqlite3.Connection, elsewhere: Container[int]) -> int:
        leased = {lease.ofport for lease in self._held.values()}
        first = int(self._get(database, "next ofport") or FIRST_ATTACHMENT_OFPORT)
        count = LAST_ATTACHMENT_OFPORT - FIRST_ATTACHMENT_OFPORT + 1
        for step in range(count):
            ofport = FIRST_ATTACHMENT_OFPORT + (first - FIRST_ATTACHMENT_OFPORT + step) % count
            if ofport not in leased and ofport not in elsewhere:
                following = (
                    ofport + 1 if ofport < LAST_ATTACHMENT_OFPORT else FIRST_ATTACHMENT_OFPORT
                )
                self._set(database, "next ofport", str(following))
                return ofport
        raise LeaseError(f"Node {self._node}: all {count} OpenFlow port numbers are taken")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            before = self._held.copy()
            try:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database
                    self._database.execute("COMMIT")
                except BaseException:
                    self._held = before
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise LeaseFileError(f"lease file {self._path}: {error}") from error

    def _add_columns(self, *columns: str) -> None:
        """To a file of an older version."""
        known = {row[1] for row in self._database.execute("PRAGMA table_info(lease)")}
        for column in columns:
            if column not in known:
                self._database.execute(f"ALTER TABLE lease ADD COLUMN {column} TEXT")

    def _read(self) -> dict[tuple[str, str], Lease]:
        return {
            (container_id, ifname): Lease(
                container_id, ifname, port, IPv4Address(address), ofport,
                Path(netns) if netns else None,
                Pod(*pod.split("/")) if pod else None,
                tuple(map(HostPort.read, ports.split(","))) if ports else (),
            )
            for container_id, ifname, port, address, ofport, netns, pod, ports in (
                self._database.execute(
                    "SELECT container_id, ifname, port, address, ofport, netns, pod, host_ports "
                    "FROM lease ORDER BY rowid"
                )
            )
        }  # fmt: skip

    def _insert(self, database: sqlite3.Connection, lease: Lease) -> None:
        pod = lease.pod
        values = (
            lease.container_id, lease.ifname, lease.port, int(lease.address), lease.ofport,
            str(lease.netns) if lease.netns else None,
            # None of the three can hold a slash.
            f"{pod.namespace}/{pod.name}/{pod.uid}" if pod else None,
            ",".join(map(str, lease.host_ports)) or None,
        )  # fmt: skip
        database.execute(
            "INSERT INTO lease (container_id, ifname, port, address, ofport, netns, pod, "
            "host_ports) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            values,
        )
        self._held[lease.container_id, lease.ifname] = lease

    @staticmethod
    def _get(database: sqlite3.Connection, name: str) -> str | None:
        row = database.execute("SELECT value FROM state WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    @staticmethod
    def _set(database: sqlite3.Connection, name: str, value: str) -> None:
        database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, value))
