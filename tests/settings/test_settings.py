"""The one configuration file: what it may hold, and how a mistake is named."""

from pathlib import Path

import pytest

from settings import SettingsError, load

GOOD = {
    "cluster": "{podRange: 10.244.0.0/16, serviceRange: 10.96.0.0/16}",
    "agent": "{node: n1, controllerOpenflow: '10.0.0.1:6653', controllerApi: 'c.example:6654'}",
}


def write(path: Path, **sections: str) -> Path:
    file = path / "sluice.yaml"
    file.write_text("".join(f"{k}: {v}\n" for k, v in {**GOOD, **sections}.items()))
    return file


def test_defaults(tmp_path: Path) -> None:
    settings = load(write(tmp_path))
    assert settings.cluster
    assert settings.cluster.tunnel_port == 6081
    assert settings.agent
    assert settings.agent.datapath == "system"


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
        ("controller", "{openflow: nonsense}", "at `$.controller.openflow`"),
        ("controller", "{openflow: '0.0.0.0:99999'}", "at `$.controller.openflow`"),
        ("agent", "{node: '', controllerOpenflow: 'a:1', controllerApi: 'a:1'}", "`$.agent.node`"),
        (
            "agent",
            "{node: ../x, controllerOpenflow: 'a:1', controllerApi: 'a:1'}",
            "`$.agent.node`",
        ),
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


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file or directory"):
        load(tmp_path / "nothing.yaml")


def test_host_ranges_may_lie_in_one_another(tmp_path: Path) -> None:
    load(write(tmp_path, cluster=cluster(more="hostRanges: [192.168.0.0/16, 192.168.1.0/24]")))
