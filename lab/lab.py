"""A whole lab: up, down, pods, commands, and what there is."""

import contextlib
import fcntl
import os
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec

from lab import certificates, network, node
from lab.commands import LabError, inside, replace_file
from lab.control import ControlPlane, Tunnel, daemons, kubernetes_binaries
from lab.daemons import Daemons, kill, processes_in
from lab.datapath import Datapath, default_datapath, load_module
from lab.layout import (
    CONTROL_ADDRESS,
    FABRIC_ADDRESS,
    MOST_NODES,
    OUTSIDE_ADDRESS,
    Layout,
    NodeLayout,
)
from lab.pods import Pod, Pods

SourceKind = Literal["dir", "kube"]


class Report(Protocol):
    """Is told what a part of the lab (`node1`, `control`, ...) does now, and when it is done."""

    def __call__(self, part: str, doing: str, *, done: bool = False) -> None: ...


def quiet(part: str, doing: str, *, done: bool = False) -> None:
    """Report nothing."""


class State(msgspec.Struct, frozen=True):
    """What was asked for, as kept in lab.json."""

    nodes: int
    tunnel: Tunnel
    source: SourceKind
    binaries: Path | None = None
    tls: bool = False
    """Whether switches and agents speak to the controller by mutual TLS."""
    datapath: Datapath = "netdev"
    ready: bool = False
    """Whether it has been up as a whole."""


