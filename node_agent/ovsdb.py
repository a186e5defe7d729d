"""One persistent session with ovsdb-server, driven by the event loop.

`ovs.db.idl` keeps a copy of the tables that we name and sends our transactions; it was written
for a poll loop, and asyncio is the poll loop here. Nothing is read or written anywhere else, so
a function handed to `transact` sees a copy that nobody changes meanwhile.
"""

import asyncio
import os
import select
import warnings
from collections.abc import Callable, Container, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog

from node_agent import json_stream
from node_agent.faults import NodeFault
from node_agent.interface_index import InterfaceIndex

with warnings.catch_warnings():
    # ovs looks for eventlet, which os-ken brings along and which complains when it is looked for.
    warnings.simplefilter("ignore")
    import ovs.json
    from ovs import jsonrpc, stream
    from ovs.db import idl
    from ovs.timeval import msec

if ovs.json.PARSER == ovs.json.PARSER_PY:
    ovs.json.Parser = json_stream.Parser

Row = Any
"""A row of the copy: columns are attributes; assigning to one is part of the open transaction."""

_TABLES: Final = {
    "Open_vSwitch": ["bridges", "datapaths", "external_ids", "other_config", "ssl", "ovs_version",
                     "next_cfg", "cur_cfg"],
    "Datapath": ["ct_zones"],
    "CT_Zone": ["timeout_policy"],
    "CT_Timeout_Policy": ["timeouts"],
    "Bridge": ["name", "ports", "controller", "fail_mode", "protocols", "datapath_type",
               "datapath_id", "other_config", "flow_tables", "external_ids"],
    "Port": ["name", "interfaces", "external_ids"],
    "Interface": ["name", "type", "options", "ofport", "ofport_request", "mac", "mtu_request",
                  "external_ids", "error", "ifindex", "link_resets"],
    "Controller": ["target", "type", "connection_mode", "inactivity_probe", "max_backoff",
                   "is_connected", "status", "external_ids"],
    "Flow_Table": ["name", "flow_limit", "overflow_policy", "groups"],
    "SSL": ["private_key", "certificate", "ca_cert"],
}  # fmt: skip

_INDEXED: Final = ("Bridge", "Interface")

_Made = TypeVar("_Made")

log = structlog.get_logger()


class OvsdbError(NodeFault):
    """A transaction was refused, or ovsdb-server does not answer."""


class _Idl(idl.Idl):  # type: ignore[misc]  # ovs ships no types
    """Keeps an index of the table Interface."""

    def __init__(self, remote: str, schema: Any, index: InterfaceIndex) -> None:
        super().__init__(remote, schema)
        self._index = index

    def notify(self, event: Any, row: Row, updates: Row | None = None) -> None:
        """Called for each row that came, went or has other values."""
        del updates
        interfaces = self.tables["Interface"]
        if row._table is not interfaces:  # noqa: SLF001
            return
        if event == idl.ROW_DELETE:
            self._index.gone(row.uuid)
        else:
            self._index.changed(row, interfaces.rows)


