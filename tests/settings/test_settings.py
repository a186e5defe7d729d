"""The one configuration file: what it may hold, and how a mistake is named."""

import json
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import settings
from settings import SettingsError, load

GOOD = {
    "cluster": "{podRange: 10.244.0.0/16, serviceRange: 10.96.0.0/16}",
    "controller": "{plainTcp: true}",
    "agent": "{node: n1, controllers: [10.0.0.1, c.example], plainTcp: true}",
}

REST = "controllers: [a], plainTcp: true"
TLS = "tls: {key: a, certificate: b, ca: c}"
ENROLMENT = "enrolment: {token: a, ca: b}"
EXACTLY_ONE = "exactly one of `tls`, `enrolment`, `plainTcp: true`"


def write(path: Path, **sections: str) -> Path:
    file = path / "sluice.yaml"
    file.write_text("".join(f"{k}: {v}\n" for k, v in {**GOOD, **sections}.items()))
    return file


def test_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path))
    assert settings.cluster
    assert settings.cluster.tunnel_port == 6081
    policy = settings.cluster.policy
    assert policy.established == "keep"
    switches = policy.node_local_dns, policy.mirror_pods_as_members, policy.log_denials
    assert not any(switches)
    assert settings.agent
    assert settings.agent.datapath == "system"
    assert settings.agent.api_urls == ("http://10.0.0.1:6654", "http://c.example:6654")


def cluster(pod: str = "10.244.0.0/16", service: str = "10.96.0.0/16", more: str = "") -> str:
    return f"{{podRange: {pod}, serviceRange: {service}{', ' + more if more else ''}}}"


