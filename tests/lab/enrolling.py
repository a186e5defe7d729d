"""A lab with an API server whose controller is the nodes' CA; what its agents' Pods would have."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from cryptography import x509

from lab import Lab, control
from lab.daemons import kill
from lab.layout import CONTROL_ADDRESS
from lab.node import daemons
from lab.patience import PROGRAM_TIMEOUT
from lab.programs import python
from lab.runtime import PluginError, Runtime
from tests.waiting import wait_until

NAMESPACE = "sluice-system"
BODY = """
import json, ssl, sys, urllib.error, urllib.request
url, ca, token = sys.argv[1:]
body = sys.stdin.buffer.read() or None
headers = {"Authorization": f"Bearer {token}"} if token else {}
opener = urllib.request.build_opener(
    urllib.request.ProxyHandler({}),
    urllib.request.HTTPSHandler(context=ssl.create_default_context(cafile=ca)),
)
try:
    with opener.open(urllib.request.Request(url, body, headers), timeout=60) as answer:
        print(answer.status, answer.read().decode())
except urllib.error.HTTPError as error:
    with error:
        print(error.code, error.read().decode())
"""


def _may(kind: str, name: str, rules: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A role of the controller's and its binding."""
    group = "rbac.authorization.k8s.io"
    metadata = {"name": name} | ({"namespace": NAMESPACE} if kind == "Role" else {})
    user = {"apiGroup": group, "kind": "User", "name": "sluice-controller"}
    return [
        {"apiVersion": f"{group}/v1", "kind": kind, "metadata": metadata, "rules": rules},
        {
            "apiVersion": f"{group}/v1",
            "kind": f"{kind}Binding",
            "metadata": metadata,
            "roleRef": {"apiGroup": group, "kind": kind, "name": name},
            "subjects": [user],
        },
    ]


def _agent(node: str) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": f"agent-{node}", "namespace": NAMESPACE},
        "spec": {
            "serviceAccountName": "sluice-agent",
            "nodeName": node,
            "hostNetwork": True,
            "containers": [{"name": "agent", "image": "agent"}],
        },
    }


def _named(kind: str, *names: str) -> list[dict[str, Any]]:
    return [
        {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": NAMESPACE}}
        for name in names
    ]


MANIFESTS = [
    {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}},
    *_named("ServiceAccount", "sluice-agent", "other"),
    *_named("Secret", "sluice-ca"),
    *_named("ConfigMap", "sluice-ca"),
    *_may(
        "Role",
        "sluice-ca",
        [
            {
                "apiGroups": [""],
                "resources": ["secrets", "configmaps"],
                "resourceNames": ["sluice-ca"],
                "verbs": ["get", "update"],
            }
        ],
    ),
    *_may(
        "ClusterRole",
        "sluice-tokens",
        [
            {
                "apiGroups": ["authentication.k8s.io"],
                "resources": ["tokenreviews"],
                "verbs": ["create"],
            }
        ],
    ),
    *map(_agent, ("node1", "node2")),
]


