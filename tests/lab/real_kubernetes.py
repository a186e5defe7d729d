"""A real kube-apiserver with etcd, without a lab, and a proxy before it that fails on demand."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import socket
from typing import Any

from pyroute2 import netns

from lab import apiserver
from lab.control import kubernetes_binaries
from lab.patience import PROGRAM_TIMEOUT
from tests.lab.kube import run_kubectl
from tests.namespaces import namespace

NETNS = f"sluice-kubernetes-{os.getpid()}"
ADDRESS = "10.99.0.2"
POST = """
import sys, urllib.request
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
with opener.open(sys.argv[1], sys.argv[2].encode()) as answer:
    print(answer.read().decode())
"""


class RealKubernetes:
    """etcd and kube-apiserver in a namespace of their own."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.binaries = kubernetes_binaries()
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.api: apiserver.RunningApiServer

    def start(self) -> None:
        """Start what does not run; returns when the API answers."""
        self.api = apiserver.start(
            netns=NETNS,
            directory=self.directory / "api",
            address=ADDRESS,
            service_range="10.96.0.0/16",
            binaries=self.binaries,
            spawn=self._spawn,
            logs=self.directory,
            timeout=180,
        )

    def _spawn(self, name: str, argv: Sequence[str]) -> int:
        with (self.directory / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(self._inside(*argv), stdout=log, stderr=log)
        self.processes[name] = process
        return process.pid

    def _inside(self, *argv: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{NETNS}", *argv]

    def kill(self, *names: str) -> None:
        for name in names:
            self.processes[name].send_signal(signal.SIGKILL)
            self.processes[name].wait(timeout=60)

    def kubectl(self, *arguments: str, manifest: Any = None) -> str:
        command = self._inside(
            str(self.binaries / "kubectl"), "--kubeconfig", str(self.api.kubeconfig),
            "--cache-dir", str(self.directory / "cache"), *arguments,
        )  # fmt: skip
        return run_kubectl(command, arguments, manifest)

    def add(self, *names: str) -> None:
        pods = [
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": name, "namespace": "default"},
                "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "none"}]},
            }
            for name in names
        ]
        self.kubectl("create", "-f", "-", manifest={"apiVersion": "v1", "kind": "List",
                                                    "items": pods})  # fmt: skip

    def remove(self, *names: str) -> None:
        self.kubectl("delete", "pod", "--force", "--grace-period=0", *names)

    def write_kubeconfig(self, path: Path, port: int) -> None:
        """The controller's, for a proxy on this port."""
        given = self.api.controller_kubeconfig.read_text()
        path.write_text(given.replace(self.api.url, f"https://127.0.0.1:{port}"))

    def pods(self) -> dict[str, str]:
        """Names and uids of what there is."""
        items = json.loads(self.kubectl("get", "pods", "-o", "json"))["items"]
        return {item["metadata"]["name"]: item["metadata"]["uid"] for item in items}

    def compact(self) -> None:
        """Have etcd forget all that was before now, by its HTTP gateway."""
        key = {"key": "AA=="}
        revision = self._etcd("range", key)["header"]["revision"]
        self._etcd("compaction", {"revision": revision, "physical": True})

    def _etcd(self, what: str, body: dict[str, Any]) -> Any:
        url = f"{apiserver.ETCD_CLIENTS}/v3/kv/{what}"
        command = self._inside(sys.executable, "-c", POST, url, json.dumps(body))
        return json.loads(
            subprocess.run(command, capture_output=True, check=True, timeout=PROGRAM_TIMEOUT).stdout
        )


@contextmanager
def running(directory: Path) -> Iterator[RealKubernetes]:
    """etcd and kube-apiserver, for as long as the context lasts."""
    made = RealKubernetes(directory)
    with namespace(NETNS, f"{ADDRESS}/24"):
        try:
            made.start()
            yield made
        finally:
            for process in made.processes.values():
                process.kill()
                process.wait(timeout=60)


def socket_inside() -> socket:
    """A TCP socket of the API server's namespace."""
    made: list[socket] = []

    def make() -> None:
        netns.setns(f"/run/netns/{NETNS}")
        made.append(socket())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join(timeout=60)
    made[0].setblocking(False)
    return made[0]


class Proxy:
    """Carries connections to the API server, until told otherwise."""

    def __init__(self) -> None:
        self.port = 0
        self.delay = 0.0
        """Seconds by which everything from the server comes late."""
        self.carries = asyncio.Event()
        """While it is not set, nothing from the server comes through, and nothing is closed."""
        self.carries.set()
        self.accepts = True
        self.connections = 0
        self._carried: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """End all connections, and refuse new ones until `accepts` is set again."""
        self.accepts = False
        self.reset()

    def reset(self) -> None:
        """End all connections."""
        for task in self._carried:
            task.cancel()

    async def stop(self) -> None:
        self.reset()
        await asyncio.gather(*self._carried, return_exceptions=True)

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._carried.add(task)
        try:
            if self.accepts:
                self.connections += 1
                await self._carry(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._carried.discard(task)
            writer.transport.abort()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream = socket_inside()
        try:
            await asyncio.get_running_loop().sock_connect(upstream, (ADDRESS, apiserver.PORT))
            far_reader, far_writer = await asyncio.open_connection(sock=upstream)
        except BaseException:
            upstream.close()
            raise
        asking = asyncio.create_task(_copy(reader, far_writer))
        try:
            while data := await far_reader.read(1 << 16):
                await asyncio.sleep(self.delay)
                await self.carries.wait()
                writer.write(data)
                await writer.drain()
        finally:
            asking.cancel()
            far_writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
