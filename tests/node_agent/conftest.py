"""A node of one's own: a network namespace with Open vSwitch, the agent, and a controller.

The controller is a stand-in that says what the test tells it to say. It speaks just enough
OpenFlow to admit the ports that Open vSwitch announces.
"""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, closing, contextmanager
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from ssl import SSLContext
from typing import Any

import pytest
import yaml
from aiohttp import web
from pyroute2 import netns

from flows import names
from flows.features.classify import attachment_classifier_flow, gateway_classifier_flow
from lab.patience import PATIENCE
from tests.waiting import wait_until
from wire.documents import (
    NodeAddresses,
    NodeConfig,
    NodeProblems,
    NodeServices,
    PeerRoutes,
    decode_addresses,
    decode_problems,
    encode,
)

ROOT = Path(__file__).parents[2]
SHIM = ROOT / "cni" / "sluice_cni.py"
NODE = "node1"
ADDRESS = IPv4Address("172.30.0.1")
CONFIG = NodeConfig(
    node=NODE,
    uid="d5b2a1de-0000-4000-8000-000000000001",
    address=ADDRESS,
    pod_cidr=IPv4Network("10.99.1.0/24"),
    pod_range=IPv4Network("10.99.0.0/16"),
    service_range=IPv4Network("10.98.0.0/16"),
    host_ranges=(),
    tunnel="geneve",
    tunnel_id=7,
    tunnel_port=6081,
    revision="1",
)

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="makes network namespaces")


def run(*command: str, check: bool = True, **options: Any) -> str:
    """A program's output."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    if check and done.returncode:
        raise AssertionError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


class Controller:
    """Serves the node's configuration, and admits every port that the switch announces."""

    def __init__(self) -> None:
        self.answer: tuple[int, bytes] = (200, encode(CONFIG))
        self.services = NodeServices(NODE, (), (), (), "0")
        self.routes = PeerRoutes((), "0")
        self.admits = True
        self.delay = 0.0
        self.requests = 0
        self.problems = NodeProblems()
        """What the agent has told last."""
        self.addresses: NodeAddresses | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._servers: list[Any] = []
        self._runner: web.AppRunner | None = None
        self._api_socket: socket.socket | None = None

    async def start(
        self, api: socket.socket, openflow: socket.socket, tls: SSLContext | None = None
    ) -> None:
        app = web.Application()
        app.router.add_get("/v1/nodes/{node}/config", self._config)
        app.router.add_get("/v1/nodes/{node}/services", self._services)
        app.router.add_get("/v1/nodes/{node}/routes", self._routes)
        app.router.add_post("/v1/nodes/{node}/problems", self._problems)
        app.router.add_post("/v1/nodes/{node}/addresses", self._addresses)
        self._runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.SockSite(self._runner, api, ssl_context=tls).start()
        self._servers = [await asyncio.start_server(self._switch, sock=openflow, ssl=tls)]

    async def stop(self) -> None:
        for server in self._servers:
            server.close()
        for writer in self._writers:
            writer.close()
        self._servers = []
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None
            # Under TLS a transport is closed a little later than it is told to.
            await asyncio.sleep(0.2)

    def say(self, config: NodeConfig) -> None:
        self.answer = (200, encode(config))

    def refuse(self, status: int, why: str) -> None:
        self.answer = (status, json.dumps({"error": why}).encode())

    async def _config(self, request: web.Request) -> web.Response:
        self.requests += 1
        before = self.answer
        after = request.query.get("after")
        if after is not None and before[0] == 200 and json.loads(before[1])["revision"] == after:
            for _ in range(50):
                await asyncio.sleep(0.02)
                if self.answer != before:
                    break
            else:
                return web.Response(status=304)
        status, body = self.answer
        return web.Response(status=status, body=body, content_type="application/json")

    async def _services(self, request: web.Request) -> web.Response:
        return await self._poll(request, lambda: self.services)

    async def _routes(self, request: web.Request) -> web.Response:
        return await self._poll(request, lambda: self.routes)

    async def _poll(
        self, request: web.Request, document: Callable[[], NodeServices | PeerRoutes]
    ) -> web.Response:
        for _ in range(50):
            if request.query.get("after") != document().revision:
                body = encode(document())
                return web.Response(body=body, content_type="application/json")
            await asyncio.sleep(0.02)
        return web.Response(status=304)

    async def _addresses(self, request: web.Request) -> web.Response:
        self.addresses = decode_addresses(await request.read())
        return web.Response(status=204)

    async def _problems(self, request: web.Request) -> web.Response:
        self.problems = decode_problems(await request.read())
        return web.Response(status=204)

    async def _switch(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)
        writer.write(_message(0, b""))
        # Asynchronous messages come to a service connection only after this.
        writer.write(_message(9, struct.pack("!HH", 0, 128)))
        writer.write(_message(14, flow_mod(gateway_classifier_flow().cookie, names.GATEWAY_OFPORT)))
        try:
            while True:
                version, kind, length, xid = struct.unpack("!BBHI", await reader.readexactly(8))
                body = await reader.readexactly(length - 8)
                if kind == 2:
                    writer.write(_message(3, body, xid))
                elif kind == 12 and version == 6 and body[0] in (0, 2):
                    await self._port(writer, body[8:])
        except (asyncio.IncompleteReadError, ConnectionError):
            pass

    async def _port(self, writer: asyncio.StreamWriter, port: bytes) -> None:
        ofport = int.from_bytes(port[:4], "big")
        name = port[16:32].rstrip(b"\0").decode()
        if self.admits and names.is_attachment_port(name):
            if self.delay:
                await asyncio.sleep(self.delay)
            cookie = attachment_classifier_flow(ofport, names.attachment_tag(name)).cookie
            writer.write(_message(14, flow_mod(cookie, ofport)))


