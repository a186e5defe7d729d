"""The chart: an API server takes it with any values; real Helm installs, upgrades, removes it."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.deploy.conftest import KUSTOMIZE, Api, objects, rendered
from tests.deploy.helm import CHART, NAMESPACE, VALUES, built, run, template

EXAMPLES = sorted(path.stem for path in VALUES.glob("*.yaml"))

# Values without a default for each key: the configuration, what Kubernetes defines, what Helm adds.
FREE = {
    "settings",
    "global",
    *(f"{name}.{part}" for name in ("controller", "agent") for part in ("affinity", "resources")),
}
DEPLOYMENT = ("Deployment", NAMESPACE, "sluice-controller")
DAEMON_SET = ("DaemonSet", NAMESPACE, "sluice-agent")
CONFIG = ("ConfigMap", NAMESPACE, "sluice-config")


def example(name: str) -> Path:
    return VALUES / f"{name}.yaml"


def test_the_base_is_the_chart_with_default_values(helm: Path, kubectl_path: Path) -> None:
    base = objects(rendered(kubectl_path, KUSTOMIZE / "base"))
    del base["Namespace", "", NAMESPACE]
    assert objects(template(helm)) == base


def test_the_values_of_the_lab_are_the_overlay_of_the_lab(helm: Path, kubectl_path: Path) -> None:
    overlay = objects(rendered(kubectl_path, KUSTOMIZE / "lab"))
    del overlay["Namespace", "", NAMESPACE]
    made = objects(template(helm, "--values", example("lab")))
    for each in (made, overlay):
        # A patch of kustomize changes the order.
        (container,) = each[DEPLOYMENT]["spec"]["template"]["spec"]["containers"]
        container["env"].sort(key=lambda variable: variable["name"])
    assert made == overlay


@pytest.mark.parametrize("name", EXAMPLES)
def test_helm_finds_no_fault(helm: Path, name: str) -> None:
    done = run(helm, "lint", "--strict", CHART, "--values", example(name))
    assert not done.returncode, done.stdout


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_api_server_takes_it_with_values(api: Api, helm: Path, name: str) -> None:
    text = template(helm, "--values", example(name))
    kinds = {kind for kind, _, _ in objects(text)}
    for kind in ("servicemonitors", "prometheusrules"):
        if kind[:-1] in {kind.lower() for kind in kinds}:
            api.kubectl(
                "apply", "--server-side", "-f", str(built("promtool").parent / f"{kind}.yaml")
            )
            crd = f"crd/{kind}.monitoring.coreos.com"
            api.kubectl("wait", "--for=condition=Established", crd, "--timeout=60s")
    # A dry run makes no namespace for the rest.
    api.kubectl("apply", "-f", str(KUSTOMIZE / "base" / "namespace.yaml"))
    said = api.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", "-", stdin=text)
    assert len(said.splitlines()) == len(objects(text))


def test_every_value_has_its_effect(helm: Path) -> None:
    values = yaml.safe_load(example("everything").read_text())
    found = objects(template(helm, "--values", example("everything")))
    images = {
        "controller": "registry.example:5000/net/sluice-controller:1.2",
        "agent": f"registry.example/sluice-agent@{values['agent']['image']['digest']}",
    }
    for name, key in (("controller", DEPLOYMENT), ("agent", DAEMON_SET)):
        given = values[name]
        workload = found[key]["spec"]["template"]
        pod = workload["spec"]
        (container,) = pod["containers"]
        assert container["image"] == images[name]
        assert container.get("imagePullPolicy", "") == given["image"].get("pullPolicy", "")
        assert container["resources"] == given["resources"]
        assert container["env"][-2:] == given["extraEnv"]
        assert pod["imagePullSecrets"] == values["imagePullSecrets"]
        assert pod.get("priorityClassName", "") == given["priorityClassName"]
        assert pod["tolerations"] == given["tolerations"]
        assert given["podAnnotations"] == workload["metadata"]["annotations"]
        assert given["podLabels"].items() <= workload["metadata"]["labels"].items()
        for kind, terms in given["affinity"].items():
            assert terms.items() <= pod["affinity"][kind].items()
    assert found[DEPLOYMENT]["spec"]["replicas"] == 3
    lease = ("Role", "kube-system", "sluice-controller-election")
    assert found[lease]["rules"][1]["resourceNames"] == ["network"]
    pod = found[DEPLOYMENT]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {"pool": "system"}
    (container,) = pod["containers"]
    assert [port["containerPort"] for port in container["ports"]] == [7653, 7654, 7655]
    environment = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert environment["KUBERNETES_SERVICE_HOST"] == "10.0.0.9"
    assert environment["KUBERNETES_SERVICE_PORT"] == "443"
    agents = found[DAEMON_SET]["spec"]
    assert agents["updateStrategy"]["rollingUpdate"]["maxUnavailable"] == 3
    settings = found[CONFIG]["data"]["sluice.yaml"]
    assert settings["logLevel"] == "debug"
    assert settings["cluster"] == {"podRange": "10.1.0.0/16", "serviceRange": "10.96.0.0/12"}
    assert settings["controller"]["reports"]["namespace"] == NAMESPACE
    assert settings["controller"]["election"] == {"namespace": "kube-system", "name": "network"}


def test_without_agents_and_reports(helm: Path) -> None:
    found = objects(template(helm, "--values", example("systemd-agents")))
    assert objects(template(helm)).keys() - found.keys() == {DAEMON_SET}
    namespaced = {name: {"namespace": NAMESPACE} for name in ("bgp", "election")}
    controller = {"plainTcp": True, **namespaced}
    assert found[CONFIG]["data"]["sluice.yaml"]["controller"] == controller
    pod = found[DEPLOYMENT]["spec"]["template"]["spec"]
    assert "nodeSelector" not in pod
    assert "tolerations" not in pod
    (container,) = pod["containers"]
    assert [port["name"] for port in container["ports"]] == ["openflow", "api"]
    assert container["livenessProbe"]["httpGet"]["scheme"] == "HTTP"


@pytest.mark.parametrize(
    ("addresses", "replicas", "made"),
    [(1, None, 1), (2, None, 2), (3, None, 2), (1, 0, 0), (3, 1, 1), (3, 3, 3)],
)
def test_there_are_two_controllers_where_the_agents_know_two_addresses(
    helm: Path, addresses: int, replicas: int | None, made: int
) -> None:
    known = json.dumps([f"10.0.0.{number}" for number in range(1, addresses + 1)])
    values = [f"--set-json=settings.agent.controllers={known}"]
    values.append(f"--set-json=controller.replicas={json.dumps(replicas)}")
    assert objects(template(helm, *values))[DEPLOYMENT]["spec"]["replicas"] == made


def test_no_two_controllers_are_on_one_node(helm: Path) -> None:
    found = objects(template(helm, "--values", example("everything")))[DEPLOYMENT]["spec"]
    terms = found["template"]["spec"]["affinity"]["podAntiAffinity"]
    (one,) = terms["requiredDuringSchedulingIgnoredDuringExecution"]
    assert one["topologyKey"] == "kubernetes.io/hostname"
    selected = one["labelSelector"]["matchLabels"]
    assert selected == found["selector"]["matchLabels"]
    assert selected.items() <= found["template"]["metadata"]["labels"].items()


def test_uninstall_replaces_controller_and_agents(helm: Path) -> None:
    usual, found = (
        objects(template(helm)),
        objects(template(helm, "--values", example("uninstall"))),
    )
    uninstall = ("DaemonSet", NAMESPACE, "sluice-uninstall")
    budget = ("PodDisruptionBudget", NAMESPACE, "sluice-controller")
    assert usual.keys() - found.keys() == {DEPLOYMENT, DAEMON_SET, budget}
    assert found.keys() - usual.keys() == {uninstall}
    pod = found[uninstall]["spec"]["template"]["spec"]
    images = {each["image"] for each in pod["initContainers"] + pod["containers"]}
    assert images == {"registry.example/sluice-agent:0.1.0"}
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "all"}


def test_uninstall_with_default_values_is_the_overlay(helm: Path, kubectl_path: Path) -> None:
    overlay = objects(rendered(kubectl_path, KUSTOMIZE / "uninstall"))
    made = objects(template(helm, "--set=uninstall=true"))
    found = made["DaemonSet", NAMESPACE, "sluice-uninstall"]
    wanted = overlay["DaemonSet", "sluice-uninstall", "sluice-uninstall"]
    for each in (found, wanted):
        del each["metadata"]["namespace"]
    assert found == wanted


def test_everything_is_in_the_namespace_of_the_release(helm: Path) -> None:
    done = run(helm, "template", "sluice", CHART, "--namespace", "network")
    found = objects(done.stdout)
    assert {namespace for _, namespace, _ in found} == {"", "network"}
    assert NAMESPACE not in done.stdout


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("controller.replicas=2", "controller.replicas is 2, but settings.agent.controllers has 1"),
        ("controller.replicas=-1", "at '/controller/replicas': minimum: got -1, want 0"),
        ("controller.replica=1", "at '/controller': additional properties 'replica' not allowed"),
        ('controller.image="a:1"', "at '/controller/image': got string, want object"),
        ('controller.image.repository="a:1"', "at '/controller/image/repository': 'a:1' does not"),
        ('agent.extraEnv=[{"value":"1"}]', "at '/agent/extraEnv/0': missing property 'name'"),
        ('agent.tolerations=[{"keys":"a"}]', "at '/agent/tolerations/0': additional properties"),
        ("agent.maxUnavailable=0", "at '/agent/maxUnavailable'"),
        ("settings.agent.controllers=[]", "at '/settings/agent/controllers': minItems"),
        ('settings.cluster.mtu="9000"', "at '/settings/cluster/mtu': got string, want integer"),
        ('settings.podRange="10.0.0.0/8"', "at '/settings': additional properties 'podRange'"),
        ('settings.logLevel="loud"', "at '/settings/logLevel': value must be one of 'debug'"),
        ('monitoring.serviceMonitor.interval="1 m"', "at '/monitoring/serviceMonitor/interval'"),
    ],
)
def test_a_wrong_value_is_refused_with_its_name(helm: Path, value: str, said: str) -> None:
    done = run(helm, "template", "sluice", CHART, "--set-json", value)
    assert done.returncode
    assert said in done.stderr


def test_every_value_has_a_default() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    parts = schema["definitions"]

    def missing(part: Any, given: Any, where: str) -> list[str]:
        part = parts[part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        found = []
        for name, inner in part.get("properties", {}).items():
            path = f"{where}.{name}".lstrip(".")
            if path in FREE:
                continue
            if name not in given:
                found.append(path)
            elif isinstance(given[name], dict):
                found += missing(inner, given[name], path)
        return found

    assert missing(schema, values, "") == []


def test_install_upgrade_uninstall(api: Api, helm: Path) -> None:
    def release(verb: str, *arguments: str | Path) -> str:
        return api.run(helm, verb, "sluice", "--namespace", "network", *map(str, arguments))

    def there() -> set[tuple[str, str]]:
        kinds = "deploy,ds,pdb,sa,cm,secret,role,rolebinding,clusterrole,clusterrolebinding"
        listed = api.get("--all-namespaces", kinds, "--selector=app.kubernetes.io/managed-by=Helm")
        return {(item["kind"], item["metadata"]["name"]) for item in listed["items"]}

    resources = {key for key in objects(template(helm)) if key[0] == "CustomResourceDefinition"}
    wanted = objects(template(helm)).keys() - resources
    notes = release("install", CHART, "--create-namespace")
    assert "settings.agent.controllers still has the example address" in notes
    assert there() == {(kind, name) for kind, _, name in wanted}
    # What the controller writes into the CA survives an upgrade.
    ca = {"data": {"tls.key": "a2V5"}}
    api.kubectl("-n", "network", "patch", "secret", "sluice-ca", "-p", json.dumps(ca))

    lab = example("lab")
    notes = release("upgrade", CHART, "--values", lab, "--set", "controller.image.tag=v2")
    assert "rollout restart deployment/sluice-controller daemonset/sluice-agent" in notes
    assert "example address" not in notes
    deployment = api.get("-n", "network", "deployment", "sluice-controller")
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "sluice-controller:v2"
    assert api.get("-n", "network", "secret", "sluice-ca")["data"] == ca["data"]

    release("upgrade", CHART, "--reuse-values", "--set", "agent.enabled=false")
    assert there() == {(kind, name) for kind, _, name in wanted} - {("DaemonSet", "sluice-agent")}
    release("rollback", "2")
    assert ("DaemonSet", "sluice-agent") in there()
    assert api.get("-n", "network", "secret", "sluice-ca")["data"] == ca["data"]

    release("uninstall", "--wait")
    assert there() == set()
    # With them, Helm would delete all their objects.
    for kind, _, name in resources:
        assert api.get(kind, name)
