"""What the controller counts, for Prometheus. docs/metrics.md is made from this module.

`/metrics` needs no token, so its metrics are numbers alone, without a name or an address. Metrics
of single nodes have names: `wire.viewing.NODE_METRICS` serves them to who may know these.
"""

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Final

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

from controller.problems import ReporterKind

# A series with the start of each counter says no more than process_start_time_seconds.
disable_created_metrics()  # type: ignore[no-untyped-call]

# Switches
NODES = Gauge("sluice_nodes", "Nodes that take part")
SESSIONS = Gauge("sluice_switch_sessions", "Switches that are connected")
IN_SYNC = Gauge(
    "sluice_switches_in_sync", "Connected switches that have acknowledged everything they should"
    " hold"
)  # fmt: skip
LEADER = Gauge("sluice_leader", "1 if this controller may write")
TERMS = Counter("sluice_leader_terms", "Times that this controller began to lead")
GENERATION = Gauge("sluice_leader_generation", "The newest generation of a leader that is known")
PROVEN_AGE_MAX = Gauge(
    "sluice_node_proven_age_max_seconds",
    "The greatest sluice_node_proven_age_seconds of all nodes",
)
CONNECTIONS = Counter("sluice_switch_connections", "Times that a switch has connected")
SYNCS = Counter("sluice_switch_syncs", "Times that a switch was brought in sync")
COMPARISONS = Counter("sluice_switch_comparisons", "Times that a switch was dumped and compared")
SEALED = Counter(
    "sluice_switch_seal_matches",
    "Times that the seals of a switch showed that it is in sync, without a dump",
)
DRIFT = Counter(
    "sluice_switch_drift",
    "Flows, groups, seals and meters that audits found changed by another program",
    ["kind"],
)
FOREIGN = Gauge(
    "sluice_foreign_flows", "Flows and groups on the switches that are not managed by Sluice"
)
REJECTED = Counter("sluice_switch_rejected_messages", "Messages that a switch rejected")

# BGP. `speaker` is `controller` (this one), or `nodes` (those with a speaker of their own).
BGP_SESSIONS = Gauge("sluice_bgp_sessions", "Sessions that should be established", ["speaker"])
BGP_ESTABLISHED = Gauge("sluice_bgp_sessions_established", "Sessions that are", ["speaker"])
BGP_PATHS = Gauge(
    "sluice_bgp_paths", "Pairs of a prefix and a next hop that peers were told", ["speaker"]
)
BGP_RECEIVED = Gauge(
    "sluice_bgp_received_prefixes", "Prefixes that peers announced; none is used", ["speaker"]
)
for _gauge in (BGP_SESSIONS, BGP_ESTABLISHED, BGP_PATHS, BGP_RECEIVED):
    for _speaker in ("controller", "nodes"):
        _gauge.labels(_speaker)

# Objects
CLUSTER_READ = Gauge(
    "sluice_cluster_read",
    "1 if everything was read from the API server once; until then nothing is deleted",
)
ATTACHMENTS = Gauge("sluice_attachments", "Interfaces of pods that have flows")
SERVICES = Gauge("sluice_services", "Services that have an address")
PROBLEMS = Gauge(
    "sluice_problems",
    "Current problems with objects, files, ports and switches, by the part of Sluice that reports"
    " them",
    ["reporter"],
)
EVENTS = Counter("sluice_events", "Events that were sent to the API server", ["outcome"])
EVENTS_WAITING = Gauge("sluice_events_waiting", "Problems for which no Event was written yet")
DENIALS = Counter(
    "sluice_policy_denials",
    "Denied pairs of a pod and another end: those told in Events, and those left out at a bound"
    " (for some of these only packets are counted)",
    ["outcome"],
)

# Addresses that one node at a time has
ADDRESSES = Gauge("sluice_addresses", "Addresses that one node at a time has to have")
ADDRESSES_OWNED = Gauge("sluice_addresses_owned", "Those that a node has")
ADDRESS_MOVES = Counter(
    "sluice_address_moves",
    "Times that the leader gave such an address to another node, or took it from one",
)

# Addresses for Services of type LoadBalancer
POOL_FREE_MIN = Gauge(
    "sluice_address_pool_free_min_ratio",
    "The smallest share of free addresses of all AddressPools; 1 without a pool",
)
WAITING_FOR_ADDRESS = Gauge(
    "sluice_services_without_address",
    "Services of type LoadBalancer that do not have the address that they ask for",
)
ADDRESSES_WRITTEN = Counter(
    "sluice_service_addresses_written",
    "Addresses that this controller wrote to the status of a Service, or took from it",
    ["outcome"],
)

# Egress addresses
EGRESS_USED_MAX = Gauge(
    "sluice_egress_ports_used_max_ratio",
    "The largest share of source ports that one destination uses of an egress address, or that a"
    " gateway uses of the connections that it can track",
)

