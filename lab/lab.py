"""A whole lab: start, stop, pods, commands and status."""

import contextlib
import dataclasses
import fcntl
import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import msgspec

from lab import cluster, leaves, machine, network, node
from lab.bringup import Bringup
from lab.commands import LabError, complete, inside, lock_file, replace_file
from lab.control import ControlPlane, daemons
from lab.daemons import Daemons, kill, kill_all, processes_in
from lab.datapath import load_module
from lab.layout import (
    FABRIC_ADDRESS,
    OUTSIDE_ADDRESS,
    ControllerLayout,
    LabLayout,
    NodeLayout,
)
from lab.patience import PATIENCE
from lab.pods import LabPod, LabPods
from lab.sources import ClusterSource
from lab.spec import Options, Report, Spec, new_spec, quiet, with_programs


class Lab:
    """A cluster on this machine. Any number of them run side by side under different names.

    Every method raises `LabError`, whose text is for the user.
    """

    def __init__(self, name: str = "lab") -> None:
        if os.geteuid() != 0:
            raise LabError("the lab makes network namespaces, and only root may do that: use sudo")
        try:
            self._layout = LabLayout(name)
        except ValueError as error:
            raise LabError(str(error)) from error
        self.name = name

    @property
    def layout(self) -> LabLayout:
        """Its names, addresses and paths. The addresses of nodes are known once it is up."""
        known = self._read_spec()
        return dataclasses.replace(self._layout, subnets=known.subnets) if known else self._layout

    # Up and down

    def up(self, *, report: Report = quiet, **asked: Unpack[Options]) -> bool:
        """Bring the lab up, and return once pods can be added; False if it was up already.

        What is left out or None is as in `Spec`, or as a running lab has it. Without `sluice` no
        pod can be added before somebody has deployed it. In a running lab, daemons that have died
        are started again. A lab that does not come up (also on KeyboardInterrupt) is taken down
        again.
        """
        wanted = {name: value for name, value in asked.items() if value is not None}
        with self._lock(exclusive=True, report=report):
            known = self._read_spec()
            if known and known.ready:
                for what, value in wanted.items():
                    if value != getattr(known, what):
                        raise LabError(
                            f"lab {self.name} is already up with {what} {getattr(known, what)}, "
                            f"not {value}; take it down first: sluice lab down --name {self.name}"
                        )
                self._bringup(known, report).start()
                return False

            spec = with_programs(new_spec(wanted), report)
            load_module(spec.datapath)
            self._remove_all()  # what an `up` that was killed left
            try:
                self.layout.directory.mkdir()
                self._write_spec(spec)
                self._bringup(spec, report).start()
                self._write_spec(msgspec.structs.replace(spec, ready=True))
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
    def running(self, *, report: Report = quiet, **asked: Unpack[Options]) -> Iterator["Lab"]:
        """`up`, and `down` at the end whatever happens."""
        self.up(report=report, **asked)
        try:
            yield self
        finally:
            self.down(report)

    def kill_daemon(self, where: str, daemon: str) -> None:
        """SIGKILL a daemon of a node, or of `control` or another controller's namespace.

        Returns when the whole process has ended.
        """
        place = self._place_of_controller(where)
        (daemons(place) if place else node.daemons(self._node(where))).kill(daemon)

    def start_daemon(self, where: str, daemon: str) -> None:
        """Start a daemon that has ended, as its init system would, and nothing else.

        `daemon` is one of those in `status`: of a node ovsdb-server, ovs-vswitchd, agent, or in a
        cluster of kubelets containerd or kubelet; of the control plane controller, etcd or
        kube-apiserver (with its etcd). Raises `LabError` with the end of its log if it ends
        instead of starting.
        """
        bringup = self._bringup(self._spec())
        if place := self._place_of_controller(where):
            bringup.start_control_daemon(place, daemon)
        else:
            bringup.start_daemon(self._node(where), daemon)

    def start_control(self) -> None:
        """The same for all controllers, and the API server where there is one."""
        self._bringup(self._spec()).start_control()

    def reboot(self, node_name: str, report: Report = quiet) -> None:
        """Kill all processes of a node, remove its namespaces, and start it again.

        Its disk stays. Only in a lab with kubelets, which start the pods again.
        """
        with self._lock(exclusive=True, report=report):
            spec, it = self._spec(), self._node(node_name)
            if not spec.kubelets:
                raise LabError(f"lab {self.name} has no kubelets, so its pods would not come back")
            report(it.name, "pulling the plug")
            kill_all(lambda: processes_in([it.netns]) | machine.processes(it.cgroup))
            machine.remove(it)
            network.disconnect(self.layout, it)
            self._bringup(spec, report).start_again(it)

    # Pods

    def pod_add(
        self,
        namespace: str,
        name: str,
        node: str,
        labels: Mapping[str, str] | None = None,
        *,
        port_mappings: Iterable[Mapping[str, Any]] = (),
    ) -> LabPod:
        """Write a Pod, plug its sandbox in, and write its status, as kubelet and runtime do.

        `port_mappings` are its hostPorts as a runtime tells them to CNI: `hostPort`,
        `containerPort`, `protocol`, `hostIP`.

        Raises `CniError` if the plugin refuses; then nothing of the pod is left. May be called
        for different pods at the same time.
        """
        with self._lock(exclusive=False):
            if self._spec().kubelets:
                raise LabError(f"lab {self.name} runs pods: give them to kubectl")
            if not self._spec().ready:
                raise LabError(f"lab {self.name} has not come up; `sluice lab up` makes it anew")
            return self._pods().add(namespace, name, self._node(node), labels or {}, port_mappings)

    def pod_del(self, namespace: str, name: str) -> None:
        """Undo `pod_add`. If the plugin refuses everything stays, to be tried again."""
        with self._lock(exclusive=False):
            pods = self._pods()
            pods.delete(pods.get(namespace, name))

    def write_pods(self, namespace: str, names: Sequence[str], node: str) -> dict[str, str]:
        """Write Pods that nobody plugs in, at once; their uids by name. Needs an API server."""
        return self._control(self._spec()).kubernetes.add_pods(namespace, names, node)

    def apply(self, manifest: Mapping[str, Any]) -> None:
        """Have the cluster hold this object (not a Node or Pod), as `kubectl apply` does."""
        self._source().apply(manifest)

    def delete(self, kind: str, namespace: str, name: str) -> None:
        """Remove such an object; one that is not there is no error."""
        self._source().delete(kind, namespace, name)

    def pod(self, namespace: str, name: str) -> LabPod:
        """One pod."""
        return self._pods().get(namespace, name)

    def pods(self) -> list[LabPod]:
        """All pods, by namespace and name."""
        return self._pods().all()

    # Looking around

    def command(self, where: str, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in a part of the lab.

        `where` is a pod's NAMESPACE/NAME, a node's name, outside, fabric, or control or another
        controller's namespace. In a node the tools of Open vSwitch find that node's switch; beside
        a controller, kubectl finds the API server.
        """
        spec = self._spec()
        if "/" in where and spec.kubelets:
            return cluster.inside_pod(self.layout.nodes(spec.nodes), where, argv)
        if "/" in where:
            return inside(self.pod(*where.split("/", 1)).netns, argv)
        controllers = [place.name for place in self.layout.controllers(spec.controllers)]
        if where in controllers and (binaries := self._control(spec).binaries):
            kubectl = [
                f"PATH={binaries}:{os.environ.get('PATH', os.defpath)}",
                f"KUBECONFIG={self._control(spec).kubeconfig}",
            ]
            return inside(self.layout.netns(where), ["env", *kubectl, *argv])
        routers = leaves.NAMES if spec.fabric == "bgp" else ()
        if where in ("outside", "fabric", *routers, *controllers):
            return inside(self.layout.netns(where), argv)
        for known in self.layout.nodes(spec.nodes):
            if known.name == where:
                paths = {"OVS_RUNDIR": known.ovs_run, "OVS_DBDIR": known.directory}
                variables = [f"{name}={path}" for name, path in paths.items()]
                return inside(known.netns, machine.enter(known, ["env", *variables, *argv]))
        raise LabError(
            f"lab {self.name} has no {where!r}: name a pod as NAMESPACE/NAME, a node "
            f"(node1 to node{spec.nodes}), outside, fabric, {' or '.join(controllers)}"
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
        done = complete(self.command(where, argv), stdin=stdin or "", timeout=timeout * PATIENCE)
        if check and done.returncode:
            said = (done.stderr + done.stdout).strip()
            raise LabError(f"{where}: {' '.join(argv)}: exit code {done.returncode}: {said}")
        return done

    def kubectl(self, *arguments: str) -> list[str]:
        """The command line of a kubectl call by the administrator; needs an API server."""
        return self._control(self._spec()).kubernetes.command(arguments)

    def ended_daemons(self) -> list[str]:
        """The end of the log of each daemon that has ended, with a heading."""
        spec = self._spec()
        places = [
            *map(daemons, self.layout.controllers(spec.controllers)),
            *map(node.daemons, self.layout.nodes(spec.nodes)),
            *(each.daemons for each in leaves.leaves(self.layout)),
        ]
        return [place.tail(name) for place in places for name in place.ended()]

    def ask(self, path: str, *, controller: str | None = None) -> dict[str, Any] | None:
        """What the leader answers on its socket for local users; None if it does not.

        With `controller` (control, control2, ...) ask this one only, be it leader or standby.
        """
        return self._control(self._spec()).ask(path, controller=controller)

    def status(self) -> dict[str, Any]:
        """Everything there is, in the form of `sluice lab status --json`."""
        spec = self._spec()
        controllers = {
            place.name: _describe_controller(place) | {"leads": self._control(spec).leads(place)}
            for place in self.layout.controllers(spec.controllers)
        }
        first = controllers["control"]
        nodes = {n.name: _describe(n, spec) for n in self.layout.nodes(spec.nodes)}
        node_pids = [pid for node in nodes.values() for pid in node["pids"].values()]
        asked = self._control(spec).status()
        if spec.kubelets:  # assigned by the controller-manager
            for name, node in nodes.items():
                node["pod_cidr"] = (
                    (asked["nodes"].get(name) or {}).get("podCIDR") if asked else None
                )
        described = {
            "name": self.name,
            "ready": spec.ready
            and None not in node_pids
            and (all(each["pid"] for each in controllers.values()) or not spec.sluice),
            "tunnel": spec.tunnel,
            "mode": spec.mode,
            "source": spec.source,
            "tls": spec.tls,
            "datapath": spec.datapath,
            "kubelets": spec.kubelets,
            "sluice": spec.sluice,
            "directory": str(self.layout.directory),
            "api_socket": first["api_socket"],
            "controller": first,
            "controllers": controllers,
            "nodes": nodes,
            "problems": asked["problems"] if asked else {},
            "pods": {pod.key: pod.describe() for pod in self.pods()},
            "outside": self._place("outside", str(OUTSIDE_ADDRESS)),
            "control": {
                "namespace": first["namespace"],
                "address": first["address"],
                "pids": daemons(self.layout.controller(1)).pids(),
                "log_dir": str(self.layout.controller(1).logs),
            },
            "fabric": self._place("fabric", str(FABRIC_ADDRESS)) | {"bridge": network.BRIDGE},
        }
        if spec.source == "kube":
            described["kubeconfig"] = str(self._control(spec).kubeconfig)
        return described

    # Within

    def _remove_all(self) -> bool:
        """Remove everything that has the lab's name. It is searched for, not remembered."""
        names = network.namespaces(self.layout.prefix)
        found = bool(names) or self.layout.directory.exists()
        kill_all(lambda: processes_in(names) | machine.processes(self.layout.cgroup))
        recorded = {
            pid
            for directory in self.layout.directory.glob("**/log")
            for pid in Daemons("", directory).pids().values()
        }
        kill(recorded)
        for name in names:
            network.delete_namespace(name)
        for mount in _mounts_below(self.layout.directory):
            complete(["umount", "--lazy", mount])
        machine.forget(self.layout)
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
                self._spec()
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                lock = path.open("a")
            except FileNotFoundError:  # the end of another lab has just removed the folder
                continue
            with lock:
                try:
                    fcntl.flock(lock, kind | fcntl.LOCK_NB)
                except BlockingIOError:
                    report("lab", f"waiting for another command on lab {self.name}")
                    lock_file(lock, kind)
                # Whoever held it before may have removed it: then this lock excludes nobody.
                if not _is_same_file(lock.fileno(), path):
                    continue
                try:
                    yield
                finally:
                    if not self.layout.directory.exists():
                        path.unlink(missing_ok=True)
                        with contextlib.suppress(OSError):  # other labs are in it
                            path.parent.rmdir()
                return

    def _read_spec(self) -> Spec | None:
        try:
            return msgspec.json.decode(
                self._layout.spec.read_bytes(), type=Spec, dec_hook=lambda kind, value: kind(value)
            )
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def _write_spec(self, spec: Spec) -> None:
        replace_file(self._layout.spec, msgspec.json.encode(spec, enc_hook=str).decode())

    def _spec(self) -> Spec:
        spec = self._read_spec()
        if spec is None:
            raise LabError(
                f"no lab {self.name} is up; `sluice lab up --name {self.name}` makes one"
            )
        return spec

    def _bringup(self, spec: Spec, report: Report = quiet) -> Bringup:
        return Bringup(self.layout, spec, self._control(spec), report)

    def _control(self, spec: Spec) -> ControlPlane:
        return ControlPlane(
            self.layout,
            spec.tunnel,
            spec.binaries,
            spec.kubelets,
            spec.tls,
            spec.log_denials,
            spec.controllers,
            spec.mode,
        )

    def _pods(self) -> LabPods:
        return LabPods(self.layout, self._source())

    def _source(self) -> ClusterSource:
        return self._control(self._spec()).source

    def _node(self, name: str) -> NodeLayout:
        nodes = self._spec().nodes
        for known in self.layout.nodes(nodes):
            if known.name == name:
                return known
        raise LabError(f"lab {self.name} has no node {name!r}, only node1 to node{nodes}")

    def _place_of_controller(self, name: str) -> ControllerLayout | None:
        places = self.layout.controllers(self._spec().controllers)
        return next((place for place in places if place.name == name), None)

    def _place(self, role: str, address: str) -> dict[str, Any]:
        return {"namespace": self.layout.netns(role), "address": address}


def _describe_controller(place: ControllerLayout) -> dict[str, Any]:
    ours = daemons(place)
    return {
        "pid": ours.pid("controller"),
        "namespace": place.netns,
        "address": str(place.address),
        "log": str(ours.log("controller")),
        "api_socket": str(place.api_socket),
    }


def _describe(it: NodeLayout, spec: Spec) -> dict[str, Any]:
    pids = node.daemons(it).pids()
    expected = [
        *("ovsdb-server", "ovs-vswitchd"),
        *(["agent"] if spec.sluice else []),
        *(["containerd", "kubelet"] if spec.kubelets else []),
    ]
    return {
        "namespace": it.netns,
        "address": str(it.address),
        "pod_cidr": str(it.pod_cidr),
        "pids": {name: pids.get(name) for name in expected},
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
