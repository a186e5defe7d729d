"""Starting a lab: all parts that do not run, the control plane and the nodes at the same time."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial

from lab import certificates, leaves, machine, network, node
from lab.cluster import KubeletCluster
from lab.commands import LabError
from lab.control import ControlPlane, daemons
from lab.daemons import Daemons
from lab.layout import ControllerLayout, LabLayout, NodeLayout
from lab.spec import Report, Spec


@dataclass(frozen=True)
class Bringup:
    """One lab that is being started. Every method raises `LabError`."""

    layout: LabLayout
    spec: Spec
    plane: ControlPlane
    report: Report
    _cancelled: threading.Event = field(default_factory=threading.Event)

    @property
    def nodes(self) -> tuple[NodeLayout, ...]:
        return self.layout.nodes(self.spec.nodes)

    def start(self) -> None:
        """Start everything; return once it works."""
        self.layout.pods.mkdir(exist_ok=True)
        if self.spec.tls:
            certificates.issue(self.layout, self.plane.places, self.nodes)
        self.report("fabric", "connecting the namespaces")
        self._connect()
        self.report("fabric", f"connects {len(self.nodes)} nodes", done=True)
        with ThreadPoolExecutor(max_workers=8) as pool:
            control = pool.submit(self.start_control)
            started = [pool.submit(self.start_node, it, control) for it in self.nodes]
            try:
                for future in as_completed([control, *started]):
                    future.result()
            except BaseException:
                self._cancelled.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        # A switch connects again some seconds after an outage.
        first, *_ = self._control_daemons
        if self.spec.sluice and not first.wait(self.plane.in_sync, timeout=30):
            raise LabError(f"not every switch holds its flows after 30 s: {self.plane.status()}")

    def start_control(self) -> None:
        """Start the control plane; return once it listens."""
        for each in self._control_daemons:
            each.forget_ended()
        report = partial(self.report, "control")
        if self.spec.sluice:
            self.plane.start(self.nodes, report, self._cancelled.is_set)
            if self.spec.fabric == "bgp":
                for peer in leaves.peers(self.layout):
                    self.plane.source.apply(peer)
        else:
            self.plane.start_api(report)
        if cluster := self._cluster:
            cluster.start_dns()
        self.report("control", "the control plane listens", done=True)

    def start_node(self, it: NodeLayout, control: Future[None] | None = None) -> None:
        """Start a node; what needs the control plane waits until `control` is done."""
        report, cluster = partial(self.report, it.name), self._cluster
        node.daemons(it).forget_ended()
        if cluster:
            machine.create(it)
        report("starting Open vSwitch")
        node.start_switch(it, self.nodes, self.spec.datapath)
        if cluster:
            report("starting containerd")
            cluster.start_runtime(it)
        report("waiting for the control plane")
        if control:
            control.result()
        if cluster:
            report("starting kubelet")
            cluster.start_kubelet(it)
        if self.spec.sluice:
            report("starting the agent")
            self._start_agent(it)
            node.wait_ready(it, self._control_daemons, self._cancelled.is_set)
        if cluster:
            report("waiting for its Node to be Ready")
            cluster.wait_for_node(it, ready=self.spec.sluice, cancelled=self._cancelled.is_set)
        report("is ready", done=True)

    def start_again(self, it: NodeLayout) -> None:
        """Start a node whose namespaces are gone, beside a control plane that runs."""
        self._connect()
        self.start_node(it)

    def start_daemon(self, it: NodeLayout, daemon: str) -> None:
        """Start one daemon of a node, as its init system would."""
        cluster = self._cluster
        # Another daemon that has ended must not fail this start.
        node.daemons(it).forget_ended()
        match daemon:
            case "ovsdb-server":
                node.start_database(it)
            case "ovs-vswitchd":
                node.start_vswitchd(it, self.spec.datapath)
            case "agent":
                self._start_agent(it)
            case "containerd" if cluster:
                cluster.start_runtime(it)
            case "kubelet" if cluster:
                cluster.start_kubelet(it)
            case _:
                raise LabError(f"a node has no daemon {daemon!r}")

    def start_control_daemon(self, place: ControllerLayout, daemon: str) -> None:
        """Start one daemon of the control plane, and only that; an API server with its etcd."""
        daemons(place).forget_ended()
        match daemon:
            case "controller" if self.spec.sluice:
                self.plane.start_controller(place)
            case "etcd" | "kube-apiserver" if place == self.plane.places[0]:
                self.plane.start_api(partial(self.report, "control"))
            case _:
                raise LabError(f"{place.name} has no daemon {daemon!r}")

    def _connect(self) -> None:
        number = self.spec.controllers
        is_bgp = self.spec.fabric == "bgp"
        network.connect(
            self.layout, self.nodes, self.spec.datapath, controllers=number, routes=not is_bgp
        )
        if is_bgp:
            leaves.connect(self.layout)
            leaves.start(self.layout)

    def _start_agent(self, it: NodeLayout) -> None:
        tls = certificates.files(self.layout, it.name) if self.spec.tls else None
        node.start_agent(it, self.plane.places, self.spec.datapath, tls)

    @property
    def _control_daemons(self) -> list[Daemons]:
        return [daemons(place) for place in self.plane.places]

    @property
    def _cluster(self) -> KubeletCluster | None:
        return KubeletCluster(self.plane, self.spec.images) if self.spec.images else None