def _message(kind: int, body: bytes, xid: int = 1) -> bytes:
    return struct.pack("!BBHI", 6, kind, 8 + len(body), xid) + body


def flow_mod(cookie: int, ofport: int) -> bytes:
    """An OpenFlow 1.5 FLOW_MOD that adds a flow for in_port to table 0, and drops."""
    return struct.pack(
        "!QQBBHHHIIIHH", cookie, 0, 0, 0, 0, 0, 400, 0xFFFFFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0, 0
    ) + struct.pack("!HHII4x", 1, 12, 0x80000004, ofport)


class ScratchNode:
    """One node; everything of it is below `home` and in its namespaces."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.name = f"sluice-agent-{uuid.uuid4().hex[:8]}"
        self.controller = Controller()
        self.socket = home / "run" / "cni.sock"
        self.config_file = home / "agent.yaml"
        self.settings: dict[str, Any] = {
            "node": NODE,
            "controllers": ["127.0.0.1"],
            "plainTcp": True,
            "datapath": "netdev",
            "state": str(home / "state"),
            "socket": str(self.socket),
            "ovsdb": str(home / "db.sock"),
            "ovsRun": str(home),
            "cniConf": str(home / "net.d"),
            "cniBin": str(home / "bin"),
            "addTimeout": 3.0,
            "statusGrace": 2.0,
            "quarantine": 30.0,
        }
        self._processes: list[subprocess.Popen[bytes]] = []
        self.agent: subprocess.Popen[bytes] | None = None
        self.vswitchd: subprocess.Popen[bytes] | None = None
        self.database: subprocess.Popen[bytes] | None = None
        self._pods: list[str] = []

    @property
    def inside(self) -> tuple[str, ...]:
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def netns(self) -> str:
        """A new network namespace for a pod; its path."""
        name = f"{self.name}-p{len(self._pods)}"
        run("ip", "netns", "add", name)
        self._pods.append(name)
        return f"/run/netns/{name}"

    def start_switch(self) -> None:
        run("ip", "netns", "add", self.name)
        self.run("ip", "link", "set", "lo", "up")
        self.run("ip", "link", "add", "uplink", "type", "veth", "peer", "wire")
        self.run("ip", "addr", "add", f"{ADDRESS}/24", "dev", "uplink")
        self.run("ip", "link", "set", "wire", "up")
        self.run("ip", "link", "set", "uplink", "mtu", "1500", "up")
        self._start_database()
        self.start_vswitchd()

    def _start_database(self) -> None:
        if not (self.home / "conf.db").exists():
            run("ovsdb-tool", "create", str(self.home / "conf.db"),
                "/usr/share/openvswitch/vswitch.ovsschema")  # fmt: skip
        self.database = self._start(
            "ovsdb-server", str(self.home / "conf.db"), f"--remote=punix:{self.home}/db.sock",
            f"--unixctl={self.home}/ovsdb.ctl", "--no-chdir",
        )  # fmt: skip
        wait_until((self.home / "db.sock").exists)
        self.vsctl("--no-wait", "init")

    def lose_database(self) -> None:
        """ovsdb-server comes back with an empty database."""
        assert self.database is not None
        self.database.terminate()
        self.database.wait(10)
        (self.home / "conf.db").unlink()
        self._start_database()

    def reboot(self) -> None:
        """What is on disk is left: OVSDB, the agent's state, the CNI files. No pod is."""
        for process in self._processes:
            process.kill()
            process.wait(timeout=60)
        for name in (*self._pods, self.name):
            run("ip", "netns", "del", name)
        self._pods.clear()
        shutil.rmtree(self.socket.parent)
        for path in (
            *self.home.glob("*.sock"),
            *self.home.glob("*.mgmt"),
            *self.home.glob("*.ctl"),
        ):
            path.unlink()
        self.start_switch()

    def start_vswitchd(self) -> None:
        self.vswitchd = self._start(
            "ovs-vswitchd", f"unix:{self.home}/db.sock", f"--pidfile={self.home}/ovs-vswitchd.pid",
            f"--log-file={self.home}/vswitchd.log", "-vconsole:off", "--no-chdir",
            env={**os.environ, "OVS_RUNDIR": str(self.home)},
        )  # fmt: skip

    def stop_vswitchd(self) -> None:
        assert self.vswitchd is not None
        self.vswitchd.terminate()
        self.vswitchd.wait(10)

    def start_agent(self, **changes: Any) -> None:
        self.settings |= changes
        self.config_file.write_text(yaml.safe_dump({"agent": self.settings, "logLevel": "debug"}))
        with (self.home / "agent.log").open("ab") as stream:
            self.agent = self._start(
                sys.executable, "-X", "dev", "-W", "error::ResourceWarning",
                "-m", "node_agent", "--config", str(self.config_file),
                stdout=stream, stderr=stream, cwd=ROOT,
            )  # fmt: skip

    def stop_agent(self, *, kill: bool = False) -> int:
        assert self.agent is not None
        if kill:
            self.agent.kill()
        else:
            self.agent.terminate()
        return self.agent.wait(10)

    def log(self) -> str:
        return (self.home / "agent.log").read_text()

    def run(self, *command: str, check: bool = True) -> str:
        return run(*self.inside, *command, check=check)

    @contextmanager
    def frozen(self, process: subprocess.Popen[bytes] | None) -> Iterator[None]:
        """While a daemon keeps its connections and answers nothing."""
        assert process is not None
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)

    @contextmanager
    def locked_lease_file(self) -> Iterator[None]:
        """While somebody else writes to it."""
        with closing(sqlite3.connect(self.leases, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")

    @property
    def leases(self) -> Path:
        return self.home / "state" / "leases.sqlite"

    def file(self, path: str) -> bytes:
        return (self.home / path).read_bytes()

    def mode(self, path: str) -> int:
        return (self.home / path).stat().st_mode & 0o777

    def inode(self, path: str) -> int:
        return (self.home / path).stat().st_ino

    def vsctl(self, *arguments: str) -> str:
        return run(
            "ovs-vsctl", f"--db=unix:{self.home}/db.sock", "--retry", "--timeout=60", *arguments
        ).strip()

    def flows(self) -> str:
        return run("ovs-ofctl", "-O", "OpenFlow15", "dump-flows", f"unix:{self.home}/br-int.mgmt")

    def listen(self, port: int) -> socket.socket:
        """A listening TCP socket inside the node."""
        made: list[socket.socket] = []

        def make() -> None:
            netns.setns(f"/run/netns/{self.name}")
            one = socket.socket()
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", port))
            one.listen(64)
            one.setblocking(False)
            made.append(one)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join(timeout=60)
        return made[0]

    async def start_controller(self, tls: SSLContext | None = None) -> None:
        await self.controller.start(self.listen(6654), self.listen(6653), tls)

    async def cni(
        self, command: str, *, args: dict[str, str] | None = None, conf: Any = None, **env: str
    ) -> tuple[int, dict[str, Any]]:
        """One call by the shim: its exit code and what it printed."""
        stdin = {"cniVersion": "1.1.0", "name": "sluice", "type": "sluice",
                 "socket": str(self.socket), **(conf or {})}  # fmt: skip
        environment = {f"CNI_{key}": value for key, value in env.items()}
        if args is not None:
            environment["CNI_ARGS"] = ";".join(f"{k}={v}" for k, v in args.items())
        process = await asyncio.create_subprocess_exec(
            str(SHIM),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env={"CNI_COMMAND": command, "PATH": os.environ["PATH"], **environment},
        )
        output, _ = await process.communicate(json.dumps(stdin).encode())
        assert process.returncode is not None
        return process.returncode, json.loads(output) if output else {}

    async def add(
        self, name: str, netns: str, *, ifname: str = "eth0", **conf: Any
    ) -> tuple[int, dict[str, Any]]:
        """ADD for the pod default/NAME, whose sandbox is `sandbox-NAME`."""
        return await self.cni("ADD", **self.attachment(name, netns, ifname), conf=conf)

    def attachment(self, name: str, netns: str, ifname: str = "eth0") -> dict[str, Any]:
        """The arguments of `cni` that name one attachment."""
        return {
            "CONTAINERID": f"sandbox-{name}",
            "NETNS": netns,
            "IFNAME": ifname,
            "args": {
                "IgnoreUnknown": "1",
                "K8S_POD_NAMESPACE": "default",
                "K8S_POD_NAME": name,
                "K8S_POD_UID": f"uid-{name}",
            },
        }

    def left_over(self) -> dict[str, Any]:
        """What is there of any attachment; all of it empty when all pods are gone."""
        ports = self.vsctl("list-ports", names.INTEGRATION_BRIDGE).split()
        return {**self.left_over_beside_ports(), "ports": [*filter(_is_attachment, ports)]}

    def left_over_beside_ports(self) -> dict[str, Any]:
        """The same without asking ovsdb-server."""
        with closing(sqlite3.connect(self.leases)) as database:
            leases = database.execute("SELECT container_id FROM lease").fetchall()
        links = [link["ifname"] for link in json.loads(self.run("ip", "-j", "link"))]
        chains = re.findall(r"chain (\S+)", self.run("nft", "list", "ruleset"))
        return {
            "leases": leases,
            "links": [*filter(_is_attachment, links)],
            "chains": [*filter(_is_attachment, chains)],
        }

    async def until_ready(self) -> None:
        """Wait for the conf file, as a runtime does."""
        await until((self.home / "net.d" / "10-sluice.conflist").exists, self.log)

    def close(self) -> None:
        for process in reversed(self._processes):
            if process.poll() is None:
                process.terminate()
        for process in self._processes:
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait(timeout=60)
        for name in (*self._pods, self.name):
            run("ip", "netns", "del", name, check=False)

    def _start(self, *command: str, **options: Any) -> subprocess.Popen[bytes]:
        options.setdefault("stdout", subprocess.DEVNULL)
        options.setdefault("stderr", subprocess.DEVNULL)
        process = subprocess.Popen([*self.inside, *command], **options)
        self._processes.append(process)
        return process


_is_attachment = names.is_attachment_port

NOTHING_LEFT: dict[str, list[str]] = {"leases": [], "ports": [], "links": [], "chains": []}


@asynccontextmanager
async def controlled(node: ScratchNode, **changes: Any) -> AsyncIterator[Controller]:
    """The node with its controller and its agent running, and ready for pods."""
    await node.start_controller()
    try:
        node.start_agent(**changes)
        await node.until_ready()
        yield node.controller
    finally:
        await node.controller.stop()


async def until(
    condition: Callable[[], bool | Awaitable[bool]],
    explain: Callable[[], str] = lambda: "",
    seconds: float = 60,
) -> None:
    """Wait for something that has no event to wait for."""
    end = time.monotonic() + seconds * PATIENCE
    while True:
        happened = condition()
        if not isinstance(happened, bool):
            happened = await happened
        if happened:
            return
        assert time.monotonic() < end, f"not in time\n{explain()}"
        await asyncio.sleep(0.02)


def check_gateway(node: ScratchNode) -> None:
    (link,) = json.loads(node.run("ip", "-j", "addr", "show", "dev", "sluice-gw"))
    assert link["address"] == names.GATEWAY_MAC
    assert link["mtu"] == 1450
    assert "UP" in link["flags"]
    assert [(a["local"], a["prefixlen"]) for a in link["addr_info"]] == [("10.99.1.1", 32)]
    routes = json.loads(node.run("ip", "-j", "route", "show", "dev", "sluice-gw"))
    assert {route["dst"] for route in routes} == {
        "10.98.0.0/16",
        "10.99.0.0/16",
        "169.254.1.2/31",
        "169.254.1.16/28",
    }
    assert {(r["gateway"], r["prefsrc"], *r["flags"]) for r in routes} == {
        ("169.254.1.1", "10.99.1.1", "onlink")
    }
    (neighbour,) = json.loads(node.run("ip", "-j", "neigh", "show", "dev", "sluice-gw"))
    assert (neighbour["lladdr"], neighbour["state"]) == (names.ROUTER_MAC, ["PERMANENT"])


@pytest.fixture
def scratch() -> Iterator[ScratchNode]:
    # Paths of unix sockets are short.
    home = Path("/tmp") / f"sluice-agent-{uuid.uuid4().hex[:8]}"  # noqa: S108
    home.mkdir(mode=0o700)
    node = ScratchNode(home)
    try:
        node.start_switch()
        yield node
    finally:
        node.close()
        shutil.rmtree(home)
