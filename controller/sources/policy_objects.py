"""Namespaces and policies as the sources read them.

The types are those of the API. Whether the values make sense is decided by `controller.policies`:
one bad value must not keep the rest of a policy from being in force.
"""

from typing import ClassVar

import msgspec

from controller.sources.metadata import Metadata, shared_labels


class NamespaceMetadata(Metadata, frozen=True, rename="camel"):
    """ObjectMeta of a Namespace."""

    labels: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if self.labels is not None:
            msgspec.structs.force_setattr(self, "labels", shared_labels(self.labels))


class NamespaceObject(msgspec.Struct, frozen=True):
    """core/v1 Namespace."""

    kind: ClassVar = "Namespace"

    metadata: NamespaceMetadata


class SelectorRequirement(msgspec.Struct, frozen=True):
    """meta/v1 LabelSelectorRequirement."""

    key: str = ""
    operator: str = ""
    values: tuple[str, ...] | None = None


class LabelSelector(msgspec.Struct, frozen=True, rename="camel"):
    """meta/v1 LabelSelector. Empty: it matches everything."""

    match_labels: dict[str, str] | None = None
    match_expressions: tuple[SelectorRequirement, ...] | None = None


# --- networking.k8s.io/v1 ---


class IPBlock(msgspec.Struct, frozen=True):
    """networking/v1 IPBlock."""

    cidr: str = ""
    except_: tuple[str, ...] | None = msgspec.field(default=None, name="except")


class PolicyPeer(msgspec.Struct, frozen=True, rename="camel"):
    """networking/v1 NetworkPolicyPeer."""

    pod_selector: LabelSelector | None = None
    namespace_selector: LabelSelector | None = None
    ip_block: IPBlock | None = None


class PolicyPort(msgspec.Struct, frozen=True, rename="camel"):
    """networking/v1 NetworkPolicyPort."""

    protocol: str | None = None
    port: int | str | None = None
    end_port: int | None = None


class IngressRule(msgspec.Struct, frozen=True, rename="camel"):
    """networking/v1 NetworkPolicyIngressRule."""

    ports: tuple[PolicyPort, ...] | None = None
    from_: tuple[PolicyPeer, ...] | None = msgspec.field(default=None, name="from")


class EgressRule(msgspec.Struct, frozen=True):
    """networking/v1 NetworkPolicyEgressRule."""

    ports: tuple[PolicyPort, ...] | None = None
    to: tuple[PolicyPeer, ...] | None = None


class NetworkPolicySpec(msgspec.Struct, frozen=True, rename="camel"):
    """networking/v1 NetworkPolicySpec."""

    pod_selector: LabelSelector | None = None
    ingress: tuple[IngressRule, ...] | None = None
    egress: tuple[EgressRule, ...] | None = None
    policy_types: tuple[str, ...] | None = None


class NetworkPolicyObject(msgspec.Struct, frozen=True):
    """networking/v1 NetworkPolicy."""

    kind: ClassVar = "NetworkPolicy"

    metadata: Metadata
    spec: NetworkPolicySpec = NetworkPolicySpec()


# --- policy.networking.k8s.io/v1beta1 and v1alpha2, which have one schema ---


class NamespacedPods(msgspec.Struct, frozen=True, rename="camel"):
    """policy/v1beta1 NamespacedPod."""

    namespace_selector: LabelSelector | None = None
    pod_selector: LabelSelector | None = None


class ClusterPolicySubject(msgspec.Struct, frozen=True):
    """policy/v1beta1 ClusterNetworkPolicySubject."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None


class ClusterPolicyPeer(msgspec.Struct, frozen=True, rename="camel"):
    """policy/v1beta1 ClusterNetworkPolicyIngressPeer and ClusterNetworkPolicyEgressPeer."""

    namespaces: LabelSelector | None = None
    pods: NamespacedPods | None = None
    nodes: LabelSelector | None = None
    networks: tuple[str, ...] | None = None
    domain_names: tuple[str, ...] | None = None


class NumberRange(msgspec.Struct, frozen=True):
    """policy/v1beta1 PortRange."""

    start: int = 0
    end: int = 0


class DestinationPort(msgspec.Struct, frozen=True):
    """policy/v1beta1 Port."""

    number: int | None = None
    range: NumberRange | None = None


class TransportMatch(msgspec.Struct, frozen=True, rename="camel"):
    """policy/v1beta1 ClusterNetworkPolicyProtocolTCP, -UDP and -SCTP."""

    destination_port: DestinationPort | None = None


class ClusterPolicyProtocol(msgspec.Struct, frozen=True, rename="camel"):
    """policy/v1beta1 ClusterNetworkPolicyProtocol."""

    tcp: TransportMatch | None = None
    udp: TransportMatch | None = None
    sctp: TransportMatch | None = None
    destination_named_port: str | None = None


class ClusterPolicyRule(msgspec.Struct, frozen=True, rename="camel"):
    """policy/v1beta1 ClusterNetworkPolicyIngressRule and ClusterNetworkPolicyEgressRule."""

    action: str = ""
    name: str = ""
    from_: tuple[ClusterPolicyPeer, ...] | None = msgspec.field(default=None, name="from")
    to: tuple[ClusterPolicyPeer, ...] | None = None
    protocols: tuple[ClusterPolicyProtocol, ...] | None = None


class ClusterPolicySpec(msgspec.Struct, frozen=True):
    """policy/v1beta1 ClusterNetworkPolicySpec."""

    tier: str = ""
    priority: int = 0
    subject: ClusterPolicySubject = ClusterPolicySubject()
    ingress: tuple[ClusterPolicyRule, ...] | None = None
    egress: tuple[ClusterPolicyRule, ...] | None = None


class ClusterNetworkPolicyObject(msgspec.Struct, frozen=True):
    """policy/v1beta1 ClusterNetworkPolicy."""

    kind: ClassVar = "ClusterNetworkPolicy"

    metadata: Metadata
    spec: ClusterPolicySpec = ClusterPolicySpec()