@pytest.mark.parametrize(
    ("section", "content", "problem"),
    [
        (
            "cluster",
            cluster(service="10.244.96.0/20"),
            "cluster.podRange 10.244.0.0/16 overlaps cluster.serviceRange 10.244.96.0/20",
        ),
        (
            "cluster",
            cluster(more="hostRanges: [192.168.0.0/16, 10.244.9.0/24]"),
            "cluster.podRange 10.244.0.0/16 overlaps cluster.hostRanges[1] 10.244.9.0/24",
        ),
        (
            "cluster",
            cluster(more="hostRanges: [10.96.0.0/12]"),
            "cluster.serviceRange 10.96.0.0/16 overlaps cluster.hostRanges[0] 10.96.0.0/12",
        ),
        ("cluster", cluster(pod="169.254.0.0/17"), "overlaps the link-local range"),
        ("cluster", cluster(pod="127.1.0.0/16"), "overlaps the loopback range"),
        ("cluster", cluster(service="230.0.0.0/16"), "overlaps the multicast range"),
        ("cluster", cluster(pod="10.244.0.1/16"), "has host bits set - at `$.cluster.podRange`"),
        ("cluster", cluster(pod="fd00::/64"), "not an IPv4 CIDR; this cluster is IPv4-only"),
        ("cluster", cluster(pod="167772160"), "167772160 is not a CIDR - at `$.cluster.podRange`"),
        ("cluster", "{podRange: 10.0.0.0/16}", "missing required field `serviceRange`"),
        ("cluster", cluster(more="podrange: x"), "unknown field `podrange` - at `$.cluster`"),
        (
            "cluster",
            cluster(more="tunnel: gre"),
            "Invalid enum value 'gre' - at `$.cluster.tunnel`",
        ),
        ("cluster", cluster(more="tunnelId: -1"), ">= 1 - at `$.cluster.tunnelId`"),
        ("cluster", cluster(more="tunnelId: 16777216"), "at `$.cluster.tunnelId`"),
        (
            "cluster",
            cluster(more="newConnectionsPerSecond: 0"),
            ">= 1 - at `$.cluster.newConnectionsPerSecond`",
        ),
        ("cluster", cluster(more="policy: {established: 1}"), "at `$.cluster.policy.established`"),
        ("cluster", cluster(more="policy: {logDenials: 1}"), "at `$.cluster.policy.logDenials`"),
        ("controller", "{openflow: nonsense}", "at `$.controller.openflow`"),
        ("controller", "{openflow: '0.0.0.0:99999'}", "at `$.controller.openflow`"),
        ("controller", "{openflow: '0.0.0.0:1'}", f"nothing where {EXACTLY_ONE}"),
        ("controller", "{plainTcp: false}", f"nothing where {EXACTLY_ONE}"),
        (
            "controller",
            f"{{{TLS}, enrolment: {{}}}}",
            f"`tls` and `enrolment` where {EXACTLY_ONE}",
        ),
        ("controller", f"{{{TLS}, plainTcp: true}}", "and nodes know each other - at `$.controll"),
        ("controller", "{enrolment: {namespace: A}}", "at `$.controller.enrolment.namespace`"),
        (
            "controller",
            "{enrolment: {addresses: ['a:1']}}",
            "`$.controller.enrolment.addresses[0]`",
        ),
        ("controller", "{enrolment: {lifetime: 1}}", "at `$.controller.enrolment.lifetime`"),
        ("controller", "{plainTcp: true, reports: {}}", "`reports` needs TLS"),
        (
            "controller",
            "{enrolment: {}, reports: {address: here}}",
            "at `$.controller.reports.address`",
        ),
        (
            "controller",
            "{enrolment: {}, reports: {namespace: A}}",
            "at `$.controller.reports.namespace`",
        ),
        ("agent", f"{{node: '', {REST}}}", "`$.agent.node`"),
        ("agent", f"{{node: ../x, {REST}}}", "`$.agent.node`"),
        ("agent", "{node: n, controllers: [a]}", f"nothing where {EXACTLY_ONE}"),
        ("agent", f"{{node: n, {REST}, {ENROLMENT}}}", "`enrolment` and `plainTcp` where exactly"),
        ("agent", f"{{node: n, controllers: [a], {TLS}, {ENROLMENT}}}", "at `$.agent`"),
        ("agent", "{node: n, controllers: [], plainTcp: true}", "at `$.agent.controllers`"),
        ("agent", "{controllers: [a, b, c, d, e, f, g, h, i], plainTcp: true}", "length <= 8"),
        ("agent", "{node: n, controllers: ['a:1'], plainTcp: true}", "`$.agent.controllers[0]`"),
        ("agent", "{node: n, controllers: [a, a], plainTcp: true}", "`controllers` has an entry"),
        ("agent", f"{{node: n, {REST}, apiPort: 0}}", "at `$.agent.apiPort`"),
        ("logLevel", "loud", "Invalid enum value 'loud' - at `$.logLevel`"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, section: str, content: str, problem: str) -> None:
    file = write(tmp_path, **{section: content})
    with pytest.raises(SettingsError) as caught:
        load(file)
    assert str(caught.value).startswith(f"{file}: ")
    assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "not a mapping"),
        ("- 1", "not a mapping"),
        ("{", "not YAML"),
        ("a: 1", "unknown field `a`"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=problem):
        load(file)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 100_000, "not YAML: .* more than 100 levels"),
        ("cluster: {podRange: " + ":".join("1" * 400) + ".5}", "is not a CIDR"),
        ("cluster: {podRange: &a [*a, *a]}", "a list is not a CIDR"),
        ("logLevel: \x00", "not YAML"),
        ("logLevel: info\n---\nlogLevel: info", "not YAML: 2 documents"),
        (f'agent: {{node: n, {REST}, state: "\\0"}}', r"is not a path - at `\$.agent.state`"),
        (f"agent: {{node: n, {REST}, state: ''}}", r"'' is not a path - at `\$.agent.state`"),
        (f"agent: {{node: n, {REST}, quarantine: .nan}}", r"at `\$.agent.quarantine`"),
    ],
)
def test_a_file_by_a_stranger(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(SettingsError, match=problem):
        load(file)


_VALUES = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), max_size=20)
    | st.sampled_from(["10.0.0.0/8", "10.244.0.0/16", "/", "a:1", "netdev", "vxlan", [], {}])
)


def _some(section: type[msgspec.Struct]) -> st.SearchStrategy[dict[str, object]]:
    names = [field.encode_name for field in msgspec.structs.fields(section)]
    return st.dictionaries(st.sampled_from([*names, "other"]), _VALUES | st.lists(_VALUES))


@given(
    st.dictionaries(
        st.sampled_from(["cluster", "controller", "agent", "logLevel", "other"]),
        _some(settings.ClusterSettings)
        | _some(settings.Controller)
        | _some(settings.Agent)
        | _VALUES,
    )
)
def test_wrong_types_anywhere(tmp_path_factory: pytest.TempPathFactory, content: object) -> None:
    file = tmp_path_factory.getbasetemp() / "settings.yaml"
    file.write_text(json.dumps(content, ensure_ascii=False))
    try:
        assert isinstance(load(file), settings.Settings)
    except SettingsError as error:
        problem = str(error)
    else:
        problem = ""
    assert not problem or problem.startswith(f"{file}: ")
    assert len(problem) < 1000


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory"):
        load(tmp_path / "nothing.yaml")


def test_host_ranges_may_lie_in_one_another(tmp_path: Path) -> None:
    load(write(tmp_path, cluster=cluster(more="hostRanges: [192.168.0.0/16, 192.168.1.0/24]")))
