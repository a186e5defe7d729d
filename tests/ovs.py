"""A real ovs-vswitchd with a dummy datapath: everything except packets, and without a namespace."""

import asyncio
import os
import signal
import socket
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from flows.diff import GroupChange
from flows.flow import Flow, Group, Meter
from flows.pipeline import TABLES, Table
from node_agent.bridge import flow_table_columns
from openflow.batch import Batch
from openflow.messages import Port
from openflow.watch import connect
from tests.waiting import wait_until

SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")


@dataclass
class Ovs:
    """One ovsdb-server and one ovs-vswitchd in a directory, with the bridge `br0`."""

    directory: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        names = ("OVS_RUNDIR", "OVS_DBDIR", "OVS_LOGDIR", "OVS_SYSCONFDIR")
        return os.environ | dict.fromkeys(names, str(self.directory))

    @property
    def mgmt(self) -> Path:
        return self.directory / "br0.mgmt"

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(
            command, env=self.environment, check=False, capture_output=True, text=True, timeout=60
        )
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def vsctl(self, *arguments: str) -> str:
        db = f"--db=unix:{self.directory}/db.sock"
        return self.run("ovs-vsctl", db, "--retry", "--timeout=60", *arguments)

    def ofctl(self, *arguments: str) -> str:
        return self.run("ovs-ofctl", "-O", "OpenFlow15", *arguments)

    def port_up(self, name: str, ofport: int) -> Port:
        """Add a dummy port, which chooses its MAC itself."""
        self.vsctl(
            "add-port", "br0", name, "--", "set", "Interface", name, "type=dummy",
            f"ofport_request={ofport}",
        )  # fmt: skip
        mac = self.vsctl("get", "Interface", name, "mac_in_use").strip().strip('"')
        return Port(ofport, name, mac)

    def dump(self) -> list[str]:
        """The flows without counters, sorted, tables by name."""
        text = self.ofctl("--names", "--no-stats", "dump-flows", str(self.mgmt))
        return sorted(line.strip() for line in text.splitlines())

    def start_switch(self) -> None:
        self._start(
            "ovs-vswitchd", f"unix:{self.directory}/db.sock", "--disable-system",
            "--enable-dummy=override", f"--pidfile={self.directory}/ovs-vswitchd.pid",
            "-vconsole:off", f"--log-file={self.directory}/vswitchd.log",
        )  # fmt: skip

    def start(self) -> None:
        database = self.directory / "conf.db"
        self.run("ovsdb-tool", "create", str(database), str(SCHEMA))
        self._start(
            "ovsdb-server", str(database), f"--remote=punix:{self.directory}/db.sock",
            f"--pidfile={self.directory}/ovsdb.pid", "-vconsole:off",
        )  # fmt: skip
        wait_until((self.directory / "db.sock").exists)
        self.vsctl("--no-wait", "init")
        self.start_switch()
        tables = [f"{table.number}=@t{table.number}" for table in TABLES]
        rows = [
            word
            for table in TABLES
            for word in ("--", f"--id=@t{table.number}", "create", "Flow_Table", *_columns(table))
        ]  # fmt: skip
        self.vsctl(
            "add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=dummy",
            "fail_mode=secure", "protocols=OpenFlow10,OpenFlow13,OpenFlow14,OpenFlow15",
            "other_config:datapath-id=00000000000000aa",
            "flow_tables=" + ",".join(tables), *rows,
        )  # fmt: skip
        wait_until(self.listens)

    def listens(self) -> bool:
        """Whether the bridge accepts connections: its socket exists a moment earlier."""
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.mgmt)) == 0

    def dial(self, *targets: str) -> None:
        """Make the bridge connect to controllers, as nodes do."""
        rows = [
            word
            for number, target in enumerate(targets)
            for word in (
                f"--id=@c{number}", "create", "Controller", f'target="{target}"', "type=service",
                "connection_mode=out-of-band", "max_backoff=1000", "inactivity_probe=60000", "--",
            )
        ]  # fmt: skip
        names = ",".join(f"@c{number}" for number in range(len(targets)))
        self.vsctl(*rows, "set", "Bridge", "br0", f"controller=[{names}]")

    def stop_switch(self) -> None:
        self.processes[-1].kill()
        self.processes.pop().wait(timeout=60)
        self.mgmt.unlink(missing_ok=True)

    def freeze_switch(self) -> None:
        """Stop the process: its connections stay open, and nothing answers."""
        self.processes[-1].send_signal(signal.SIGSTOP)

    def install(
        self, flows: Iterable[Flow], meters: Iterable[Meter] = (), groups: Iterable[Group] = ()
    ) -> None:
        """Send flows by our own channel, as the controller does."""
        changes = map(GroupChange, groups)

        async def send() -> None:
            async with connect(self.mgmt) as switch:
                await switch.apply(Batch.of(adds=flows, meters_set=meters, groups_set=changes))

        asyncio.run(send())

    def trace(self, packet: str, *ct_states: str) -> str:
        """`ofproto/trace`; each of `ct_states` is the state that one lookup in conntrack finds."""
        states = [word for state in ct_states for word in ("--ct-next", state)]
        return self.appctl("ofproto/trace", "br0", packet, *states)

    def appctl(self, *arguments: str) -> str:
        pid = (self.directory / "ovs-vswitchd.pid").read_text().strip()
        return self.run("ovs-appctl", "-t", f"{self.directory}/ovs-vswitchd.{pid}.ctl", *arguments)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.kill()
            process.wait(timeout=60)

    def _start(self, *command: str) -> None:
        self.processes.append(subprocess.Popen(command, env=self.environment))


@contextmanager
def running(directory: Path) -> Iterator[Ovs]:
    """A switch for as long as the context lasts."""
    switch = Ovs(directory)
    try:
        switch.start()
        yield switch
    finally:
        switch.stop()


def _columns(table: Table) -> Iterable[str]:
    """The table's row as an agent makes it."""
    for column, values in flow_table_columns(table).items():
        for value in values if isinstance(values, list) else ():
            quoted = value if isinstance(value, int) else f'"{value}"'
            yield f"{column}={quoted}"
