"""The control plane: Sluice's controllers, and etcd and kube-apiserver where those are wanted."""

import contextlib
import http
import http.client
import json
import os
import select
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab import apiserver, certificates
from lab.commands import LabError, complete
from lab.daemons import Daemons
from lab.layout import (
    API_PORT,
    CONTROL_ADDRESS,
    OPENFLOW_PORT,
    POD_RANGE,
    SERVICE_RANGE,
    ControllerLayout,
    LabLayout,
    NodeLayout,
)
from lab.patience import BUILD_TIMEOUT
from lab.programs import python, write_settings
from lab.sources import ClusterSource, DirectorySource, KubernetesSource
from settings import (
    ClusterSettings,
    Controller,
    Kubernetes,
    NetworkSettings,
    PolicySettings,
    Settings,
)

Tunnel = Literal["geneve", "vxlan"]
Mode = Literal["encap", "noEncap", "hybrid"]

BUILD_SCRIPT = Path(__file__).parents[1] / "scripts" / "kube-binaries"
ANSWER_TIMEOUT = 15.0
"""Seconds that a controller gets to answer."""
LEADER = "/v1/leader"
"""Where a controller says whether it leads."""


def daemons(place: ControllerLayout) -> Daemons:
    return Daemons(place.netns, place.logs)


def kubernetes_binaries(*, whole: bool = False) -> Path:
    """Where etcd, kube-apiserver and kubectl are; builds them (5 minutes) where they are not.

    With `whole`, also the rest of Kubernetes, and containerd. Raises `LabError`.
    """
    if not whole and (assets := os.environ.get("KUBEBUILDER_ASSETS")):
        return Path(assets)
    return built(*(["--cluster"] if whole else []))


def built(*options: str) -> Path:
    """Where `scripts/kube-binaries` has built that set of programs. Raises `LabError`."""
    command = [str(BUILD_SCRIPT), *options]
    built = complete(command, timeout=BUILD_TIMEOUT, show_errors=True)
    if built.returncode:
        raise LabError(f"{' '.join(command)} gave no Kubernetes binaries; see above")
    return Path(built.stdout.splitlines()[-1])


