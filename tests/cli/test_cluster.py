"""The way to a cluster's controller: a token, a port-forward, TLS; and what is said without one."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from cli import controller
from cli.main import main
from cli.output import say_nothing_by_itself
from controller.authority import Authority
from tests.cli.fake_cluster import NOT_LEADING, FakeCluster, pod
from tests.ports import free_port

LACKS = "Error: namespace sluice-system: your user lacks the permission to "


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    say_nothing_by_itself()
    made = FakeCluster(tmp_path)
    with made.running():
        yield made


def sluice(cluster: FakeCluster, *words: str) -> Result:
    return CliRunner().invoke(main, [*words, "--kubeconfig", str(cluster.kubeconfig)])


def refusal(cluster: FakeCluster, *words: str) -> str:
    """What a command says that fails; it is one line."""
    done = sluice(cluster, *(words or ("status",)))
    assert (done.exit_code, done.stdout) == (1, "")
    line, end, rest = done.stderr.partition("\n")
    assert (end, rest) == ("\n", "")
    return line


def test_each_command_asks_through_a_port_forward(cluster: FakeCluster, tmp_path: Path) -> None:
    done = sluice(cluster, "status", "--json")
    assert msgspec.json.decode(done.stdout)["nodes"].keys() == {"node1"}
    # Its switch is not connected.
    assert done.exit_code == 1
    assert cluster.forwarded == ["one"]
    assert cluster.audiences == ["sluice-reports"]
    assert sluice(cluster, "services").stdout == "there are no Services\n"
    assert refusal(cluster, "flows", "node1") == "Error: the switch of Node node1 is not connected"
    assert "there is no Pod default/a" in refusal(cluster, "policy", "default/a")
    policy = tmp_path / "policy.json"
    policy.write_text(
        '{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",'
        ' "metadata": {"name": "a"}, "spec": {"podSelector": {}}}'
    )
    assert "NetworkPolicy default/a: added" in sluice(cluster, "what-if", "-f", str(policy)).stdout


def test_kubeconfig_is_found_as_kubectl_finds_it(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    assert CliRunner().invoke(main, ["services"]).stdout == "there are no Services\n"
    assert CliRunner().invoke(main, ["services", "--context", "x"]).exit_code == 0
    done = CliRunner().invoke(main, ["services", "--context", "y"])
    assert done.stderr.startswith("Error: the kubeconfig cannot be used: ")


def test_next_ready_controller_is_asked_if_one_does_not_answer(cluster: FakeCluster) -> None:
    cluster.pods = [
        pod("not-ready", cluster.reports, conditions=[{"type": "Ready", "status": "False"}]),
        pod("refusing", free_port()),
        pod("old", None),
        *cluster.pods,
    ]
    assert sluice(cluster, "services").exit_code == 0
    assert cluster.forwarded == ["refusing", "one"]


def test_leader_is_asked_where_a_standby_is_found_first(cluster: FakeCluster) -> None:
    cluster.pods = [pod("standby", cluster.standby), *cluster.pods]
    assert sluice(cluster, "services").stdout == "there are no Services\n"
    assert cluster.forwarded == ["standby", "one"]
    assert cluster.tokens == 1


def test_cluster_without_a_leader_is_said(cluster: FakeCluster) -> None:
    cluster.pods = [pod("standby", cluster.standby), pod("another", cluster.standby)]
    assert refusal(cluster) == f"Error: {NOT_LEADING}"
    assert cluster.forwarded == ["standby", "another"]


def test_controller_that_does_not_answer_is_named(cluster: FakeCluster) -> None:
    cluster.pods = [pod("refusing", free_port())]
    assert refusal(cluster) == (
        "Error: Pod sluice-system/refusing serves no reports:"
        " error forwarding port: connection refused"
    )


def test_older_controller_is_named(cluster: FakeCluster) -> None:
    cluster.pods = [pod("old", None)]
    assert refusal(cluster) == (
        "Error: Pod sluice-system/old has no port 'reports': its Sluice is too old"
    )


def test_cluster_without_a_ready_controller_is_said(cluster: FakeCluster) -> None:
    cluster.pods = [pod("one", 1, conditions=None)]
    assert refusal(cluster) == "Error: namespace sluice-system: none of 1 controllers is ready"
    cluster.pods = []
    assert refusal(cluster).startswith("Error: namespace sluice-system: there is no controller (")


@pytest.mark.parametrize(
    ("end", "permission"),
    [
        ("/token", "create serviceaccounts/token sluice-viewer"),
        ("/configmaps/sluice-ca", "get configmaps sluice-ca"),
        ("/pods", "list pods"),
        ("/portforward", "create pods/portforward"),
    ],
)
def test_missing_permission_is_named(cluster: FakeCluster, end: str, permission: str) -> None:
    cluster.refused[end] = 403
    assert refusal(cluster) == f"{LACKS}{permission}"


def test_cluster_without_sluice_is_said(cluster: FakeCluster) -> None:
    cluster.refused["/token"] = 404
    assert refusal(cluster) == (
        "Error: namespace sluice-system: Sluice is not installed in it, or is too old:"
        " there is no ServiceAccount sluice-viewer"
    )


def test_other_refusals_of_the_api_server_are_told(cluster: FakeCluster) -> None:
    cluster.refused["/token"] = 401
    assert "does not accept the credentials of the kubeconfig" in refusal(cluster)
    cluster.refused["/token"] = 500
    assert refusal(cluster).endswith("the API server answers: refused: /token")


def test_token_that_the_controller_refuses_is_told(cluster: FakeCluster) -> None:
    cluster.refused["/tokenreviews"] = 403
    assert "the API server cannot review the token" in refusal(cluster)


@pytest.mark.parametrize(
    ("ca", "sentence"),
    [
        (Authority.new().certificate_pem.decode(), "serves no reports: its certificate: "),
        ("", "no controller has started yet: ConfigMap sluice-ca is empty"),
        ("nonsense", "ConfigMap sluice-ca: ca.crt holds no certificate"),
    ],
)
def test_controller_of_another_ca_gets_no_token(
    cluster: FakeCluster, ca: str, sentence: str
) -> None:
    cluster.shown_ca = ca
    assert sentence in refusal(cluster)


def test_address_is_a_way_without_a_port_forward(cluster: FakeCluster) -> None:
    address = f"127.0.0.1:{cluster.reports}"
    assert sluice(cluster, "services", "--address", address).exit_code == 0
    assert cluster.forwarded == []
    for wrong in (f"127.0.0.1:{free_port()}", "127.0.0.1", "127.0.0.1:99999999"):
        said = refusal(cluster, "services", "--address", wrong)
        assert said.startswith(f"Error: no controller answers at {wrong}: ")


def test_one_command_makes_one_token_for_all_its_questions(
    cluster: FakeCluster, tmp_path: Path
) -> None:
    assert sluice(cluster, "bundle", "-o", str(tmp_path / "b.tar.zst")).exit_code == 0
    assert len(cluster.forwarded) > 4
    assert cluster.tokens == 1
    assert sluice(cluster, "services").exit_code == 0
    assert cluster.tokens == 2


def test_api_server_that_does_not_answer_is_said(tmp_path: Path) -> None:
    assert refusal(FakeCluster(tmp_path)).startswith("Error: the API server does not answer: ")


@pytest.mark.parametrize("content", ["", "[", "a", "{}", "contexts: 5", "\0", "current-context: x"])
def test_kubeconfig_that_is_none_is_refused(tmp_path: Path, content: str) -> None:
    made = FakeCluster(tmp_path)
    made.kubeconfig.write_text(content)
    assert refusal(made).startswith("Error: the kubeconfig cannot be used: ")


def test_no_kubeconfig_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    for words in ([], ["--kubeconfig", str(tmp_path / "none")]):
        done = CliRunner().invoke(main, ["status", *words])
        assert done.stderr == (
            f"Error: there is no kubeconfig at {tmp_path}/none:"
            " give --kubeconfig, or --lab for a lab\n"
        )


@pytest.mark.parametrize(
    "words", [("--lab", "a", "--socket", "b"), ("--socket", "b", "--context", "c")]
)
def test_two_controllers_at_once_are_refused(words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(main, ["status", *words])
    assert done.exit_code == 2
    assert " does not go with " in done.stderr


def completed(cluster: FakeCluster, *words: str) -> list[str]:
    *before, begun = words
    shell = ShellComplete(main, {}, "sluice", "_SLUICE_COMPLETE")
    found = shell.get_completions([*before, "--kubeconfig", str(cluster.kubeconfig)], begun)
    return [each.value for each in found]


def test_names_of_the_cluster_are_completed(cluster: FakeCluster) -> None:
    assert completed(cluster, "flows", "no") == ["node1"]
    assert completed(cluster, "flows", "x") == []
    cluster.refused["/token"] = 403
    assert completed(cluster, "flows", "no") == []


@pytest.mark.parametrize(
    ("command", "report", "names"),
    [
        (
            "services",
            {"services": [{"namespace": "shop", "name": "web"}, {"namespace": "a", "name": "b"}]},
            ["shop/web"],
        ),
        (
            "policy",
            {"nodes": {"n": {"attachments": {"p1": {"pod": "shop/x"}, "p2": {"pod": "a/y"}}}}},
            ["shop/x"],
        ),
        ("policy", {"nodes": []}, []),
    ],
)
def test_names_in_a_report_are_completed(
    monkeypatch: pytest.MonkeyPatch, command: str, report: Any, names: list[str]
) -> None:
    monkeypatch.setattr(controller, "ask", lambda *_: report)
    shell = ShellComplete(main, {}, "sluice", "_SLUICE_COMPLETE")
    assert [each.value for each in shell.get_completions([command], "sh")] == names


@pytest.mark.parametrize(
    ("words", "begun", "names"),
    [
        (["explain"], "pod/", ["pod/shop/x"]),
        (["wait"], "n", ["networkpolicy/", "node/n1"]),
        (["wait"], "svc/s", ["svc/shop/web"]),
        (["flows", "--pod"], "", ["shop/x"]),
        (["flows", "--service"], "shop", ["shop/web"]),
        (["flows", "--table"], "poli", ["PolicyFromPod"]),
        (["top", "--node"], "", ["n1"]),
        (["drops", "--node"], "", ["n1"]),
    ],
)
def test_objects_are_completed_with_their_kinds(
    monkeypatch: pytest.MonkeyPatch, words: list[str], begun: str, names: list[str]
) -> None:
    reports = {
        "/v1/services": {"services": [{"namespace": "shop", "name": "web"}]},
        "/v1/status": {"nodes": {"n1": {"attachments": {"p1": {"pod": "shop/x"}}}}},
    }
    monkeypatch.setattr(controller, "ask", lambda _, path, __: reports[path])
    shell = ShellComplete(main, {}, "sluice", "_SLUICE_COMPLETE")
    found = [each.value for each in shell.get_completions(words, begun)]
    assert found[: len(names)] == names