class Lab:
    """A cluster on this machine. Any number of them run side by side under different names.

    Every method raises `LabError`, whose text is for the user.
    """

    def __init__(self, name: str = "lab") -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces, and only root may do that: use sudo")
        try:
            self.layout = Layout(name)
        except ValueError as error:
            raise LabError(str(error)) from error
        self.name = name

    # Up and down

    def up(
        self,
        *,
        nodes: int | None = None,
        tunnel: Tunnel | None = None,
        source: SourceKind | None = None,
        tls: bool | None = None,
        datapath: Datapath | None = None,
        report: Report = quiet,
    ) -> bool:
        """Bring the lab up, and return once pods can be added; False if it was up already.

        None stands for 3 nodes, Geneve, a directory as source, plain TCP and `default_datapath`,
        or for what a running lab has. In a running lab, daemons that have died are started again.
        A lab that does not come up (also on KeyboardInterrupt) is taken down again.
        """
        asked = {
            "nodes": nodes, "tunnel": tunnel, "source": source, "tls": tls, "datapath": datapath,
        }  # fmt: skip
        with self._lock(exclusive=True, report=report):
            known = self._read_state()
            if known and known.ready:
                for what, wanted in asked.items():
                    if wanted not in (None, getattr(known, what)):
                        raise LabError(
                            f"lab {self.name} is already up with {what} {getattr(known, what)}, "
                            f"not {wanted}; take it down first: sluice lab down --name {self.name}"
                        )
                self._start(known, report)
                return False

            state = State(
                3 if nodes is None else nodes,
                tunnel or "geneve",
                source or "dir",
                tls=bool(tls),
                datapath=datapath or default_datapath(),
            )
            if not 1 <= state.nodes <= MOST_NODES:
                raise LabError(f"a lab has 1 to {MOST_NODES} nodes, not {state.nodes}")
            if state.source == "kube":
                state = msgspec.structs.replace(state, binaries=kubernetes_binaries())
            load_module(state.datapath)
            self._remove_all()  # of an `up` that was killed
            try:
                self.layout.directory.mkdir()
                self._write_state(state)
                self._start(state, report)
                self._write_state(msgspec.structs.replace(state, ready=True))
            except BaseException:
                report("lab", "taking everything down again")
                self._remove_all()
                raise
            return True

    def down(self, report: Report = quiet) -> bool:
        """Take down whatever there is of the lab; False if there was nothing."""
        with self._lock(exclusive=True, report=report):
            return self._remove_all()

    @contextlib.contextmanager
    def running(
        self,
        *,
        nodes: int | None = None,
        tunnel: Tunnel | None = None,
        source: SourceKind | None = None,
        tls: bool | None = None,
        datapath: Datapath | None = None,
        report: Report = quiet,
    ) -> Iterator["Lab"]:
        """`up`, and `down` at the end whatever happens."""
        self.up(
            nodes=nodes, tunnel=tunnel, source=source, tls=tls, datapath=datapath, report=report
        )
        try:
            yield self
        finally:
            self.down(report)

    def start_daemon(self, node_name: str, daemon: str) -> None:
        """Start a daemon of a node that has died, as its init system would, and do nothing else.

        `daemon` is one of those in `status`: ovsdb-server, ovs-vswitchd or agent.
        """
        state, it = self._state(), self._node(node_name)
        match daemon:
            case "ovsdb-server":
                node.start_database(it)
            case "ovs-vswitchd":
                node.start_vswitchd(it, state.datapath)
            case "agent":
                tls = certificates.files(self.layout, it.name) if state.tls else None
                node.start_agent(it, state.datapath, tls)
            case _:
                raise LabError(f"a node has no daemon {daemon!r}")

    def start_control(self) -> None:
        """The same for the controller, and for etcd and the API server where there are some."""
        state = self._state()
        daemons(self.layout).forget_ended()
        nodes = self.layout.nodes(state.nodes)
        self._control(state).start(nodes, lambda _: None, lambda: False)

    # Pods

    def pod_add(
        self, namespace: str, name: str, node: str, labels: Mapping[str, str] | None = None
    ) -> Pod:
        """Write a Pod, plug its sandbox in, and write its status, as kubelet and runtime do.

        Raises `CniError` if the plugin refuses; then nothing of the pod is left. May be called
        for different pods at the same time.
        """
        with self._lock(exclusive=False):
            if not self._state().ready:
                raise LabError(f"lab {self.name} has not come up; `sluice lab up` makes it anew")
            return self._pods().add(namespace, name, self._node(node), labels or {})

    def pod_del(self, namespace: str, name: str) -> None:
        """Undo `pod_add`. If the plugin refuses everything stays, to be tried again."""
        with self._lock(exclusive=False):
            pods = self._pods()
            pods.delete(pods.get(namespace, name))

    def pod(self, namespace: str, name: str) -> Pod:
        """One pod."""
        return self._pods().get(namespace, name)

    def pods(self) -> list[Pod]:
        """All pods, by namespace and name."""
        return self._pods().all()

    # Looking around

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a part of the lab.

        `where` is a pod's NAMESPACE/NAME, a node's name, or outside, control or fabric. In a node
        the tools of Open vSwitch find that node's switch; in control, kubectl finds the API server.
        """
        state = self._state()
        if "/" in where:
            return inside(self.pod(*where.split("/", 1)).netns, argv)
        if where == "control" and (binaries := self._control(state).binaries):
            kubectl = [
                f"PATH={binaries}:{os.environ.get('PATH', os.defpath)}",
                f"KUBECONFIG={self._control(state).kubeconfig}",
            ]
            return inside(self.layout.netns(where), ["env", *kubectl, *argv])
        if where in ("outside", "control", "fabric"):
            return inside(self.layout.netns(where), argv)
        for known in self.layout.nodes(state.nodes):
            if known.name == where:
                paths = {"OVS_RUNDIR": known.ovs_run, "OVS_DBDIR": known.directory}
                variables = [f"{name}={path}" for name, path in paths.items()]
                return inside(known.netns, ["env", *variables, *argv])
        raise LabError(
            f"lab {self.name} has no {where!r}: name a pod as NAMESPACE/NAME, a node "
            f"(node1 to node{state.nodes}), outside, control or fabric"
        )

    def exec(
        self,
        where: str,
        argv: Sequence[str],
        *,
        stdin: str | None = None,
        timeout: float = 60,
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end and capture its output; with `check`, `LabError` if it fails."""
        done = subprocess.run(
            self.command(where, argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            said = (done.stderr + done.stdout).strip()
            raise LabError(f"{where}: {' '.join(argv)}: exit code {done.returncode}: {said}")
        return done

    def kubectl(self, *arguments: str) -> list[str]:
        """The command line of a kubectl call by the administrator; needs an API server."""
        return self._control(self._state()).kubernetes.command(arguments)

    def ask(self, path: str) -> dict[str, Any] | None:
        """What the controller answers on its socket for local users; None if it does not."""
        return self._control(self._state()).ask(path)

    def status(self) -> dict[str, Any]:
        """Everything there is, in the form of `sluice lab status --json`."""
        state = self._state()
        control = daemons(self.layout)
        pids = control.pids()
        nodes = {n.name: _describe(n) for n in self.layout.nodes(state.nodes)}
        node_pids = [pid for node in nodes.values() for pid in node["pids"].values()]
        asked = self._control(state).status()
        described = {
            "name": self.name,
            "ready": state.ready and None not in [pids.get("controller"), *node_pids],
            "tunnel": state.tunnel,
            "source": state.source,
            "tls": state.tls,
            "datapath": state.datapath,
            "directory": str(self.layout.directory),
            "api_socket": str(self.layout.api_socket),
            "controller": {
                "pid": pids.get("controller"),
                "namespace": control.netns,
                "address": str(CONTROL_ADDRESS),
                "log": str(control.log("controller")),
            },
            "nodes": nodes,
            "problems": asked["problems"] if asked else {},
            "pods": {pod.key: pod.describe() for pod in self.pods()},
            "outside": self._place("outside", str(OUTSIDE_ADDRESS)),
            "control": self._place("control", str(CONTROL_ADDRESS))
            | {"pids": pids, "log_dir": str(control.directory)},
            "fabric": self._place("fabric", str(FABRIC_ADDRESS)) | {"bridge": network.BRIDGE},
        }
        if state.source == "kube":
            described["kubeconfig"] = str(self._control(state).kubeconfig)
        return described

    # Within

    def _start(self, state: State, report: Report) -> None:
        """Start whatever does not run. Control plane and nodes at the same time."""
        nodes = self.layout.nodes(state.nodes)
        plane = self._control(state)
        cancelled = threading.Event()
        self.layout.pods.mkdir(exist_ok=True)
        if state.tls:
            certificates.issue(self.layout, nodes)
        report("fabric", "connecting the namespaces")
        network.connect(self.layout, nodes, state.datapath)
        report("fabric", f"connects {len(nodes)} nodes", done=True)

        def start_control() -> None:
            daemons(self.layout).forget_ended()
            plane.start(nodes, lambda doing: report("control", doing), cancelled.is_set)
            report("control", "the controller listens", done=True)

        def start_node(it: NodeLayout, control: Future[None]) -> None:
            report(it.name, "starting Open vSwitch")
            node.daemons(it).forget_ended()
            node.start_switch(it, nodes, state.datapath)
            report(it.name, "waiting for the controller")
            control.result()
            report(it.name, "starting the agent")
            tls = certificates.files(self.layout, it.name) if state.tls else None
            node.start_agent(it, state.datapath, tls)
            node.wait_ready(it, daemons(self.layout), cancelled.is_set)
            report(it.name, "is ready", done=True)

        with ThreadPoolExecutor(max_workers=8) as pool:
            control = pool.submit(start_control)
            started = [pool.submit(start_node, it, control) for it in nodes]
            try:
                for future in as_completed([control, *started]):
                    future.result()
            except BaseException:
                cancelled.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        # A switch that dials again after an outage may take its time.
        if not daemons(self.layout).wait(plane.in_sync, timeout=30):
            raise LabError(f"not every switch holds its flows after 30 s: {plane.status()}")

    def _remove_all(self) -> bool:
        """Remove everything that carries the lab's name, found by looking rather than by memory."""
        names = network.namespaces(self.layout.prefix)
        found = bool(names) or self.layout.directory.exists()
        # More than once, because what is being killed may be just starting something.
        while pids := processes_in(names):
            kill(pids)
        recorded = {
            pid
            for directory in self.layout.directory.glob("**/log")
            for pid in Daemons("", directory).pids().values()
        }
        kill(recorded)
        for name in names:
            network.delete_namespace(name)
        for mount in _mounts_below(self.layout.directory):
            subprocess.run(["umount", "--lazy", mount], check=False)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.layout.directory)
        return found

    @contextlib.contextmanager
    def _lock(self, *, exclusive: bool, report: Report = quiet) -> Iterator[None]:
        """One `up` or `down` of a lab at a time, and none while a pod is plugged in or out."""
        path = self.layout.lock
        kind = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
        while True:
            if not exclusive:
                self._state()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = path.open("a")
            except FileNotFoundError:  # the last lab's end has just removed the folder
                continue
            with lock:
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    report("lab", f"waiting for another command on lab {self.name}")
                    fcntl.flock(lock, kind)
                # Whoever held it before may have removed it: then it keeps nobody else out.
                if not _is_same_file(lock.fileno(), path):
                    continue
                try:
                    yield
                finally:
                    if not self.layout.directory.exists():
                        path.unlink(missing_ok=True)
                        for folder in (path.parent, path.parent.parent):
                            with contextlib.suppress(OSError):  # other labs are in it
                                folder.rmdir()
                return

    def _read_state(self) -> State | None:
        try:
            return msgspec.json.decode(
                self.layout.state.read_bytes(), type=State, dec_hook=lambda kind, value: kind(value)
            )
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _write_state(self, state: State) -> None:
        replace_file(self.layout.state, msgspec.json.encode(state, enc_hook=str).decode())

    def _state(self) -> State:
        state = self._read_state()
        if state is None:
            raise LabError(
                f"no lab {self.name} is up; `sluice lab up --name {self.name}` makes one"
            )
        return state

    def _control(self, state: State) -> ControlPlane:
        tls = certificates.files(self.layout, certificates.CONTROLLER) if state.tls else None
        return ControlPlane(self.layout, state.tunnel, state.binaries, tls)

    def _pods(self) -> Pods:
        return Pods(self.layout, self._control(self._state()).source)

    def _node(self, name: str) -> NodeLayout:
        nodes = self._state().nodes
        for known in self.layout.nodes(nodes):
            if known.name == name:
                return known
        raise LabError(f"lab {self.name} has no node {name!r}, only node1 to node{nodes}")

    def _place(self, role: str, address: str) -> dict[str, Any]:
        return {"namespace": self.layout.netns(role), "address": address}


def _describe(it: NodeLayout) -> dict[str, Any]:
    pids = node.daemons(it).pids()
    return {
        "namespace": it.netns,
        "address": str(it.address),
        "pod_cidr": str(it.pod_cidr),
        "pids": {name: pids.get(name) for name in ("ovsdb-server", "ovs-vswitchd", "agent")},
        "ovs_run": str(it.ovs_run),
        "ovsdb": str(it.ovsdb),
        "mgmt": str(it.mgmt),
        "cni_socket": str(it.cni_socket),
        "cni_conf": str(it.cni_conf),
        "cni_bin": str(it.cni_bin),
        "log_dir": str(it.logs),
    }


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _mounts_below(directory: Path) -> list[str]:
    """Mount points in a directory, innermost first (proc(5), mountinfo, field 5)."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    decoded = [re.sub(r"\\(\d{3})", lambda code: chr(int(code[1], 8)), p) for p in points]
    return sorted((p for p in decoded if p.startswith(f"{directory}/")), reverse=True)
