"""What the controller counts (Prometheus text format, on `/metrics`)."""

from prometheus_client import Counter, Gauge, Histogram

SESSIONS = Gauge("sluice_switch_sessions", "Switches connected")
SYNCS = Counter("sluice_switch_syncs", "Times that a switch was brought in sync")
COMPARISONS = Counter("sluice_switch_comparisons", "Times that a switch was dumped and compared")
SEALED = Counter(
    "sluice_switch_sealed", "Times that the seals of a switch showed that it is in sync"
)
DRIFT = Counter(
    "sluice_switch_drift",
    "Flows, groups, seals and meters that audits found changed by another program",
    ["kind"],
)
FOREIGN = Gauge(
    "sluice_foreign_flows", "Flows and groups on the switches that are not managed by Sluice"
)
REFUSALS = Counter("sluice_switch_refusals", "Messages that a switch rejected")
PROBLEMS = Gauge("sluice_problems", "Current problems with objects, files, ports and switches")
EVENTS = Counter("sluice_events", "Events that were sent to the API server", ["outcome"])
EVENTS_WAITING = Gauge("sluice_events_waiting", "Problems for which no Event was written yet")
DENIALS = Counter(
    "sluice_policy_denials",
    "Denied pairs of a pod and another end: those told in Events, and those left out at a bound"
    " (for some of these only packets are counted)",
    ["outcome"],
)
NODES = Gauge("sluice_nodes", "Nodes that take part")
ATTACHMENTS = Gauge("sluice_attachments", "Interfaces of pods that have flows")
SERVICES = Gauge("sluice_services", "Services that have an address")

POLICY_CHANGES = Counter(
    "sluice_policy_changes", "Changes of policy, by the number of their phases", ["phases"]
)
POLICY_WAITS = Counter(
    "sluice_policy_waits",
    "Second phases of policy changes, by whether all switches had the first one in time",
    ["outcome"],
)
POLICY_SECONDS = Histogram(
    "sluice_policy_publication_seconds",
    "From the compiled change of policy until it is in the programs of all nodes",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
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