@dataclass(frozen=True)
class ControlPlane:
    """`binaries` is where Kubernetes' programs are; None for a cluster out of a directory."""

    layout: LabLayout
    tunnel: Tunnel
    binaries: Path | None
    kubelets: bool
    tls: bool
    """Mutual TLS, or plain TCP."""
    log_denials: bool = False
    controllers: int = 1
    mode: Mode = "encap"

    @property
    def places(self) -> tuple[ControllerLayout, ...]:
        """Those of the controllers; the first is the API server's, too."""
        return self.layout.controllers(self.controllers)

    @property
    def kubeconfig(self) -> Path:
        """The administrator's."""
        return self.layout.control / "apiserver" / "admin.kubeconfig"

    @property
    def source(self) -> ClusterSource:
        return self.kubernetes if self.binaries else DirectorySource(self.layout.cluster)

    @property
    def kubernetes(self) -> KubernetesSource:
        """Raises `LabError` where the cluster is a directory."""
        if not self.binaries:
            raise LabError(f"lab {self.layout.name} has no API server: its cluster is a directory")
        kubectl = self.binaries / "kubectl"
        return KubernetesSource(kubectl, self.kubeconfig, self.layout.netns("control"))

    def start(
        self,
        nodes: Sequence[NodeLayout],
        report: Callable[[str], None],
        cancelled: Callable[[], bool],
    ) -> None:
        """Start what does not run, with the Nodes written down before a controller reads them.

        Returns when all controllers listen. Raises `LabError`.
        """
        self.start_api(report)
        if not self.kubelets:
            report("writing the Nodes")
            for node in nodes:
                self.source.add_node(node)
        report("starting the controller" if self.controllers == 1 else "starting the controllers")
        for place in self.places:
            self._spawn_controller(place)
        for place in self.places:
            self._wait_for_controller(place, cancelled)

    def start_controller(self, place: ControllerLayout) -> None:
        """Start one controller unless it runs; return when it listens. Raises `LabError`."""
        self._spawn_controller(place)
        self._wait_for_controller(place, lambda: False)

    def _spawn_controller(self, place: ControllerLayout) -> None:
        cluster = ClusterSettings(
            pod_range=POD_RANGE,
            service_range=SERVICE_RANGE,
            host_ranges=self.layout.all_subnets,
            tunnel=self.tunnel,
            policy=PolicySettings(log_denials=self.log_denials),
            network=NetworkSettings(self.mode),
        )
        controller = Controller(
            openflow=f"{place.address}:{OPENFLOW_PORT}",
            api=f"{place.address}:{API_PORT}",
            api_socket=place.api_socket,
            kubernetes=Kubernetes(kubeconfig=self._controllers_kubeconfig),
            tls=certificates.files(self.layout, place.certificate) if self.tls else None,
            plain_tcp=not self.tls,
        )
        write_settings(place.settings, Settings(cluster=cluster, controller=controller))
        where = [] if self.binaries else ["--cluster", str(self.layout.cluster)]
        command = python("controller", "--config", str(place.settings), *where)
        daemons(place).start("controller", command)

    def _wait_for_controller(self, place: ControllerLayout, cancelled: Callable[[], bool]) -> None:
        ours = daemons(place)
        if not ours.wait(lambda: _listens(place), timeout=30, cancelled=cancelled):
            said = ours.tail("controller")
            raise LabError(f"{place.name}: the controller does not listen after 30 s\n{said}")

    def ask(self, path: str, *, controller: str | None = None) -> dict[str, Any] | None:
        """What a controller's API for local users answers; None if it does not.

        The one with this name, or else the leader; any where none leads.
        """
        places = [place for place in self.places if controller in (None, place.name)]
        if len(places) > 1:
            found = (place for place, said in _ask(places, LEADER, timeout=1) if said["leads"])
            places = [leader] if (leader := next(found, None)) else places
        return next((answer for _, answer in _ask(places, path, ANSWER_TIMEOUT)), None)

    def leads(self, place: ControllerLayout) -> bool:
        """Whether a controller says that it leads."""
        return any(said["leads"] for _, said in _ask([place], LEADER, timeout=1))

    def status(self) -> dict[str, Any] | None:
        """What the leader says of nodes and problems; None if it does not."""
        return self.ask("/v1/status")

    def in_sync(self) -> bool:
        """Whether every node that takes part is connected, with all its flows."""
        status = self.status()
        # Before the controller has read the cluster, it knows no nodes.
        return (
            status is not None
            and status["ready"]
            and all(node["inSync"] for node in status["nodes"].values())
        )

    def start_api(self, report: Callable[[str], None]) -> None:
        """Start the API server where there is to be one. Raises `LabError`."""
        if not self.binaries:
            return
        report("starting Kubernetes" if self.kubelets else "starting etcd and kube-apiserver")
        ours = daemons(self.layout.controller(1))
        try:
            apiserver.start(
                netns=ours.netns,
                directory=self.layout.control / "apiserver",
                address=str(CONTROL_ADDRESS),
                service_range=str(SERVICE_RANGE),
                binaries=self.binaries,
                pod_range=str(POD_RANGE) if self.kubelets else None,
                spawn=ours.start,
                logs=ours.directory,
            )
        except (apiserver.ApiServerError, OSError) as error:
            raise LabError(str(error)) from error

    @property
    def _controllers_kubeconfig(self) -> Path | None:
        return self.kubeconfig.with_name("sluice-controller.kubeconfig") if self.binaries else None


def _ask(
    places: Sequence[ControllerLayout], path: str, timeout: float
) -> Iterator[tuple[ControllerLayout, dict[str, Any]]]:
    """What controllers answer, as the answers come; nothing of those that refuse or are silent."""
    with contextlib.ExitStack() as opened:
        # All at once: one that is stopped must not delay the answer of another.
        waiting = {}
        for place in places:
            with contextlib.suppress(OSError, http.client.HTTPException):
                connection = opened.enter_context(contextlib.closing(_connect(place)))
                connection.request("GET", path)
                waiting[connection.sock] = place, connection
        deadline = time.monotonic() + timeout
        while waiting and (left := deadline - time.monotonic()) > 0:
            for readable in select.select([*waiting], [], [], left)[0]:
                place, connection = waiting.pop(readable)
                if (answer := _answer(connection)) is not None:
                    yield place, answer


def _connect(place: ControllerLayout) -> http.client.HTTPConnection:
    """Raises `OSError`."""
    connection = http.client.HTTPConnection("controller", timeout=ANSWER_TIMEOUT)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.settimeout(ANSWER_TIMEOUT)
    try:
        connection.sock.connect(str(place.api_socket))
    except OSError:
        connection.close()
        raise
    return connection


def _answer(connection: http.client.HTTPConnection) -> dict[str, Any] | None:
    try:
        response = connection.getresponse()
        answer: dict[str, Any] = json.load(response)
    except (OSError, http.client.HTTPException, ValueError):
        return None
    return answer if response.status == http.HTTPStatus.OK else None


def _listens(place: ControllerLayout) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(place.api_socket))
        return True
    return False
