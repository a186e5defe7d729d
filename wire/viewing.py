"""How a person's command line reaches the reports of a controller, by the rights of Kubernetes."""

from typing import Final

NAMESPACE: Final = "sluice-system"
"""Where Sluice runs, unless somebody says otherwise."""
SERVICE_ACCOUNT: Final = "sluice-viewer"
"""Who may create a token of this ServiceAccount may read the reports."""
CAPTURER: Final = "sluice-capturer"
"""Who may create a token of this ServiceAccount may capture packets of pods, and nothing else."""
CAPTURE: Final = "/v1/capture"
"""The path of captures."""
AUDIENCE: Final = "sluice-reports"
"""Of these tokens, so that they are worth nothing elsewhere."""
POD_LABEL: Final = "app.kubernetes.io/name=sluice-controller"
PORT_NAME: Final = "reports"
"""The name of the container's port at which the controller serves reports."""
CA: Final = "sluice-ca"
"""The ConfigMap with the CA of the controller (`ca.crt`)."""
NODE_METRICS: Final = "/metrics/nodes"
"""Where the controller serves metrics of single nodes, beside the reports."""
SERVER_NAME: Final = "controller"
"""A DNS name in the controller's certificate. A controller has no address that a client behind a
port-forward could check."""
