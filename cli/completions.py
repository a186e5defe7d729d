"""What shells complete with the cluster's own names, for several commands."""

from collections.abc import Iterable
from typing import Any, Final

import click

from cli.controller import Completion, completion

SERVICE_PREFIXES: Final = ("svc/", "service/")
OTHER_PREFIXES: Final = ("networkpolicy/", "clusternetworkpolicy/", "endpointslice/")


def _nodes(report: Any) -> Iterable[str]:
    return [*report["nodes"]]


def _pods(report: Any) -> Iterable[str]:
    nodes = report["nodes"].values()
    return {port["pod"] for node in nodes for port in node["attachments"].values()} - {""}


def _services(report: Any) -> Iterable[str]:
    return [f"{row['namespace']}/{row['name']}" for row in report["services"]]


NODES: Final[Completion] = completion("/v1/status", _nodes)
PODS: Final[Completion] = completion("/v1/status", _pods)
ENDS: Final[Completion] = completion(
    "/v1/status", lambda report: [*_nodes(report), *_pods(report), "outside"]
)
"""The ends of a trace."""
SERVICES: Final[Completion] = completion("/v1/services", _services)
_OBJECTS: Final[Completion] = completion(
    "/v1/status",
    lambda report: [
        *(f"node/{name}" for name in _nodes(report)),
        *(f"pod/{name}" for name in _pods(report)),
        *SERVICE_PREFIXES[:1],
        *OTHER_PREFIXES,
    ],
)
_SERVICE_OBJECTS: Final[Completion] = completion(
    "/v1/services",
    lambda report: [prefix + name for prefix in SERVICE_PREFIXES for name in _services(report)],
)


def objects(context: click.Context, parameter: click.Parameter, begun: str) -> list[str]:
    """Objects with their kind: pods, nodes and Services by their names, others by their kind."""
    of_services = begun.startswith(SERVICE_PREFIXES)
    return (_SERVICE_OBJECTS if of_services else _OBJECTS)(context, parameter, begun)
