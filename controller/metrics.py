"""What the controller counts (Prometheus text format, on `/metrics`)."""

from prometheus_client import Counter, Gauge

SESSIONS = Gauge("sluice_switch_sessions", "Switches connected")
SYNCS = Counter("sluice_switch_syncs", "Times that a switch was brought in sync")
COMPARISONS = Counter("sluice_switch_comparisons", "Times that a switch was dumped and compared")
SEALED = Counter("sluice_switch_sealed", "Times that a switch's seals told that it is in sync")
DRIFT = Counter(
    "sluice_switch_drift",
    "Flows, seals and meters that were changed by somebody else, as audits found",
    ["kind"],
)
FOREIGN = Gauge("sluice_foreign_flows", "Flows and groups on the switches that nobody here made")
REFUSALS = Counter("sluice_switch_refusals", "Messages that a switch refused")
PROBLEMS = Gauge("sluice_problems", "Objects, files and ports that are refused at the moment")
EVENTS = Counter("sluice_events", "Events that were sent to the API server", ["outcome"])
EVENTS_WAITING = Gauge("sluice_events_waiting", "Problems of Pods and Nodes not told as Events yet")
NODES = Gauge("sluice_nodes", "Nodes that take part")
ATTACHMENTS = Gauge("sluice_attachments", "Interfaces of pods that have flows")
