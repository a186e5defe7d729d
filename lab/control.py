"""The control plane: Sluice's controller, and etcd and kube-apiserver where those are wanted."""

import contextlib
import http
import http.client
import json
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lab import apiserver
from lab.commands import LabError, complete
from lab.daemons import Daemons
from lab.layout import (
    API_PORT,
    CONTROL_ADDRESS,
    OPENFLOW_PORT,
    POD_RANGE,
    SERVICE_RANGE,
    UNDERLAY,
    LabLayout,
    NodeLayout,
)
from lab.patience import BUILD_TIMEOUT
from lab.programs import python, write_settings
from lab.sources import ClusterSource, DirectorySource, KubernetesSource
from settings import ClusterSettings, Controller, Kubernetes, PolicySettings, Settings, Tls

Tunnel = Literal["geneve", "vxlan"]

BUILD_SCRIPT = Path(__file__).parents[1] / "scripts" / "kube-binaries"


def daemons(layout: LabLayout) -> Daemons:
    return Daemons(layout.netns("control"), layout.control / "log")


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
    """`binaries` is where Kubernetes' programs are; None for a cluster out of a directory.

    `tls` are the controller's files; None for plain TCP.
    """

    layout: LabLayout
    tunnel: Tunnel
    binaries: Path | None
    kubelets: bool
    tls: Tls | None
    log_denials: bool = False

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
        """Start what does not run, with the Nodes written down before the controller reads them.

        Returns when the controller listens. Raises `LabError`.
        """
        kubeconfig = self.start_api(report)
        if not self.kubelets:
            report("writing the Nodes")
            for node in nodes:
                self.source.add_node(node)

        report("starting the controller")
        ours = daemons(self.layout)
        cluster = ClusterSettings(
            pod_range=POD_RANGE,
            service_range=SERVICE_RANGE,
            host_ranges=(UNDERLAY,),
            tunnel=self.tunnel,
            policy=PolicySettings(log_denials=self.log_denials),
        )
        controller = Controller(
            openflow=f"{CONTROL_ADDRESS}:{OPENFLOW_PORT}",
            api=f"{CONTROL_ADDRESS}:{API_PORT}",
            api_socket=self.layout.api_socket,
            kubernetes=Kubernetes(kubeconfig=kubeconfig),
            tls=self.tls,
            plain_tcp=self.tls is None,
        )
        settings = self.layout.control / "sluice.yaml"
        write_settings(settings, Settings(cluster=cluster, controller=controller))
        where = [] if self.binaries else ["--cluster", str(self.layout.cluster)]
        ours.start("controller", python("controller", "--config", str(settings), *where))
        if not ours.wait(self._listens, timeout=30, cancelled=cancelled):
            raise LabError(f"the controller does not listen after 30 s\n{ours.tail('controller')}")

    def ask(self, path: str) -> dict[str, Any] | None:
        """What the controller's API for local users answers; None if it does not."""
        connection = http.client.HTTPConnection("controller", timeout=15)
        connection.sock = socket.socket(socket.AF_UNIX)
        try:
            connection.sock.settimeout(15)
            connection.sock.connect(str(self.layout.api_socket))
            connection.request("GET", path)
            response = connection.getresponse()
            answer: dict[str, Any] = json.load(response)
        except (OSError, http.client.HTTPException, ValueError):
            return None
        finally:
            connection.close()
        return answer if response.status == http.HTTPStatus.OK else None

    def status(self) -> dict[str, Any] | None:
        """What the controller says of nodes and problems; None if it does not."""
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

    def start_api(self, report: Callable[[str], None]) -> Path | None:
        """Start the API server where there is to be one; the controller's credentials for it.

        Raises `LabError`.
        """
        if not self.binaries:
            return None
        report("starting Kubernetes" if self.kubelets else "starting etcd and kube-apiserver")
        ours = daemons(self.layout)
        try:
            api = apiserver.start(
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
        return api.controller_kubeconfig

    def _listens(self) -> bool:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.layout.api_socket))
            return True
        return False
