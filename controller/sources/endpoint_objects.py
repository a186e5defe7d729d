"""EndpointSlices as the sources read them (see `controller.sources.objects`)."""

from typing import ClassVar

import msgspec

from controller.sources.metadata import Metadata


class SliceLabels(msgspec.Struct, frozen=True):
    """The labels of an EndpointSlice that anything here depends on; None: not set."""

    service: str | None = msgspec.field(default=None, name="kubernetes.io/service-name")
    proxy_name: str | None = msgspec.field(
        default=None, name="service.kubernetes.io/service-proxy-name"
    )
    headless: str | None = msgspec.field(default=None, name="service.kubernetes.io/headless")


class SliceAnnotations(msgspec.Struct, frozen=True):
    """The annotations of an EndpointSlice that anything here depends on."""

    triggered: str = msgspec.field(
        default="", name="endpoints.kubernetes.io/last-change-trigger-time"
    )


class SliceMetadata(Metadata, frozen=True, rename="camel"):
    """ObjectMeta of an EndpointSlice."""

    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class EndpointConditions(msgspec.Struct, frozen=True):
    """discovery/v1 EndpointConditions."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(msgspec.Struct, frozen=True):
    """discovery/v1 ForZone and ForNode."""

    name: str


class EndpointHints(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 EndpointHints."""

    for_zones: list[Hint] | None = None
    for_nodes: list[Hint] | None = None


class SliceEndpoint(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 Endpoint. Its own zone is not here: hints say whom it is for."""

    addresses: list[str] | None = None
    conditions: EndpointConditions | None = None
    node_name: str | None = None
    hints: EndpointHints | None = None


class EndpointPort(msgspec.Struct, frozen=True):
    """discovery/v1 EndpointPort."""

    name: str | None = None
    protocol: str | None = None
    port: int | None = None


class SliceObject(msgspec.Struct, frozen=True, rename="camel"):
    """discovery/v1 EndpointSlice."""

    kind: ClassVar = "EndpointSlice"

    metadata: SliceMetadata
    address_type: str
    endpoints: list[SliceEndpoint] | None = None
    ports: list[EndpointPort] | None = None

    @property
    def service(self) -> str:
        """The name of the Service, in its own namespace; empty: it is nobody's, or another's."""
        labels = self.metadata.labels
        if labels is None or (labels.proxy_name, labels.headless) != (None, None):
            return ""
        return labels.service or ""