class Enrolling:
    """Two nodes, each agent with the files that kubelet would give its Pod."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab = lab
        self.folder = folder
        self.ca = folder / "ca.crt"
        """What kubelet would keep like the ConfigMap; here the test does (`spread_ca`)."""
        manifests = {"apiVersion": "v1", "kind": "List", "items": MANIFESTS}
        self.kubectl("apply", "--validate=false", "-f", "-", stdin=json.dumps(manifests))

    def kubectl(self, *arguments: str, stdin: str = "") -> str:
        done = subprocess.run(
            self.lab.kubectl(*arguments, "--request-timeout=15s"),
            input=stdin, capture_output=True, text=True, check=False,
            env=os.environ | {"NO_PROXY": "*"},
        timeout=PROGRAM_TIMEOUT)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    # Secret and ConfigMap

    def data(self, kind: str) -> dict[str, str]:
        found = json.loads(self.kubectl("get", kind, "sluice-ca", "-n", NAMESPACE, "-o", "json"))
        given: dict[str, str] = found.get("data", {})
        return given

    def put(self, kind: str, data: Mapping[str, str | None]) -> None:
        field = "stringData" if kind == "secret" else "data"
        patch = json.dumps({field: data})
        self.kubectl("patch", kind, "sluice-ca", "-n", NAMESPACE, "--type=merge", "-p", patch)

    def spread_ca(self) -> None:
        new = self.ca.with_suffix(".new")
        new.write_text(self.data("configmap")["ca.crt"])
        new.rename(self.ca)

    # Tokens

    def token(self, *options: str, account: str = "sluice-agent") -> str:
        return self.kubectl("create", "token", account, "-n", NAMESPACE, *options)

    def node_token(self, node: str, audience: str = "sluice") -> str:
        bound = ("--bound-object-kind", "Pod", "--bound-object-name", f"agent-{node}")
        return self.token(*bound, "--audience", audience)

    # The controller

    def restart_controller(self, **enrolment: Any) -> None:
        self.stop_controller()
        given = self.lab.layout.control / "sluice.yaml"
        settings = yaml.safe_load(given.read_text())
        controller = settings["controller"] | {"plainTcp": False, "tls": None}
        controller["enrolment"] = {"addresses": [str(CONTROL_ADDRESS)]} | enrolment
        controller |= self.settings()
        file = self.folder / "controller.yaml"
        file.write_text(yaml.safe_dump(settings | {"controller": controller}))
        ours = control.daemons(self.lab.layout.controller(1))
        ours.start("controller", python("controller", "--config", str(file)))

    def settings(self) -> dict[str, Any]:
        """Further settings of the controller."""
        return {}

    def stop_controller(self) -> None:
        pid = control.daemons(self.lab.layout.controller(1)).pid("controller")
        if pid:
            kill([pid])

    def controller_said(self, event: str) -> list[dict[str, Any]]:
        text = control.daemons(self.lab.layout.controller(1)).log("controller").read_text()
        lines = [json.loads(x) for x in text.splitlines(keepends=True) if x.endswith("}\n")]
        return [line for line in lines if line["event"] == event]

    def ask(
        self, path: str, *, body: bytes = b"", token: str = "", where: str = "node1"
    ) -> tuple[int, str]:
        """Over TLS, without a certificate of one's own."""
        url = f"https://{CONTROL_ADDRESS}:6654{path}"
        command = [sys.executable, "-c", BODY, url, str(self.ca), token]
        answer = self.lab.exec(where, command, stdin=body.decode()).stdout
        status, _, text = answer.partition(" ")
        return int(status), text.strip()

    # Agents

    def files(self, node: str) -> Path:
        return self.lab.layout.node(int(node.removeprefix("node"))).directory / "state" / "tls"

    def certificate(self, node: str) -> x509.Certificate:
        return x509.load_pem_x509_certificate((self.files(node) / "cert.pem").read_bytes())

    def token_file(self, node: str) -> Path:
        return self.folder / f"{node}.token"

    def restart_agent(self, node: str) -> None:
        layout = self.lab.layout.node(int(node.removeprefix("node")))
        pid = daemons(layout).pid("agent")
        if pid:
            kill([pid])
        settings = yaml.safe_load(layout.settings.read_text())
        settings["agent"] |= {
            "plainTcp": False,
            "tls": None,
            "enrolment": {"token": str(self.token_file(node)), "ca": str(self.ca)},
            "statusGrace": 0.1,
        }
        file = self.folder / f"{node}.yaml"
        file.write_text(yaml.safe_dump(settings))
        daemons(layout).start("agent", python("node_agent", "--config", str(file)))

    def refusal(self, node: str) -> str:
        """Why STATUS refuses; empty where it does not."""
        try:
            Runtime(self.lab.layout.node(int(node.removeprefix("node")))).status()
        except PluginError as error:
            return str(error)
        return ""

    def wait_ready(self) -> None:
        def ready(node: str) -> bool:
            enrolled = (self.files(node) / "cert.pem").exists()
            return enrolled and len(self.sessions(node)) == 1 and not self.refusal(node)

        wait_until(lambda: ready("node1") and ready("node2"), 90)

    def agent_log(self, node: str) -> str:
        layout = self.lab.layout.node(int(node.removeprefix("node")))
        return daemons(layout).log("agent").read_text()

    def dial(self, node: str, target: str = f"ssl:{CONTROL_ADDRESS}:6653") -> None:
        """Have a switch hang up and dial somewhere, until its agent looks at it again."""
        column = f'target="{target}"'
        row = self.lab.exec(node, ["ovs-vsctl", "--bare", "--columns=_uuid", "list", "Controller"])
        self.lab.exec(node, ["ovs-vsctl", "set", "Controller", row.stdout.strip(), column])

    def sessions(self, node: str) -> list[str]:
        """The local addresses of a node's TLS connections to where switches dial in."""
        ss = ["ss", "-tnH", "state", "established", "dport", "=", ":6653"]
        return [line.split()[2] for line in self.lab.exec(node, ss).stdout.splitlines()]

    def start(self) -> None:
        """From plain TCP to enrolled nodes."""
        self.restart_controller()
        wait_until(lambda: "ca.crt" in self.data("configmap"))
        self.spread_ca()
        for node in ("node1", "node2"):
            self.token_file(node).write_text(self.node_token(node))
            self.restart_agent(node)
        self.wait_ready()


def secret_pem(data: Mapping[str, str], name: str) -> bytes:
    return base64.b64decode(data[name])


def server_pem(lab: Lab, ca: Path, address: str = f"{CONTROL_ADDRESS}:6654") -> str:
    """The certificate that the controller shows now."""
    host, _, port = address.partition(":")
    code = (
        f"import ssl; print(ssl.get_server_certificate(({host!r}, {port}), ca_certs={str(ca)!r}))"
    )
    return lab.exec("node1", [sys.executable, "-c", code]).stdout
