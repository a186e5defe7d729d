"""`kubectl sluice` on a real API server: who may read the reports of a controller, and who not."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from lab import Lab
from lab.layout import CONTROL_ADDRESS
from tests.lab.enrolling import Enrolling
from tests.lab.tokens import expired
from tests.lab.viewer import new_user, sluice
from tests.waiting import wait_until

pytestmark = pytest.mark.parametrize(
    "lab", [{"source": "kube", "nodes": 1}], indirect=True, ids=["kube"]
)
RBAC = Path(__file__).parents[2] / "deploy" / "kustomize" / "base" / "rbac.yaml"
REPORTS = f"{CONTROL_ADDRESS}:6655"
RAW = """
import http.client, json, ssl, sys
address, ca, path, *headers = sys.argv[1:]
context = ssl.create_default_context(cafile=ca)
connection = http.client.HTTPSConnection(address, context=context, timeout=60)
connection.request("GET", path, headers=dict(each.split(": ", 1) for each in headers))
answer = connection.getresponse()
print(json.dumps([answer.status, answer.read().decode()]))
"""


class Viewing(Enrolling):
    """A controller that serves reports, the viewers' role as it is deployed, and two users."""

    def start(self) -> None:
        self.kubectl("apply", "-f", "-", stdin=RBAC.read_text())
        for user in ("viewer", "stranger"):
            new_user(self.lab, user, self.folder / user, viewer=user == "viewer")
        self.restart_controller()
        wait_until(lambda: "ca.crt" in self.data("configmap"))
        self.spread_ca()
        wait_until(lambda: self.raw(self.viewer_token())[0] == 200)

    def settings(self) -> dict[str, object]:
        return {"reports": {"address": REPORTS, "scrapers": ["sluice-system/prometheus"]}}

    def viewer_token(self, *options: str, audience: str = "sluice-reports") -> str:
        return self.token("--audience", audience, *options, account="sluice-viewer")

    def raw(self, token: str, *headers: str, path: str = "/v1/status") -> tuple[int, str]:
        """The answer to a request for a report; 0 if there is none."""
        authorization = [f"Authorization: Bearer {token}"] if token else []
        command = [sys.executable, "-c", RAW, REPORTS, str(self.ca), path, *authorization, *headers]
        done = subprocess.run(
            self.lab.command("control", command),
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
        status, text = json.loads(done.stdout) if done.returncode == 0 else (0, done.stderr)
        return status, text

    def sluice(self, user: str, *words: str) -> subprocess.CompletedProcess[str]:
        return sluice(self.lab, self.folder / user, *words)


@pytest.fixture(scope="module")
def viewing(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Viewing:
    made = Viewing(lab, tmp_path_factory.mktemp("viewing"))
    made.start()
    return made


def test_viewer_reads_reports_with_a_kubeconfig_alone(viewing: Viewing) -> None:
    done = viewing.sluice("viewer", "services", "--address", REPORTS, "--json")
    assert done.returncode == 0, done.stderr
    assert [row["name"] for row in json.loads(done.stdout)["services"]] == ["kubernetes"]


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        # No switch is connected: none has a certificate of this controller's.
        (("flows", "node1"), "the switch of Node node1 is not connected"),
        (("explain", "node/node1"), "Node node1 has the pods of 10.244.1.0/24"),
        (("wait", "node/node1", "--timeout", "0"), "lacking: node1 (not connected)"),
        (("top", "--once", "--interval", "1"), "node1: not read: its switch is not connected"),
        (("drops",), "node1: not read: its switch is not connected"),
        (("services", "default/kubernetes"), "Service default/kubernetes"),
    ],
    ids=["flows", "explain", "wait", "top", "drops", "services"],
)
def test_viewer_asks_by_every_verb(viewing: Viewing, words: tuple[str, ...], shown: str) -> None:
    done = viewing.sluice("viewer", *words, "--address", REPORTS)
    assert shown in done.stdout + done.stderr
    refused = viewing.sluice("stranger", *words, "--address", REPORTS)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "your user lacks the permission" in refused.stderr


def test_user_without_the_permission_is_refused_in_one_sentence(viewing: Viewing) -> None:
    done = viewing.sluice("stranger", "services", "--address", REPORTS)
    assert done.returncode == 1
    assert done.stderr == (
        "Error: namespace sluice-system: your user lacks the permission to create"
        " serviceaccounts/token sluice-viewer\n"
    )


def test_cluster_without_a_controller_is_said_in_one_sentence(viewing: Viewing) -> None:
    done = viewing.sluice("viewer", "services")
    assert done.returncode == 1
    assert done.stderr.startswith("Error: namespace sluice-system: there is no controller (")
    assert done.stderr.count("\n") == 1


TOKENS: dict[str, tuple[Callable[[Viewing], str], int, str]] = {
    "none": (lambda _: "", 401, "a ServiceAccount token is needed"),
    "nonsense": (lambda _: "x.y.z", 401, "the token is not for 'sluice-reports' or not good: "),
    "the API server's audience": (
        lambda it: it.viewer_token(audience="https://kubernetes.default.svc"),
        401,
        "the token is not for 'sluice-reports' or not good: ",
    ),
    "the nodes' audience": (
        lambda it: it.viewer_token(audience="sluice"),
        401,
        "the token is not for 'sluice-reports' or not good: ",
    ),
    "another ServiceAccount": (
        lambda it: it.token("--audience", "sluice-reports", account="other"),
        403,
        "the token is system:serviceaccount:sluice-system:other's, not system:serviceaccount:"
        "sluice-system:sluice-viewer's",
    ),
    "a node's": (lambda it: it.node_token("node1"), 401, "the token is not for 'sluice-reports'"),
    "expired": (
        lambda it: expired(it.viewer_token(), it.lab.layout.control / "apiserver" / "pki"),
        401,
        "service account token has expired",
    ),
}


@pytest.mark.parametrize("case", TOKENS)
def test_token_of_nobody_who_may_look_is_refused(viewing: Viewing, case: str) -> None:
    make, code, sentence = TOKENS[case]
    status, body = viewing.raw(make(viewing))
    assert status == code, body
    assert sentence in json.loads(body)["error"]


def test_scraper_reads_the_metrics_of_nodes_and_no_report(viewing: Viewing) -> None:
    viewing.kubectl("create", "serviceaccount", "prometheus", "-n", "sluice-system")
    token = viewing.token("--audience", "sluice-reports", account="prometheus")
    status, body = viewing.raw(token, path="/metrics/nodes")
    assert status == 200, body
    assert 'sluice_node_proven_age_seconds{node="node1"} ' in body
    status, body = viewing.raw(token)
    assert status == 403, body
    # With the token that it has for the API server, a scraper is nobody.
    status, body = viewing.raw(viewing.token(account="prometheus"), path="/metrics/nodes")
    assert status == 401, body


@pytest.mark.parametrize("header", ["Origin: https://127.0.0.1:6655", "Host: sluice.example"])
def test_web_page_is_refused_even_with_a_token(viewing: Viewing, header: str) -> None:
    status, body = viewing.raw(viewing.viewer_token(), header)
    assert status == 403, body


def test_token_opens_nothing_at_the_port_of_agents(viewing: Viewing) -> None:
    status, body = viewing.ask("/v1/status", token=viewing.viewer_token())
    assert status == 404, body