# Policy
POLICY_CHANGES = Counter(
    "sluice_policy_changes", "Changes of policy, by the number of their phases", ["phases"]
)
POLICY_WAITS = Counter(
    "sluice_policy_waits",
    "Second phases of policy changes, by whether all switches had the first one in time",
    ["outcome"],
)
POLICY_SECONDS = Histogram(
    "sluice_policy_publication_duration_seconds",
    "From the compiled change of policy until it is in the programs of all nodes",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)

# Certificates
CA_EXPIRY = Gauge(
    "sluice_ca_expiry_timestamp_seconds",
    "When the CA of the nodes expires (Unix time); 0 without enrolment",
)
CERTIFICATE_EXPIRY = Gauge(
    "sluice_certificate_expiry_timestamp_seconds",
    "When the controller's own certificate expires (Unix time); 0 without enrolment",
)

# What Kubernetes' scalability tests ask kube-proxy for, under its names and with its buckets
# (pkg/proxy/metrics/metrics.go).
PROGRAMMING = Histogram(
    "kubeproxy_network_programming_duration_seconds",
    "From the change of a Service's endpoints (trigger time in its EndpointSlice) to the"
    " acknowledgement of a switch; one observation for each switch",
    buckets=(
        0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, *range(1, 61),
        *range(65, 126, 5), *range(135, 306, 10),
    ),
)  # fmt: skip
SYNC_SECONDS = Histogram(
    "kubeproxy_sync_proxy_rules_duration_seconds",
    "Compiling and encoding what changed for all switches",
    buckets=[0.0001 * 2**n for n in range(18)],
)
SYNCED_AT = Gauge(
    "kubeproxy_sync_proxy_rules_last_timestamp_seconds", "When that was done last (Unix time)"
)
ENDPOINT_CHANGES = Gauge(
    "kubeproxy_sync_proxy_rules_endpoint_changes_total",
    "EndpointSlices that were added, changed or removed",
)
SERVICE_CHANGES = Gauge(
    "kubeproxy_sync_proxy_rules_service_changes_total",
    "Services that were added, changed or removed",
)


@dataclass(frozen=True)
class NamedGauge:
    """A metric with one number for each node, or each object of another kind, by its name."""

    name: str
    documentation: str
    label: str = "node"

    def text(self, values: Mapping[str, float]) -> Generator[None, None, bytes]:
        """The metric in Prometheus' text format, in steps; see `work_budget.in_turns`."""
        lines = [f"# HELP {self.name} {self.documentation}", f"# TYPE {self.name} gauge"]
        for name, value in values.items():
            # These names are DNS names, in which nothing has to be escaped.
            lines.append(f'{self.name}{{{self.label}="{name}"}} {value:.3f}')
            yield
        return "".join(f"{line}\n" for line in lines).encode()


PROVEN_AGE: Final = NamedGauge(
    "sluice_node_proven_age_seconds",
    "Seconds since the node's switch was last proven to hold what it should: since its agent's last"
    " digest that was right; if there was none, since the controller began to look",
)
"""See `controller.proofs`."""
POOL_FREE: Final = NamedGauge(
    "sluice_address_pool_free", "Addresses of the pool that a Service can still get", "pool"
)
POOL_SIZE: Final = NamedGauge("sluice_address_pool_size", "Addresses of the pool", "pool")
EGRESS_USED: Final = NamedGauge(
    "sluice_egress_ports_used_ratio",
    "The share of source ports that one destination uses of the egress address: the largest",
    "egress",
)
EGRESS_CONNECTIONS: Final = NamedGauge(
    "sluice_egress_connections", "Connections that leave from the egress address", "egress"
)
WITH_NAMES: Final = (PROVEN_AGE, POOL_FREE, POOL_SIZE, EGRESS_USED, EGRESS_CONNECTIONS)

LABELS: Final[Mapping[str, tuple[str, ...]]] = {
    "sluice_switch_drift": ("missing", "altered", "stale", "seal", "meters", "groups"),
    "sluice_problems": tuple(kind.name.lower() for kind in ReporterKind),
    "sluice_events": ("told", "refused"),
    "sluice_policy_denials": ("told", "refused", "left_out"),
    "sluice_policy_changes": ("one", "two"),
    "sluice_service_addresses_written": ("written", "refused", "failed"),
    "sluice_policy_waits": ("in_force", "late"),
}
"""The values of each metric's one label. All of them exist from the start: Prometheus would not see
that a counter which appears has increased."""
for _metric in (
    *(DRIFT, PROBLEMS, EVENTS, DENIALS, POLICY_CHANGES, POLICY_WAITS, ADDRESSES_WRITTEN),
):
    for _value in LABELS[next(iter(_metric.describe())).name]:
        _metric.labels(_value)
