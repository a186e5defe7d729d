"""The options of a lab, and the interface that reports its progress."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Protocol, TypedDict, get_args

import msgspec

from lab import kubelet
from lab.commands import LabError
from lab.control import Mode, Tunnel, kubernetes_binaries
from lab.datapath import Datapath, default_datapath
from lab.layout import MOST_CONTROLLERS, MOST_NODES, MOST_SUBNETS

SourceKind = Literal["dir", "kube"]
Fabric = Literal["bridge", "bgp"]


def default_mode() -> Mode:
    """$SLUICE_MODE, so that tests and examples run in any mode. Raises `LabError`."""
    asked = os.environ.get("SLUICE_MODE") or "encap"
    known: tuple[Mode, ...] = get_args(Mode)
    for each in known:
        if each == asked:
            return each
    raise LabError(f"SLUICE_MODE={asked}: there are only {', '.join(known)}")


class Report(Protocol):
    """Called with what a part of the lab (`node1`, `control`, ...) does, and when it is done."""

    def __call__(self, part: str, doing: str, *, done: bool = False) -> None: ...


def quiet(part: str, doing: str, *, done: bool = False) -> None:
    """Report nothing."""


class Options(TypedDict, total=False):
    """The options of `Spec`; None means that an option is not given."""

    nodes: int | None
    controllers: int | None
    tunnel: Tunnel | None
    mode: Mode | None
    subnets: int | None
    fabric: Fabric | None
    source: SourceKind | None
    tls: bool | None
    datapath: Datapath | None
    kubelets: bool | None
    sluice: bool | None
    log_denials: bool | None


class Spec(msgspec.Struct, frozen=True):
    """A whole lab, as stored in lab.json."""

    nodes: int = 3
    controllers: int = 1
    """Those that the lab starts. One of them writes, the others are its standbys."""
    tunnel: Tunnel = "geneve"
    mode: Mode = msgspec.field(default_factory=default_mode)
    """`cluster.network.mode`."""
    subnets: int = 1
    """The nodes are in these in turn, and the fabric routes between them."""
    fabric: Fabric = "bridge"
    """A router that knows only the nodes, or two that learn the rest by BGP (`lab.leaves`)."""
    source: SourceKind = "dir"
    """Where the cluster's objects are: in a directory of manifests, or in an API server."""
    tls: bool = False
    """Whether switches and agents speak to the controller by mutual TLS."""
    datapath: Datapath = msgspec.field(default_factory=default_datapath)
    kubelets: bool = False
    """Whether it is a whole Kubernetes, whose nodes run pods."""
    sluice: bool = True
    """Whether the lab starts controller and agents. If not, somebody deploys them."""
    log_denials: bool = False
    """`cluster.policy.logDenials`."""
    binaries: Path | None = None
    """Kubernetes' programs, where there is an API server."""
    images: Path | None = None
    """The images that each node is given, where there are kubelets."""
    ready: bool = False
    """Whether `up` has succeeded once."""


def new_spec(wanted: Mapping[str, Any]) -> Spec:
    """Fill in what was not asked for. Raises `LabError` where it does not fit together."""
    implied: dict[str, Any] = {"source": "kube"} if wanted.get("kubelets") else {}
    if wanted.get("fabric") == "bgp":
        implied |= {"subnets": 2, "nodes": 4, "mode": "noEncap"}
    spec = Spec(**{**implied, **wanted})
    if not 1 <= spec.nodes <= MOST_NODES:
        raise LabError(f"a lab has 1 to {MOST_NODES} nodes, not {spec.nodes}")
    if not 1 <= spec.controllers <= MOST_CONTROLLERS:
        raise LabError(f"a lab has 1 to {MOST_CONTROLLERS} controllers, not {spec.controllers}")
    if not 1 <= spec.subnets <= MOST_SUBNETS:
        raise LabError(f"a lab has 1 to {MOST_SUBNETS} subnets, not {spec.subnets}")
    if spec.fabric == "bgp" and spec.subnets != 2:
        raise LabError("each of the two routers of --fabric bgp has a subnet: leave out --subnets")
    if spec.controllers > 1 and spec.source != "kube":
        raise LabError(
            f"{spec.controllers} controllers elect a leader by a Lease, which needs an API server:"
            " add --source kube or --kubelets"
        )
    if spec.controllers > 1 and not spec.sluice:
        raise LabError("without Sluice the lab starts no controllers: leave out --controllers")
    if spec.kubelets and spec.source != "kube":
        raise LabError("kubelets need an API server, and so source kube")
    if not spec.sluice and not spec.kubelets:
        raise LabError("Sluice can be left out only where it can be deployed: with kubelets")
    return spec


def with_programs(spec: Spec, report: Report) -> Spec:
    """Add what has to be built, which may take some minutes once. Raises `LabError`."""
    if spec.source != "kube":
        return spec
    report("control", "looking for Kubernetes' programs, or building them")
    binaries = kubernetes_binaries(whole=spec.kubelets)
    images = None
    if spec.kubelets:
        report("control", "looking for the nodes' images, or making them")
        images = kubelet.images()
    return msgspec.structs.replace(spec, binaries=binaries, images=images)