class Transaction:
    """Changes to rows, all or none. What is already so is not sent."""

    def __init__(self, session: "Ovsdb", transaction: Any) -> None:
        self._session = session
        self._transaction = transaction

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of a table."""
        return self._session.rows(table)

    def row(self, table: str, name: str) -> Row | None:
        """The row of this name."""
        return self._session.row(table, name)

    def insert(self, table: str, **columns: object) -> Row:
        """A new row."""
        row = self._transaction.insert(self._session.tables[table])
        for column, value in columns.items():
            setattr(row, column, value)
        return row

    def update(self, row: Row, **columns: object) -> None:
        """Make columns of an existing row hold these values."""
        for column, value in columns.items():
            current = getattr(row, column)
            if isinstance(value, list) and isinstance(current, list):
                same = sorted(value, key=str) == sorted(current, key=str)
            else:
                same = value == current
            if not same:
                setattr(row, column, value)

    def update_keys(self, row: Row, column: str, **keys: str) -> None:
        """Make some keys of a map column hold these values; leave the others alone."""
        current = getattr(row, column)
        for key, value in keys.items():
            if current.get(key) != value:
                row.setkey(column, key, value)


class Ovsdb:
    """The session. `run` must be running for anything else to get anywhere."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket
        self._idl: Any = None
        self._interfaces = InterfaceIndex()
        self._changed = asyncio.Event()
        self._kick = asyncio.Event()

    async def run(self) -> None:
        """Keep the session for ever, and reconnect (backoff: `ovs.reconnect`, at most 8 s)."""
        remote = f"unix:{self._socket}"
        delay = 0.1
        while True:
            try:
                schema = await asyncio.to_thread(_schema, remote)
                break
            except OvsdbError as error:
                log.warning(
                    "ovsdb-server does not answer", socket=str(self._socket), error=str(error)
                )
                await asyncio.sleep(delay)
                delay = min(2 * delay, 5)
        for table, columns in _TABLES.items():
            schema.register_columns(table, columns)
        self._idl = _Idl(remote, schema, self._interfaces)
        for table in _INDEXED:
            self._idl.index_create(table, "name").add_column("name")
        try:
            while True:
                seqno = self._idl.change_seqno
                self._idl.run()
                if self._idl.change_seqno != seqno:
                    self._notify()
                poller = _Poller(self._kick)
                self._idl.wait(poller)
                await poller.block()
                self._kick.clear()
                # A transaction's fate is told by `Idl.run`, which changes nothing else then.
                self._notify()
        finally:
            self._idl.close()

    @property
    def connected(self) -> bool:
        """Whether the copy is complete and kept up to date."""
        return self._idl is not None and self._idl.state == idl.Idl.IDL_S_MONITORING

    @property
    def answers(self) -> bool:
        """Whether ovsdb-server is there. `connected` stays true until it is there again."""
        return self.connected and bool(self._idl._session.is_connected())  # noqa: SLF001

    @property
    def tables(self) -> Any:
        """The copy, by table name."""
        return self._idl.tables

    def rows(self, table: str) -> Iterator[Row]:
        """All rows of a table, or none before the first connection."""
        return iter(()) if self._idl is None else iter(list(self.tables[table].rows.values()))

    def row(self, table: str, name: str) -> Row | None:
        """The row of this name, of a table that is indexed by name."""
        if self._idl is None:
            return None
        wanted = self.tables[table].rows.IndexEntry(name=name)
        return next(self._idl.index_equal(table, "name", wanted), None)

    @property
    def ofports(self) -> Container[int]:
        """Every ofport that is in use or requested. Any thread may look into it."""
        return self._interfaces.ofports

    def interfaces_of(self, container_id: str) -> Iterator[Row]:
        """The Interface rows of a container's attachments."""
        if self._idl is not None:
            yield from self._interfaces.of_container(container_id, self.tables["Interface"].rows)

    def made_of(self, interface: Row, make: Callable[[Row], _Made]) -> _Made:
        """What `make`, always the same function, makes of a row; kept until the row changes."""
        return self._interfaces.made_of(interface, make)

    async def changed(self, within: float) -> None:
        """Wait until something may have changed, or `within` seconds."""
        try:
            async with asyncio.timeout(within):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def wait_until(self, condition: Callable[[], bool], within: float | None) -> bool:
        """Wait for something to be so in the copy; False where it is not in time."""
        try:
            async with asyncio.timeout(within):
                while not condition():
                    await self._changed.wait()
        except TimeoutError:
            return condition()
        return True

    async def transact(self, change: Callable[[Transaction], object], within: float = 10.0) -> bool:
        """Apply `change` as one transaction; False where it changed nothing.

        `change` is called again where somebody else was faster. Raises `OvsdbError`; after one
        that speaks of time, the transaction may yet come to pass.
        """
        try:
            async with asyncio.timeout(within):
                return await self._transact(change)
        except TimeoutError:
            raise OvsdbError(
                f"ovsdb-server at {self._socket} did not answer within {within:.0f} s"
            ) from None

    async def _transact(self, change: Callable[[Transaction], object]) -> bool:
        while True:
            while not self.connected:
                await self._changed.wait()
            seqno = self._idl.change_seqno
            transaction = idl.Transaction(self._idl)
            try:
                change(Transaction(self, transaction))
            except BaseException:
                transaction.abort()
                raise
            status = transaction.commit()
            self._kick.set()
            while status == idl.Transaction.INCOMPLETE:
                await self._changed.wait()
                status = transaction.commit()
            if status == idl.Transaction.UNCHANGED:
                return False
            if status == idl.Transaction.SUCCESS:
                return True
            if status != idl.Transaction.TRY_AGAIN:
                raise OvsdbError(f"ovsdb-server refused a change: {transaction.get_error()}")
            while self._idl.change_seqno == seqno:
                await self._changed.wait()

    def _notify(self) -> None:
        # Whoever waits now is woken; whoever waits later waits for the next change.
        self._changed.set()
        self._changed = asyncio.Event()


def _schema(remote: str) -> Any:
    """What ovsdb-server says its database looks like. Blocks. Raises `OvsdbError`."""
    error, opened = stream.Stream.open_block(stream.Stream.open(remote))
    if error:
        raise OvsdbError(os.strerror(error))
    connection = jsonrpc.Connection(opened)
    try:
        request = jsonrpc.Message.create_request("get_schema", ["Open_vSwitch"])
        error, reply = connection.transact_block(request)
    finally:
        connection.close()
    if error or reply.error:
        raise OvsdbError(os.strerror(error) if error else str(reply.error))
    return idl.SchemaHelper(None, reply.result)


class _Poller:
    """What `Idl.wait` tells it to wait for (the interface of `ovs.poller.Poller`)."""

    def __init__(self, kick: asyncio.Event) -> None:
        self._kick = kick
        self._files: list[tuple[Any, int]] = []
        self._milliseconds: float | None = None

    def fd_wait(self, file: Any, events: int) -> None:
        self._files.append((file, events))

    def timer_wait(self, milliseconds: float) -> None:
        if self._milliseconds is None or milliseconds < self._milliseconds:
            self._milliseconds = max(milliseconds, 0)

    def timer_wait_until(self, time: float) -> None:
        self.timer_wait(time - msec())

    def immediate_wake(self) -> None:
        self._milliseconds = 0

    async def block(self) -> None:
        """Until one of them happens, or somebody kicks."""
        loop = asyncio.get_running_loop()
        for file, events in self._files:
            if events & select.POLLIN:
                loop.add_reader(file, self._kick.set)
            if events & select.POLLOUT:
                loop.add_writer(file, self._kick.set)
        try:
            async with asyncio.timeout(
                None if self._milliseconds is None else self._milliseconds / 1000
            ):
                await self._kick.wait()
        except TimeoutError:
            pass
        finally:
            for file, _ in self._files:
                loop.remove_reader(file)
                loop.remove_writer(file)
